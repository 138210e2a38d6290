package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain lets this binary stand in for ztbench where that starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "proxies") {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRun: every experiment reaches those that it should and nobody else, on each
// kind of server, with TLS and without.
func TestRun(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plaintext=%t", plain), func(t *testing.T) {
			b := &bench{
				load: workload{services: 12, proxies: 2}, rounds: 2, plain: plain, timeout: defaultTimeout,
				only:     []string{cold, grant, endpoint, wide, reconnect},
				against:  []string{kindFloor, kindSnapshot},
				progress: func(text string, args ...any) { t.Logf(text, args...) },
			}
			r, err := b.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, kind := range []string{kindMesh, kindFloor, kindSnapshot} {
				for experiment, reached := range map[string]int{cold: 24, grant: 4, endpoint: 10, wide: 24} {
					row := r.find(kind, experiment)
					switch {
					case row == nil:
						t.Errorf("%s, %s: not measured", kind, experiment)
					case row.Reached != reached || row.Responses < reached || row.Wasted != 0 || row.Last == 0:
						t.Errorf("%s, %s: reached %d of %d with %d responses, %d wasted; the last after %s", kind, experiment, row.Reached, reached, row.Responses, row.Wasted, row.Last)
					}
				}
			}
			if row := r.find(kindMesh, reconnect); row == nil || row.Responses != 0 {
				t.Errorf("proxies that come back with all they hold are told something: %+v", row)
			}
			var out bytes.Buffer
			if err := r.table(&out); err != nil {
				t.Fatal(err)
			}
			if err := r.figures(b.load, &out); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(out.String(), "figure "); n < 6 {
				t.Errorf("%d figures:\n%s", n, out.String())
			}
			t.Log("\n" + out.String())
		})
	}
}

// TestParseWorkload: what is no workload is refused.
func TestParseWorkload(t *testing.T) {
	for text, want := range map[string]workload{"100x10": {100, 10}, "10x1": {10, 1}} {
		if got, err := parseWorkload(text); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "100", "9x1", "10x0", "-10x1", "10xx1", "ax1"} {
		if got, err := parseWorkload(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}
