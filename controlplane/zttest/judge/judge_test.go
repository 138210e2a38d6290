package judge_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/judge"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDecisions asks real Envoys what the decision scripts say, which the evaluator
// and the interpreter have passed. What is of another time is left to those.
func TestDecisions(t *testing.T) {
	paths, err := filepath.Glob("../../policy/testdata/decisions/*.txtar")
	check(t, err)
	courts := map[string]*judge.Proxy{}
	asked, total := 0, 0
	for _, path := range paths {
		archive, err := os.ReadFile(path)
		check(t, err)
		s, err := script.Parse(path, archive)
		check(t, err)
		if courts[s.TrustDomain] == nil {
			courts[s.TrustDomain] = judge.New(t, s.TrustDomain).Proxy()
		}
		total += len(s.Lines)
		t.Run(filepath.Base(path), func(t *testing.T) { asked += decide(t, courts[s.TrustDomain], s) })
	}
	t.Logf("%d of %d decisions were asked", asked, total)
}

// decide asks about a script's lines and returns how many could be asked.
func decide(t *testing.T, p *judge.Proxy, s *script.Script) int {
	sp := judge.NewSpec(s.TrustDomain, s.Docs)
	questions, lines := map[spec.Ref][]judge.Question{}, map[spec.Ref][]script.Line{}
	asked := 0
	for _, l := range s.Lines {
		list := sp.Scripted(l)
		if len(list) == 0 {
			t.Logf("not asked: %s", l.Text)
			continue
		}
		asked++
		ref, _ := sp.Judge(l.Request)
		for _, q := range list {
			questions[ref], lines[ref] = append(questions[ref], q), append(lines[ref], l)
		}
	}
	for ref, list := range questions {
		h, err := p.Hear(sp, ref)
		check(t, err)
		answers, err := h.Ask(list)
		check(t, err)
		for i, a := range answers {
			if diff := h.Difference(list[i], a); diff != "" {
				t.Errorf("decisions:%d: %s by %s: %s", lines[ref][i].Number, lines[ref][i].Text, list[i].Protocol, diff)
			}
		}
	}
	return asked
}
