package judge_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/judge"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
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
	if asked < 550 {
		t.Errorf("only %d of %d decisions were asked", asked, total)
	}
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

const world = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: %s}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [%s]}}
`

// TestDifference holds an Envoy that was told one thing to an evaluator that was
// told another: every disagreement is seen.
func TestDifference(t *testing.T) {
	const td = "shop.example"
	told := func(grant, method string) *judge.Spec {
		docs, problems := spec.Parse([]spec.File{{Name: "x.yaml", Content: fmt.Appendf(nil, world, grant, method)}})
		check(t, problems.Err())
		return judge.NewSpec(td, docs)
	}
	s, orders := told("g", "GET"), spec.Ref{Namespace: "shop", Name: "orders"}
	h, err := judge.New(t, td).Proxy().Hear(s, orders)
	check(t, err)
	web := policy.ID(td, spec.Ref{Namespace: "shop", Name: "web"})
	questions := s.Questions(reqgen.Of(policy.Request{CallerID: web, Service: orders, Method: "GET", Path: "/a"}))
	if len(questions) != 2 {
		t.Fatalf("%d questions", len(questions))
	}
	answers, err := h.Ask(questions)
	check(t, err)
	for i, a := range answers {
		if diff := h.Difference(questions[i], a); diff != "" {
			t.Errorf("%s: %s", questions[i], diff)
		}
		for what, other := range map[string]*judge.Spec{"another grant": told("other", "GET"), "another method": told("g", "POST")} {
			mistaken := *h
			mistaken.Spec = other
			if mistaken.Difference(questions[i], a) == "" {
				t.Errorf("%s: %s is not seen", questions[i], what)
			}
		}
		for what, spoil := range map[string]func(*judge.Answer){
			"a path that was not judged":   func(a *judge.Answer) { a.Received.Path = "/b" },
			"another caller":               func(a *judge.Answer) { a.Received.Headers = nil },
			"a question to an authorizer":  func(a *judge.Answer) { a.Asked = true },
			"an answer of the proxy's own": func(a *judge.Answer) { a.Received = nil },
		} {
			spoilt, received := a, *a.Received
			spoilt.Received = &received
			if spoil(&spoilt); h.Difference(questions[i], spoilt) == "" {
				t.Errorf("%s: %s is not seen", questions[i], what)
			}
		}
	}
}
