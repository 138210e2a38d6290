package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
)

// TestDecisions runs every decision script against the evaluator.
func TestDecisions(t *testing.T) {
	paths, err := filepath.Glob("testdata/decisions/*.txtar")
	if err != nil || len(paths) < 45 {
		t.Fatalf("%d scripts, %v", len(paths), err)
	}
	lines := 0
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := script.Parse(path, archive)
			if err != nil {
				t.Fatal(err)
			}
			ix := s.Index()
			for _, l := range s.Lines {
				d := ix.Decide(l.Request)
				if err := l.Check(d); err != nil {
					t.Error(err)
				}
				if !d.Allowed && len(d.Hints) == 0 {
					t.Errorf("decisions:%d: %s: no hint", l.Number, l.Text)
				}
				lines++
			}
		})
	}
	if lines < 550 {
		t.Errorf("%d decisions in all; some scripts were not read", lines)
	}
}
