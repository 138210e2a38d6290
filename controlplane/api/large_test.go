package api

import (
	"fmt"
	"strings"
	"testing"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// workPerGrant is the allocations of applying one changed grant to a mesh of so many
// namespaces of ten workloads and fifty grants.
func workPerGrant(t *testing.T, namespaces int) float64 {
	t.Helper()
	l := newFakeLog(t)
	l.atOnce = true
	s, ctx := newServer(l), as(t.Context(), "root")
	var b strings.Builder
	for n := range namespaces {
		ns := fmt.Sprint("n", n)
		for w := range 10 {
			b.WriteString(workloadYAML(ns, fmt.Sprint("w", w)))
			for g := range 5 {
				from := fmt.Sprintf("n%d/w%d", (n+g)%namespaces, (w+g)%10)
				b.WriteString(grantYAML(ns, fmt.Sprintf("w%d-g%d", w, g), from, fmt.Sprint("w", w), fmt.Sprint("/v", g)))
			}
		}
	}
	if _, err := s.Apply(ctx, &ztv1.ApplyRequest{Files: files(b.String())}); err != nil {
		t.Fatal(err)
	}
	n := 0
	return testing.AllocsPerRun(20, func() {
		n++
		resp, err := s.Apply(ctx, &ztv1.ApplyRequest{Merge: true, Files: files(grantYAML("n0", "w0-g0", "n0/w1", "w0", fmt.Sprint("/x", n)))})
		if err != nil || len(resp.Changes) != 1 {
			t.Fatalf("%d changes, %v", len(resp.GetChanges()), err)
		}
	})
}

// TestOneGrantCostsWhatItChanges: in a mesh fifty times as large, one changed grant
// is applied with about the same work.
func TestOneGrantCostsWhatItChanges(t *testing.T) {
	small, large := workPerGrant(t, 2), workPerGrant(t, 100)
	t.Logf("allocations: %.0f in a mesh of 120 documents, %.0f in one of 6,000", small, large)
	if large > 1.5*small {
		t.Errorf("%.0f allocations in a small mesh, %.0f in a large one", small, large)
	}
}
