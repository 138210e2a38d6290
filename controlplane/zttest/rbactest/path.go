package rbactest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// normalise is what a connection manager does to :path before any filter sees it
// (http_reject_path_with_fragment, path_with_escaped_slashes_action
// REJECT_REQUEST, strip_dotdot_segments_with_parameters, normalize_path,
// merge_slashes), as measured on Envoy 1.40. ok is false for a 400.
//
//	/a/%62/./c//d?x → /a/b/c/d?x
func normalise(raw string) (path string, ok bool) {
	if raw == "" || raw[0] != '/' || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }) {
		return "", false
	}
	path, query, hasQuery := strings.Cut(raw, "?")
	if lower := strings.ToLower(path); strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") || strings.Contains(lower, "%00") && !cutAway(lower) {
		return "", false
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "..;") {
			parts[i] = ".."
		} else if strings.HasPrefix(p, ".;") {
			parts[i] = "."
		}
	}
	path = mergeSlashes(resolveDots(strings.Split(decodeUnreserved(strings.Join(parts, "/")), "/")))
	if hasQuery {
		path += "?" + query
	}
	return path, true
}

// cutAway: a NUL within a parameter of a dot segment is gone before it is decoded.
func cutAway(lower string) bool {
	for p := range strings.SplitSeq(lower, "/") {
		if strings.Contains(p, "%00") && !strings.HasPrefix(p, "..;") && !strings.HasPrefix(p, ".;") {
			return false
		}
	}
	return true
}

// decodeUnreserved decodes %xx of unreserved characters, makes "\" a slash, and
// encodes what may not stand in a path. What it decodes makes no new %xx of a "%"
// that stood alone: "%%32f" is "%252f".
func decodeUnreserved(s string) string {
	var out []byte
	alone := -1 // where in out the last "%" is that begins no %xx
	for i := 0; i < len(s); i++ {
		c := s[i]
		v, err := strconv.ParseUint(s[i+1:min(i+3, len(s))], 16, 8)
		escaped := c == '%' && i+2 < len(s) && err == nil && isHex(s[i+1])
		switch {
		case escaped && !isUnreserved(byte(v)):
			out = append(out, s[i:i+3]...)
		case escaped:
			out = append(out, byte(v))
			after := string(out[max(alone, 0)+1:])
			if len(after) == 1 && i+3 < len(s) {
				after += s[i+3 : i+4]
			}
			if alone >= 0 && len(after) == 2 && isHex(after[0]) && isHex(after[1]) {
				out = slices.Insert(out, alone+1, '2', '5')
				alone = -1
			}
		case c == '%':
			alone = len(out)
			out = append(out, c)
		case c == '\\':
			out = append(out, '/')
		case strings.IndexByte("\"<>^`{|}", c) >= 0:
			out = fmt.Appendf(out, "%%%02X", c)
		default:
			out = append(out, c)
		}
		if escaped {
			i += 2
		}
	}
	return string(out)
}

// resolveDots removes "." and ".." segments; parts[0] is what is before the first
// slash, nothing.
func resolveDots(parts []string) string {
	var out []string
	for i, p := range parts[1:] {
		last := i == len(parts)-2
		switch p {
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		case ".":
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, p)
		}
	}
	return "/" + strings.Join(out, "/")
}

// mergeSlashes leaves two of a path that is nothing but slashes.
func mergeSlashes(path string) string {
	if strings.Trim(path, "/") == "" {
		return path[:min(len(path), 2)]
	}
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
