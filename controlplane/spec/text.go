package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// The limits of what is read.
const (
	maxTotal     = 64 << 20 // bytes of all files
	maxDocument  = 1 << 20  // bytes of one document
	maxDocuments = 200_000
	maxDepth     = 32
	// maxMarks bounds the values of a document by the bytes that can begin or
	// end one, because the YAML library makes a node of 160 bytes of each.
	maxMarks = 64_000
)

// piece is the text of at most one document, and the line on which it begins.
type piece struct {
	text []byte
	line int
}

// pieces cuts text where a line is a document marker: before "---" and after
// "...". YAML allows neither inside a scalar (YAML 1.2, section 9.1.2), so the
// cut needs no parsing, and a document's size is known before it is parsed. A
// piece that passes maxDocument is the last: it is given as far as it was read.
func pieces(text []byte, yield func(piece) bool) {
	start, line := 0, 1 // of the piece
	for at, n := 0, 1; at < len(text) && at-start <= maxDocument; n++ {
		end, next := len(text), len(text)
		if i := bytes.IndexAny(text[at:min(at+maxDocument+1, len(text))], "\r\n"); i >= 0 {
			end, next = at+i, at+i+1
			if text[end] == '\r' && next < len(text) && text[next] == '\n' {
				next++
			}
		}
		switch l := text[at:end]; {
		case isMarker(l, "---") && at > start:
			if !yield(piece{text[start:at], line}) {
				return
			}
			start, line = at, n
		case isMarker(l, "..."):
			if !yield(piece{text[start:next], line}) {
				return
			}
			start, line = next, n+1
		}
		at = next
	}
	if start < len(text) {
		yield(piece{text[start:], line})
	}
}

func isMarker(line []byte, marker string) bool {
	return bytes.HasPrefix(line, []byte(marker)) &&
		(len(line) == len(marker) || line[len(marker)] == ' ' || line[len(marker)] == '\t')
}

// blank tells whether text has nothing but markers, comments and white space.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if isMarker(bytes.TrimRight(line, "\r\n"), "---") || isMarker(bytes.TrimRight(line, "\r\n"), "...") {
			line = line[3:]
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}

// weigh counts the bytes that can begin or end a value, and how deep brackets
// go, both as if nothing were quoted.
func weigh(text []byte) (marks, nesting int) {
	depth := 0
	for _, c := range text {
		switch c {
		case ',', ':', '\n', '\r', '-', '?', '#', '&', '*', '!':
			marks++
		case '[', '{':
			marks++
			depth++
			nesting = max(nesting, depth)
		case ']', '}':
			depth = max(depth-1, 0)
		}
	}
	return marks, nesting
}

// badText is the index of the first byte in s that begins a character that a
// text may not hold, or -1: invalid UTF-8, a control character other than line
// feed and tab, the separators that YAML 1.1 takes for line ends, and the byte
// order mark.
func badText(s string) int {
	for i, r := range s {
		if badRune(r) || r == '\r' || (r == utf8.RuneError && s[i] != "\uFFFD"[0]) {
			return i
		}
	}
	return -1
}

func badRune(r rune) bool {
	switch {
	case r == '\t', r == '\n', r == '\r':
		return false
	case r < 0x20, r >= 0x7f && r <= 0x9f, r == '\u2028', r == '\u2029', r == '\uFEFF', r == '\uFFFE', r == '\uFFFF':
		return true
	}
	return false
}

// checkText is the first thing that makes the piece no text, with its line and
// column in the file; ok when nothing does.
func checkText(from piece) (p Problem, ok bool) {
	text, at := from.text, 0
	for at < len(text) {
		if c := text[at]; c >= 0x20 && c < 0x7f || c == '\n' {
			at++
			continue
		}
		r, size := utf8.DecodeRune(text[at:])
		switch {
		case r == utf8.RuneError && size == 1:
			p = Problem{Code: codeInvalidUTF8, Message: fmt.Sprintf("byte 0x%02x is not UTF-8", text[at])}
		case r == '\uFEFF':
			p = Problem{Code: codeBOM, Message: "there is a byte order mark"}
		case badRune(r):
			p = Problem{Code: codeControl, Message: fmt.Sprintf("there is the control character U+%04X", r)}
		default:
			at += size
			continue
		}
		before := text[:at]
		p.Line = from.line + bytes.Count(before, []byte("\n"))
		p.Column = 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
		return p, false
	}
	return Problem{}, true
}

// looksUTF16 tells whether text begins with the byte order mark of UTF-16 or
// UTF-32, or with an ASCII character in one of them.
func looksUTF16(text []byte) bool {
	if len(text) < 2 {
		return false
	}
	a, b := text[0], text[1]
	return a == 0xFE && b == 0xFF || a == 0xFF && b == 0xFE || (a == 0) != (b == 0)
}

// plainJSON writes those escapes of JSON that YAML does not have as the characters
// that they are: the pairs of \u escapes that make one character beyond U+FFFF,
// and \/. Other text than JSON is returned as it is.
func plainJSON(text []byte) []byte {
	if !bytes.Contains(text, []byte(`\ud`)) && !bytes.Contains(text, []byte(`\uD`)) && !bytes.Contains(text, []byte(`\/`)) || !json.Valid(text) {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		if text[i] != '\\' {
			out = append(out, text[i])
			i++
			continue
		}
		pair := utf16.DecodeRune(escaped(text[i:]), escaped(text[min(i+6, len(text)):]))
		switch {
		case pair != utf8.RuneError:
			out = utf8.AppendRune(out, pair)
			i += 12
		case text[i+1] == '/':
			out = append(out, '/')
			i += 2
		default:
			out = append(out, text[i], text[i+1]) // in valid JSON an escape has a second byte
			i += 2
		}
	}
	return out
}

// escaped is the code unit of the escape \uXXXX that text begins with, or 0.
func escaped(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(n)
}
