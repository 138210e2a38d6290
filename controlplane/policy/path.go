package policy

import (
	"fmt"
	"slices"
	"strings"
)

// HealthPath is the reserved path that a callee's proxy answers itself, for
// callers that its gate admits.
const HealthPath = "/.well-known/ztmesh/health"

// NormalizePath is the form in which a path is judged, and in which the
// application receives it: step "form" of a decision. raw is the :path of a
// request as it arrives, with its query, which is cut off. ok is false for a
// request that is refused.
//
// It does what a hardened Envoy 1.40 does, in Envoy's order, and then what the
// guard in front of the rules does. Each step was measured on the binary with
// every byte, raw and encoded.
//
//  1. "#" anywhere, also in the query, and control or non-ASCII bytes are refused
//     (http_reject_path_with_fragment; the codecs).
//  2. %2F and %5C anywhere in the path, also as a part of something longer, are
//     refused (path_with_escaped_slashes_action).
//  3. "..;x" and ".;x" as a segment lose their parameter
//     (strip_dotdot_segments_with_parameters); an encoded dot is no dot here.
//  4. normalize_path (RFC 3986, section 6.2.2): "\" becomes "/", %xx of an
//     unreserved character becomes that character, dot segments, also encoded
//     ones, are resolved; "/a/.." is "/". %00 is refused. Other characters that
//     do not belong in a path become %xx; a "%" that begins no %xx stays.
//  5. merge_slashes: "//" becomes "/". A path of nothing but slashes keeps two.
//  6. The guard refuses what is not a letter, digit or one of -._~!$&'()*+,=:@/
//     So what is still encoded is refused, and ";", on which servers differ.
func NormalizePath(raw string) (path string, ok bool) {
	path, ok = NormalizeEncodedPath(raw)
	if !ok {
		return "", false
	}
	for i := range len(path) {
		if !canonicalByte(path[i]) {
			return "", false
		}
	}
	return path, true
}

// NormalizeEncodedPath is NormalizePath with a wider last step: for the ports that
// allow encoded paths.
func NormalizeEncodedPath(raw string) (path string, ok bool) {
	if !strings.HasPrefix(raw, "/") {
		return "", false // "*", an absolute URL or nothing
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", false
		}
	}
	raw, _, _ = strings.Cut(raw, "?")
	if escapesSlash(raw) {
		return "", false
	}
	path, ok = resolve(stripDotParameters(raw))
	if !ok {
		return "", false
	}
	path = mergeSlashes(path)
	return path, encodedForm(path)
}

// ambiguous is what is refused even where paths may be encoded, in whatever case:
// what applications take for a slash, a backslash, a dot segment or an end.
var ambiguous = []string{
	"%00", "%2f", "%5c", "%2e", // what decoding has made of "%%32e", too
	"%2500", "%252f", "%255c", "%252e", // decoded twice
	"%c0", "%c1", "%e0%8", "%e0%9", "%f0%8", // ASCII in more bytes than UTF-8 allows
	"/;", "/.;", "/..;", "/%3b", "/.%3b", "/..%3b", // nothing and dots, with parameters
}

// encodedForm is step 6 where paths may be encoded: besides what is canonical, ";"
// and whole %xx, and nothing ambiguous.
func encodedForm(path string) bool {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '%':
			if _, _, decoded := next(path[i:]); !decoded {
				return false
			}
			i += 2
		case c != ';' && !canonicalByte(c):
			return false
		}
	}
	lower := strings.ToLower(path)
	for _, s := range ambiguous {
		if strings.Contains(lower, s) {
			return false
		}
	}
	return true
}

// escapesSlash is step 2.
func escapesSlash(raw string) bool {
	for _, s := range []string{"%2F", "%2f", "%5C", "%5c"} {
		if strings.Contains(raw, s) {
			return true
		}
	}
	return false
}

// stripDotParameters is step 3. It splits at "/" only.
func stripDotParameters(raw string) string {
	if !strings.Contains(raw, ".;") {
		return raw
	}
	segments := strings.Split(raw, "/")
	for i, s := range segments {
		switch {
		case strings.HasPrefix(s, "..;"):
			segments[i] = ".."
		case strings.HasPrefix(s, ".;"):
			segments[i] = "."
		}
	}
	return strings.Join(segments, "/")
}

// resolve is step 4. What it decodes is never a part of another %xx: the "%" in
// front, which begins none as it came, becomes %25 ("/%4%41" is "/%254A").
func resolve(raw string) (string, bool) {
	var out []byte
	percent := -1 // where in out the last "%" is that begins no %xx
	for i := 0; i < len(raw); {
		c, width, decoded := next(raw[i:])
		if decoded && c == 0 {
			return "", false
		}
		switch {
		case c == '/' || c == '\\':
			out = append(out, '/')
		case c == '.' && len(out) > 0 && out[len(out)-1] == '/':
			dots, length := dotSegment(raw[i:])
			if dots == 0 {
				out = append(out, '.')
				break
			}
			if dots == 2 {
				out = parent(out)
				percent = min(percent, len(out)-1)
			}
			width = length
		case decoded && !unreserved(c):
			out = append(out, raw[i:i+width]...) // the digits stay as they are
		case misplaced(c):
			out = fmt.Appendf(out, "%%%02X", c)
		default:
			out = append(out, c)
			if decoded {
				out = apart(out, percent, raw[i+width:])
			} else if c == '%' {
				percent = len(out) - 1
			}
		}
		i += width
	}
	return string(out), true
}

// apart mends an out whose last character, which was decoded, makes a %xx with
// the "%" at percent and what stands between them or comes next.
func apart(out []byte, percent int, rest string) []byte {
	tail := len(out) - 1 - percent
	if percent < 0 || tail > 2 || out[percent] != '%' || tail == 1 && rest == "" {
		return out
	}
	digits := string(out[percent+1:])
	if tail == 1 {
		digits += rest[:1]
	}
	if _, _, escape := next("%" + digits); !escape {
		return out
	}
	return slices.Insert(out, percent+1, '2', '5')
}

// next is the first character of s, decoded if it is a valid %xx, and how many
// bytes of s it takes.
func next(s string) (c byte, width int, decoded bool) {
	if s[0] == '%' && len(s) >= 3 {
		hi, ok1 := unhex(s[1])
		lo, ok2 := unhex(s[2])
		if ok1 && ok2 {
			return hi<<4 | lo, 3, true
		}
	}
	return s[0], 1, false
}

// dotSegment reads a segment "." or "..", its dots encoded or not, from the
// beginning of s: how many dots, 0 if the segment is another one, and how many
// bytes it takes together with the slash that ends it.
func dotSegment(s string) (dots, length int) {
	for length < len(s) {
		c, width, decoded := next(s[length:])
		switch {
		case c == '.' && dots < 2:
			dots++
			length += width
		case !decoded && (c == '/' || c == '\\'):
			return dots, length + 1
		default:
			return 0, 0
		}
	}
	return dots, length
}

// parent cuts the last segment of a path that ends in "/"; that of "/" is "/".
func parent(path []byte) []byte {
	i := len(path) - 1
	for i > 0 && path[i-1] != '/' {
		i--
	}
	return path[:max(i, 1)]
}

// mergeSlashes is step 5.
func mergeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	var b strings.Builder
	b.WriteByte('/')
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte('/')
		}
		b.WriteString(segment)
	}
	if strings.HasSuffix(path, "/") {
		b.WriteByte('/')
	}
	return b.String()
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// unreserved: RFC 3986, section 2.3.
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// misplaced tells which visible characters step 4 encodes.
func misplaced(c byte) bool { return strings.IndexByte("\"<>^`{|}", c) >= 0 }

// canonicalByte is step 6: pchar of RFC 3986 (section 3.3) without "%" and ";",
// and "/".
func canonicalByte(c byte) bool { return unreserved(c) || strings.IndexByte("!$&'()*+,=:@/", c) >= 0 }
