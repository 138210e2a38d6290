package rbactest_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

// Some 100,000 pairs: each part is 100 specs, as rapid has it.
const (
	parts    = 5
	requests = 200 // of each spec
)

// TestRandom holds the compiled configuration of random specs to the evaluator, on
// requests that try to get around them. On a disagreement rapid prints its seed
// and the smallest spec and request that it finds.
func TestRandom(t *testing.T) {
	reasons := map[string]int{}
	pairs := 0
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { pairs += compare(t, reasons) })
		})
	}
	t.Logf("%d pairs: %v", pairs, reasons)
	for _, reason := range []string{"grant", "default", "form", "transport", "health"} {
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
		reason, _, _ := strings.Cut(d.Reason, ":")
		reasons[reason]++
		pairs++
	}
	return pairs
}

func text(docs []*spec.Document) string {
	var out []string
	for _, d := range docs {
		out = append(out, spec.YAML(d))
	}
	return strings.Join(out, "---\n")
}
