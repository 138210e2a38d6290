package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestNothingDrivesTheTerminal: what others wrote neither commands the terminal nor turns
// the text around it over; in JSON and YAML, nothing of it is lost.
func TestNothingDrivesTheTerminal(t *testing.T) {
	hostile := "a\x1b[2J\u009b2J\u007f\u0085\u202egnp\u2066\u200fü"
	foul := func(s string) bool {
		for _, r := range s {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
				return true
			}
		}
		return false
	}
	for _, output := range []string{"table", "json", "yaml"} {
		var b bytes.Buffer
		a := &app{out: &b}
		a.set.Output = output
		p := &ztv1.Proxy{Instance: hostile}
		if err := a.print(p, func() error { return a.columns("INSTANCE", [][]string{{p.Instance}}) }); err != nil {
			t.Fatal(err)
		}
		if foul(b.String()) {
			t.Errorf("%s: %q", output, b.String())
		}
		var back struct{ Instance string }
		read := map[string]func([]byte, any) error{"json": json.Unmarshal, "yaml": yaml.Unmarshal}[output]
		if read != nil && (read(b.Bytes(), &back) != nil || back.Instance != hostile) {
			t.Errorf("%s, read again: %q", output, back.Instance)
		}
	}
}
