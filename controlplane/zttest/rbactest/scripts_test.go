package rbactest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
)

// TestDecisions asks the interpreter what the decision scripts say.
func TestDecisions(t *testing.T) {
	paths, err := filepath.Glob("../../policy/testdata/decisions/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d scripts, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			archive, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := script.Parse(path, archive)
			if err != nil {
				t.Fatal(err)
			}
			j := newJudges(s.TrustDomain, s.Docs)
			for _, l := range s.Lines {
				v, asked, err := j.ask(reqgen.Of(l.Request))
				if err != nil {
					t.Fatalf("%s: %v", l.Text, err)
				}
				if !asked {
					continue
				}
				if diff := disagree(l.Request, j.decide(l.Request), v); diff != "" {
					t.Errorf("%s: %s", l.Text, diff)
				}
				if diff := j.disagreeInShadow(l.Request, v); diff != "" {
					t.Errorf("%s: %s", l.Text, diff)
				}
			}
		})
	}
}
