package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What takes long is counted where a person watches, and the line is gone afterwards;
// what is quick shows nothing.
func TestCountsSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			watched bool
			takes   time.Duration
			want    string
		}{
			{true, 3500 * time.Millisecond, "applying: 1 s|applying: 2 s|applying: 3 s|"},
			{true, 900 * time.Millisecond, ""},
			{false, 3500 * time.Millisecond, ""},
		} {
			var b bytes.Buffer
			done := (&app{err: &b, progress: c.watched}).count("applying")
			time.Sleep(c.takes)
			done()
			got := strings.TrimPrefix(strings.ReplaceAll(b.String(), "\r\x1b[K", "|"), "|")
			if got != c.want {
				t.Errorf("%v of %v: %q, want %q", c.watched, c.takes, got, c.want)
			}
		}
	})
}

// A dry run is one, whatever else is said.
func TestDryRunWithAKeyCommitsNothing(t *testing.T) {
	f := &flaky{}
	code, out, stderr := runFlaky(t, f, "apply", "-f", "-", "--dry-run", "--idempotency-key", "k")
	if code != exitOK || len(f.keys) > 0 || !strings.Contains(out, "nothing was committed") {
		t.Fatalf("exit %d after %d applies\n%s%s", code, len(f.keys), out, stderr)
	}
}
