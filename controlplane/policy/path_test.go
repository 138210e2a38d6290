package policy_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
)

// TestNormalizePath holds the table that was measured on Envoy 1.40.0. "" is a
// request that is refused, by Envoy or by the guard behind it.
func TestNormalizePath(t *testing.T) {
	for raw, want := range map[string]string{
		"/": "/", "/a": "/a", "/a/": "/a/", "/a/b": "/a/b", "/A": "/A",
		// What is no path.
		"": "", "a": "", "*": "", "?x": "", "http://h/a": "", `\a`: "",
		// The query is cut off; a fragment is refused wherever it stands.
		"/a?": "/a", "/a?x=%2f%00": "/a", "/a?b?c": "/a", "/a?/../b": "/a", "/?": "/", "/a#y": "", "/a?x#y": "",
		// Slashes are merged, but two are left of slashes alone.
		"//": "//", "///": "//", "//a": "/a", "/a//": "/a/", "/a//b": "/a/b", "/a/b//..": "/a/b/",
		`/\a`: "/a", `/a\b`: "/a/b", `/a/\`: "/a/", `/a\..\b`: "/b", `/a/..\b`: "/b",
		// Dot segments, before slashes are merged.
		"/.": "/", "/./": "/", "/..": "/", "/../..": "/", "/a/.": "/a/", "/a/./b": "/a/b", "/a/..": "/", "/a/../b": "/b",
		"/a/b/../": "/a/", "/a/b/../../..": "/", "/a//../b": "/a/b", "/a///..//b": "/a/b",
		"//..": "/", "//.": "//", "//./": "//", "/..//": "//", "/.//": "//",
		"/a/..?x": "/", "/a/../?x": "/",
		"/a/..b": "/a/..b", "/a/.b": "/a/.b", "/a/b.": "/a/b.", "/a/b..": "/a/b..", "/a/...": "/a/...", "/a/.../b": "/a/.../b",
		// Encoded dots are dots.
		"/a/%2e%2e/b": "/b", "/a/%2E./b": "/b", "/a/.%2e": "/", "/a/%2e": "/a/", "/a%2e%2e/b": "/a../b",
		// Parameters of dot segments; those of others are refused.
		"/a/..;/b": "/b", "/a/..;x=1/b": "/b", "/a/.;/b": "/a/b", "/a/.;x": "/a/", "/a/..;": "/", "/.;": "/", "/..;/..;/a": "/a",
		"/a;x/b": "", "/;": "", "/a/;../b": "", "/a/%2e%2e;/b": "", "/a/.%2e;/b": "", "/a/..%3b/b": "",
		// Unreserved characters are decoded, once; others stay, and are refused.
		"/%41": "/A", "/%61": "/a", "/%7e": "/~", "/%2D%5f": "/-_", "/%2561": "", "/%": "", "/%4": "", "/%zz": "", "/%%34%31": "",
		"/%20": "", "/%c3%a9": "", "/%c0%ae": "", "/%21": "", "/%40": "",
		// Unless they are taken away by a dot segment.
		"/%20/../a": "/a", "/;/../a": "/a", "/%/../a": "/a", `/"/..`: "/",
		// An encoded slash is not, nor a NUL that is not a parameter.
		"/a%2fb": "", "/a%2Fb": "", "/a%5cb": "", "/a%5Cb": "", "/%2f/../a": "", "/%%2f/../a": "", "/a/..;%2f/b": "",
		"/%00": "", "/%00/../a": "", "/..;%00/a": "/a",
	} {
		got, ok := policy.NormalizePath(raw)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", raw, got, ok, want)
		}
	}
}

// TestNormalizePathBytes goes through every byte, raw and encoded.
func TestNormalizePathBytes(t *testing.T) {
	const unreserved = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
	const allowed = unreserved + "!$&'()*+,/:=@"
	const hex = "0123456789aBcDeF"
	for c := range 256 {
		b := string([]byte{byte(c)})
		want := ""
		switch {
		case strings.Contains(allowed, b):
			want = "/a" + b + "b"
		case b == `\`:
			want = "/a/b"
		case b == "?":
			want = "/a"
		}
		if got, ok := policy.NormalizePath("/a" + b + "b"); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", b, got, ok, want)
		}
		want = ""
		if strings.Contains(unreserved, b) {
			want = "/a" + b + "b"
		}
		raw := "/a%" + hex[c>>4:c>>4+1] + hex[c&15:c&15+1] + "b"
		if got, ok := policy.NormalizePath(raw); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", raw, got, ok, want)
		}
	}
}

// TestNormalizePathIsCanonical: what comes out is its own canonical form, so it
// does not matter how many proxies a request passes.
func TestNormalizePathIsCanonical(t *testing.T) {
	part := rapid.SampledFrom([]string{"/", "/", ".", "..", "a", "b", "%2e", "%41", "%20", "%2f", "%", ";", `\`, "..;", ".;x", "?", "~", "é"})
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + strings.Join(rapid.SliceOfN(part, 0, 12).Draw(t, "parts"), "")
		path, ok := policy.NormalizePath(raw)
		if !ok {
			return
		}
		again, ok := policy.NormalizePath(path)
		if !ok || again != path {
			t.Fatalf("%q becomes %q, which becomes %q", raw, path, again)
		}
		if strings.ContainsAny(path, `%;\?#`) || path != "//" && strings.Contains(path, "//") {
			t.Fatalf("%q becomes %q", raw, path)
		}
		for _, segment := range strings.Split(path, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q becomes %q", raw, path)
			}
		}
	})
}

// TestNormalizeEncodedPath holds what was measured on Envoy 1.40.0 behind the
// steps that NormalizePath shares, and what the wider guard then refuses.
func TestNormalizeEncodedPath(t *testing.T) {
	for raw, want := range map[string]string{
		"/a/b": "/a/b", "/a//b?c": "/a/b", "/a/../b": "/b", "//": "//", "/a#b": "", "a": "", "/a b": "",
		// The digits of an encoding stay as they are, unreserved characters are decoded.
		"/%20/%C3%a9": "/%20/%C3%a9", "/%41%7e": "/A~", "/a%3b;x": "/a%3b;x", "/%25": "/%25", "/a/%20/..": "/a/",
		// Characters that do not belong in a path are encoded.
		`/"<>^` + "`{|}": "/%22%3C%3E%5E%60%7B%7C%7D",
		// What is decoded never completes another encoding.
		"/%4%41": "/%254A", "/%%34%31": "/%2541", "/%a%41b": "/%25aAb", "/%%41b": "/%25Ab", "/%%41g": "",
		"/%/../b%41": "/bA", "/%zz/../ab%41": "/abA",
		// An encoding that is none, and what some applications take for a slash or a dot.
		"/%": "", "/%zz": "", "/%4": "", "/a%2fb": "", "/a%5Cb": "", "/%00": "", "/%252fa": "", "/%252E": "", "/%c0%ae": "", "/;a": "", "/%3b;x": "", "/.%3B": "", "/%%32e": "", "/[": "",
		"/..;/b": "/b", "/a;/b": "/a;/b",
	} {
		got, ok := policy.NormalizeEncodedPath(raw)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q, %v, want %q", raw, got, ok, want)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	f.Add("/a/%2e%2e;x/..\\b?c")
	f.Fuzz(func(t *testing.T, raw string) {
		if path, ok := policy.NormalizePath(raw); ok {
			if again, ok := policy.NormalizePath(path); !ok || again != path {
				t.Errorf("%q becomes %q, which becomes %q, %v", raw, path, again, ok)
			}
			if encoded, ok := policy.NormalizeEncodedPath(raw); !ok || encoded != path {
				t.Errorf("%q becomes %q, and %q where paths may be encoded", raw, path, encoded)
			}
		}
		if path, ok := policy.NormalizeEncodedPath(raw); ok {
			if again, ok := policy.NormalizeEncodedPath(path); !ok || again != path {
				t.Errorf("%q becomes %q, which becomes %q, %v", raw, path, again, ok)
			}
		}
	})
}
