package canaries

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Canary is a secret.
type Canary struct {
	Name   string
	Secret []byte // at least 16 bytes
	// Own are parts of the names of places that may hold it: its owner's.
	Own []string
	// Disk says that it is no secret but on disks: what people have said in a spec.
	Disk bool
}

// Form is a way to write bytes.
type Form struct {
	Name  string
	Write func([]byte) []string
}

// Forms are those that are looked for. DER and PEM hold the raw bytes of a key, or
// their base64, at any of its three offsets; line ends are looked over.
func Forms() []Form {
	return []Form{
		{"raw", func(b []byte) []string { return []string{string(b)} }},
		{"hex", func(b []byte) []string { return []string{hex.EncodeToString(b)} }},
		{"HEX", func(b []byte) []string { return []string{strings.ToUpper(hex.EncodeToString(b))} }},
		{"colons", func(b []byte) []string {
			return []string{strings.TrimSpace(strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":"))}
		}},
		{"base64", func(b []byte) []string { return offsets(base64.RawStdEncoding, b) }},
		{"base64url", func(b []byte) []string { return offsets(base64.RawURLEncoding, b) }},
		{"%v", func(b []byte) []string { return []string{strings.Trim(fmt.Sprint(b), "[]")} }},
		{"json array", func(b []byte) []string {
			return []string{strings.ReplaceAll(strings.Trim(fmt.Sprint(b), "[]"), " ", ",")}
		}},
		{`\x`, func(b []byte) []string { return []string{`\x` + strings.ReplaceAll(fmt.Sprintf("% x", b), " ", `\x`)} }},
	}
}

// offsets are the base64 of b behind nothing, one and two bytes, without what depends
// on its neighbours.
func offsets(enc *base64.Encoding, b []byte) (out []string) {
	for skip := range 3 {
		text := enc.EncodeToString(append(make([]byte, skip), b...))
		first, last := (skip*8+5)/6, (skip+len(b))*8/6
		out = append(out, text[first:last])
	}
	return out
}

// Finder finds canaries. It is not changed once it is made.
type Finder struct {
	by   map[uint64][]pattern // by their first 8 bytes
	seen [1 << 16]bool        // their first two
}

type pattern struct {
	text   string
	canary *Canary
	form   string
}

// NewFinder makes a finder of both halves of each canary in all forms.
func NewFinder(all []Canary) *Finder {
	f := &Finder{by: map[uint64][]pattern{}}
	for i := range all {
		c := &all[i]
		half := len(c.Secret) / 2
		for _, part := range [][]byte{c.Secret[:half], c.Secret[half:]} {
			for _, form := range Forms() {
				for _, text := range form.Write(part) {
					key := binary.LittleEndian.Uint64([]byte(text))
					f.by[key] = append(f.by[key], pattern{text, c, form.Name})
					f.seen[uint16(key)] = true
				}
			}
		}
	}
	return f
}

// Found is a canary in a place.
type Found struct {
	Canary, Form, Where string
}

func (f Found) String() string {
	return fmt.Sprintf("%s holds the %s, as %s", f.Where, f.Canary, f.Form)
}

// Find looks into content, as it is and without line ends, real or escaped. disk says
// that the place is a disk, or a copy of one.
func (f *Finder) Find(where string, content []byte, disk bool) []Found {
	found := f.find(where, content, disk, nil)
	if bytes.IndexByte(content, '\n') >= 0 || bytes.Contains(content, []byte(`\n`)) {
		joined := bytes.ReplaceAll(bytes.ReplaceAll(content, []byte("\r"), nil), []byte("\n"), nil)
		found = f.find(where, bytes.ReplaceAll(joined, []byte(`\n`), nil), disk, found)
	}
	return found
}

func (f *Finder) find(where string, b []byte, disk bool, found []Found) []Found {
	for i := 0; i+8 <= len(b); i++ {
		if !f.seen[binary.LittleEndian.Uint16(b[i:])] {
			continue
		}
		for _, p := range f.by[binary.LittleEndian.Uint64(b[i:])] {
			own := slices.ContainsFunc(p.canary.Own, func(o string) bool { return strings.Contains(where, o) })
			hit := Found{p.canary.Name, p.form, where}
			if own || p.canary.Disk && !disk || len(b)-i < len(p.text) || string(b[i:i+len(p.text)]) != p.text || slices.Contains(found, hit) {
				continue
			}
			found = append(found, hit)
		}
	}
	return found
}
