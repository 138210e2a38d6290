package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// The voice of ztctl:
//
//   - stdout carries what was asked for and nothing else, so that it can be
//     piped. How it went (progress, hints, errors) goes to stderr.
//   - An error is "ztctl: <what is wrong>", lower case, no full stop, and where
//     there is something to do about it, a second line "hint: <what to do>".
//     Problems of a spec are one line each, all of them, as
//     "file:line:column: code path: message (hint)".
//   - What was done is one line in the past tense: "token written to t.txt".
//   - Nothing is asked: every command runs unattended.
//   - Tables have upper-case headers, are sorted, and show "-" for nothing.
//     Ages are for people ("4m"), json and yaml have the time itself.
//   - Colour never carries meaning alone: only on a terminal, not with NO_COLOR.
//   - A secret is printed only by the command that makes it.

// isTerminal tells whether a person watches f.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// fail prints an error with its hints.
func (a *app) fail(err error) {
	var e *exit
	if errors.As(err, &e) && e.err == nil {
		return
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		if line != "" {
			fmt.Fprintf(a.err, "ztctl: %s\n", printable(line))
		}
	}
	for _, hint := range hintsOf(err) {
		fmt.Fprintf(a.err, "hint: %s\n", printable(hint))
	}
}

// hintsOf collects the hints of an error and of all that it wraps.
func hintsOf(err error) []string {
	var out []string
	if h, ok := err.(*hinted); ok {
		out = append(out, h.hint)
	}
	switch w := err.(type) {
	case interface{ Unwrap() error }:
		if inner := w.Unwrap(); inner != nil {
			out = append(out, hintsOf(inner)...)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range w.Unwrap() {
			out = append(out, hintsOf(inner)...)
		}
	}
	return out
}

// note tells on stderr what was done.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// print shows v as json or yaml, or calls table for people. v is a proto message
// or a value with json tags.
func (a *app) print(v any, table func() error) error {
	if a.set.Output == "table" {
		return table()
	}
	raw, err := toJSON(v)
	if err != nil {
		return err
	}
	return a.printJSON(raw)
}

// printJSON shows JSON in the asked-for form.
func (a *app) printJSON(raw []byte) error {
	raw = inert(raw)
	var err error
	if a.set.Output == "yaml" {
		raw, err = jsonToYAML(raw)
	} else {
		var b bytes.Buffer
		err = json.Indent(&b, bytes.TrimSpace(raw), "", "  ")
		raw = append(b.Bytes(), '\n')
	}
	if err != nil {
		return err
	}
	_, err = a.out.Write(raw)
	return err
}

// inert writes as an escape what may stand between quotes and a terminal may obey.
func inert(raw []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(raw) {
		if obeyed(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.Bytes()
}

// obeyed is drives of text that has lines and tabs.
func obeyed(r rune) bool { return drives(r) && r != '\n' && r != '\t' }

func toJSON(v any) ([]byte, error) {
	if m, ok := v.(proto.Message); ok {
		return protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	}
	return json.Marshal(v)
}

// jsonToYAML rewrites JSON as block YAML and keeps the order of its fields.
func jsonToYAML(raw []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(raw, &n); err != nil {
		return nil, err
	}
	blockStyle(&n)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	err := errors.Join(enc.Encode(&n), enc.Close())
	return inert(b.Bytes()), err
}

func blockStyle(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		n.Style = 0
	} else if n.Style = 0; strings.ContainsFunc(n.Value, obeyed) {
		n.Style = yaml.DoubleQuotedStyle
	} else if strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// columns prints an aligned table; header is its words. An empty cell is "-".
func (a *app) columns(header string, rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
	line := func(cells []string) {
		for i, c := range cells {
			if i > 0 {
				io.WriteString(w, "\t")
			}
			io.WriteString(w, cmp.Or(printable(c), "-"))
		}
		io.WriteString(w, "\n")
	}
	line(strings.Fields(header))
	for _, r := range rows {
		line(r)
	}
	return w.Flush()
}

// printable keeps what others wrote from driving the terminal or the table.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if drives(r) {
			return ' '
		}
		return r
	}, s)
}

// drives tells whether a terminal may take r for a command, or for one to write what
// follows from right to left.
func drives(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }

// paint colours s on terminals that want it.
func (a *app) paint(color, s string) string {
	if !a.color {
		return s
	}
	return color + s + "\x1b[0m"
}

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	bold  = "\x1b[1m"
)

// age is how long ago t was, for people.
func (a *app) age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return short(a.now().Sub(t.AsTime()))
}

// left is how long it is until t, for people.
func (a *app) left(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return short(t.AsTime().Sub(a.now()))
}

// short gives a duration with one unit.
func short(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// yesNo is a bool in a table.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// plural is "1 proxy", "2 proxies".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// list prints every problem, one line each.
func (a *app) list(ps spec.Problems) {
	for _, p := range ps {
		fmt.Fprintln(a.err, printable(p.Error()))
	}
}

// label is a DNS label (RFC 1123) for text: itself, or what is like it, with a hash
// that tells it from the label of any other text.
func label(text string) string {
	like := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, text), "-")
	const most = 63
	if like == text && len(text) <= most {
		return text
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:8]
	like = strings.Trim(like[:min(len(like), most-1-len(hash))], "-")
	return strings.TrimPrefix(like+"-"+hash, "-")
}
