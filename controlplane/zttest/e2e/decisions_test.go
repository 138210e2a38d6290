package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
)

// TestDecisions runs the decision scripts, which the evaluator has passed, against
// real Envoys that a real control plane feeds. What no proxy judges is left out: a
// service or port that is not there, or that is of another kind than the request.
func TestDecisions(t *testing.T) {
	paths, err := filepath.Glob("../../policy/testdata/decisions/*.txtar")
	check(t, err)
	judged, total := 0, 0
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := os.ReadFile(path)
			check(t, err)
			s, err := script.Parse(path, archive)
			check(t, err)
			m := mesh.New(t, mesh.Config{TrustDomain: s.TrustDomain})
			m.Apply(render(s.Docs, m.NewApp(), m.NewTCPApp()))
			j := newJudges(t, m, s.Index())
			for _, l := range s.Lines {
				total++
				if _, judges := port(j.ix, l.Request); !judges {
					continue
				}
				judged++
				j.ask(verdict{
					what:    fmt.Sprintf("%s: decisions:%d: %s", filepath.Base(path), l.Number, l.Text),
					request: l.Request, accepts: l.Accepts, want: wanted(l.Because, l.By),
				}, "")
			}
			j.settle()
		})
	}
	if judged < 250 || total-judged > 10 {
		t.Errorf("%d of %d decisions were judged", judged, total)
	}
}

// wanted lists the reasons that a decision may name.
func wanted(because string, by []spec.Ref) string {
	if len(by) == 0 {
		return because
	}
	var all []string
	for _, g := range by {
		all = append(all, "grant:"+g.String())
	}
	return strings.Join(all, ", ")
}

// accepts is script.Line.Accepts for a decision of the evaluator.
func accepts(d policy.Decision) func(bool, string) bool {
	l := script.Line{Allow: d.Allowed, By: d.Grants, Because: d.Reason}
	return l.Accepts
}
