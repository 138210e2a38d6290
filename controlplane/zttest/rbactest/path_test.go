package rbactest

import "testing"

// TestNormalise holds it to what was measured of Envoy.
func TestNormalise(t *testing.T) {
	for raw, want := range map[string]string{
		"/a/%62/./c//d?x":  "/a/b/c/d?x",
		"/a/..":            "/",
		"/a/.":             "/a/",
		"/a/%2e%2E/b":      "/b",
		"//":               "//",
		"///":              "//",
		"/a//../b":         "/a/b",
		`\a`:               "",
		`/.\secret`:        "/secret",
		"/public/..;x/s":   "/s",
		"/public/%2e%2e;s": "/public/..;s",
		"/..;%00":          "/",
		"/a%00":            "",
		"/a%2Fb":           "",
		"/a%5cb":           "",
		"/a#b":             "",
		"/a?%2f":           "/a?%2f",
		"/a%e4%":           "/a%e4%",
		"/%zz":             "/%zz",
		"/%%32f":           "/%252f",
		"/%%3252f":         "/%25252f",
		"/%%34%31":         "/%2541",
		"/<a>":             "/%3Ca%3E",
		"*":                "",
		"":                 "",
	} {
		got, ok := normalise(raw)
		if ok != (want != "") || got != want && ok {
			t.Errorf("%q: got %q, %v, want %q", raw, got, ok, want)
		}
	}
}
