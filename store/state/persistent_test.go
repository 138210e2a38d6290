package state_test

import (
	"fmt"
	"iter"
	"runtime"
	"testing"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// withGrants is a state of n grants in 100 namespaces.
func withGrants(t testing.TB, n int) *state.State {
	c := newCluster(t)
	op := &logv1.Apply{}
	for i := range n {
		op.Puts = append(op.Puts, doc("Grant", fmt.Sprint("ns", i%100), fmt.Sprint("g", i), "some bytes"))
	}
	c.must(applyEntry(op))
	return c.s
}

// changes applies changes of one grant, each to another one, and returns the last
// state.
func changes(t testing.TB, s *state.State, n int) *state.State {
	for i := range n {
		e := applyEntry(&logv1.Apply{ValidatedAt: s.Revision(), Puts: []*logv1.Put{doc("Grant", fmt.Sprint("ns", i%100), fmt.Sprint("g", i), "other bytes")}})
		e.Format = state.FormatOf(e)
		var r state.Result
		if s, r = state.Apply(s, s.Index()+1, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return s
}

// TestChangeCostsWhatItChanges: one grant changed among 50,000 takes little more memory
// than one among 500, the depth of the tree, and nothing like what there is.
func TestChangeCostsWhatItChanges(t *testing.T) {
	const n = 200
	cost := func(s *state.State) float64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		changes(t, s, n)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / n
	}
	few, many := withGrants(t, 500), withGrants(t, 50_000)
	small, large := cost(few), cost(many)
	t.Logf("one of 500: %.0f bytes, one of 50,000: %.0f bytes, %.2f times as many", small, large, large/small)
	if large > 4*small {
		t.Errorf("one of 50,000 takes %.0f bytes, one of 500 %.0f", large, small)
	}
	if whole := float64(len(snapshotOf(t, many))); large > whole/50 {
		t.Errorf("one change takes %.0f bytes, the whole state is %.0f", large, whole)
	}
}

// TestReaderHoldsNobody: a reader that stands in the middle of a state is in nobody's
// way, and reads on in what it began with.
func TestReaderHoldsNobody(t *testing.T) {
	s := withGrants(t, 5000)
	next, stop := iter.Pull(s.Documents("", ""))
	defer stop()
	for range 2500 {
		if d, ok := next(); !ok || string(d.Bytes) != "some bytes" {
			t.Fatalf("%+v, %v", d, ok)
		}
	}
	if now := changes(t, s, 5000); now.Index() != s.Index()+5000 {
		t.Fatalf("the writer came to %d", now.Index())
	}
	n := 2500
	for d, ok := next(); ok; d, ok = next() {
		if n++; string(d.Bytes) != "some bytes" {
			t.Fatalf("%s is %q, which was written later", d.Key, d.Bytes)
		}
	}
	if n != 5000 {
		t.Errorf("%d documents", n)
	}
}

// BenchmarkChange changes one grant of few and of many, by turns in one run: the
// figures are time and memory as multiples of the few.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{500, 5_000, 50_000} {
		s := withGrants(b, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				changes(b, s, 1)
			}
		})
	}
}
