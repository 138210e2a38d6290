package rbactest_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// requests is how many are made to each spec, of which rapid makes 100: 100,000
// pairs.
const requests = 1000

// TestRandom holds the compiled configuration of random specs to the evaluator, on
// requests that try to get around them. On a disagreement rapid prints its seed
// and the smallest spec and request that it finds.
func TestRandom(t *testing.T) {
	reasons := map[string]int{}
	pairs := 0
	rapid.Check(t, func(t *rapid.T) { pairs += compare(t, reasons) })
	t.Logf("%d pairs: %v", pairs, reasons)
	for _, reason := range []string{"grant", "default", "form", "transport", "health", "block", "token", "exception", "external"} {
		if !t.Failed() && reasons[reason] == 0 {
			t.Errorf("no request was judged by %s", reason)
		}
	}
}

func FuzzRandom(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { compare(t, map[string]int{}) }))
}

// compare asks both judges about requests to a random spec.
func compare(t *rapid.T, reasons map[string]int) int {
	docs := specgen.Sound(t)
	authorize(t, docs)
	j := newJudges(specgen.TrustDomain, docs)
	g := reqgen.New(specgen.TrustDomain, docs)
	random := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "pick") }
	pairs := 0
	for range requests {
		r, ok := g.To(random, spec.Ref{})
		if !ok {
			return pairs
		}
		v, asked, err := j.ask(r)
		if err != nil {
			t.Fatalf("%+v: %v\n%s", r, err, text(docs))
		}
		if !asked {
			continue
		}
		d := j.decide(r.Request)
		if diff := disagree(r.Request, d, v); diff != "" {
			t.Fatalf("%s\nauthorization %q\n%s", diff, r.Authorization, text(docs))
		}
		if diff := j.disagreeInShadow(r.Request, v); diff != "" {
			t.Fatalf("%s\nauthorization %q\n%s", diff, r.Authorization, text(docs))
		}
		reason, _, _ := strings.Cut(d.Reason, ":")
		reasons[reason]++
		pairs++
	}
	return pairs
}

// authorize gives some workloads an external authorizer.
func authorize(t *rapid.T, docs []*spec.Document) {
	for _, d := range docs {
		http := slices.ContainsFunc(d.GetWorkload().GetServes(), func(p *ztv1.Port) bool { return p.GetProtocol() != policy.TCP })
		if http && rapid.IntRange(0, 2).Draw(t, "authorized") == 2 {
			d.GetWorkload().ExternalAuthorizer = &ztv1.ExternalAuthorizer{Target: "127.0.0.1:9191"}
		}
	}
}

func text(docs []*spec.Document) string {
	var out []string
	for _, d := range docs {
		out = append(out, spec.YAML(d))
	}
	return strings.Join(out, "---\n")
}
