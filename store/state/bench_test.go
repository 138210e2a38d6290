package state_test

import (
	"fmt"
	"testing"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// BenchmarkApply applies entries to a state of 10,000 documents: what one entry
// costs follows what it changes.
func BenchmarkApply(b *testing.B) {
	c := newCluster(b)
	op := &logv1.Apply{}
	for i := range 10_000 {
		op.Puts = append(op.Puts, doc("Grant", fmt.Sprint("ns", i%100), fmt.Sprint("g", i), "some bytes"))
	}
	c.must(applyEntry(op))
	run := func(name string, entry func(s *state.State, i int) *logv1.Entry) {
		b.Run(name, func(b *testing.B) {
			s, i := c.s, 0
			for b.Loop() {
				i++
				e := entry(s, i)
				e.Format = state.Format
				var r state.Result
				if s, r = state.Apply(s, s.Index()+1, e); r.Err != nil {
					b.Fatal(r.Err)
				}
			}
		})
	}
	run("document", func(s *state.State, i int) *logv1.Entry {
		return applyEntry(&logv1.Apply{ValidatedAt: s.Revision(), Puts: []*logv1.Put{doc("Grant", "ns7", "g7", fmt.Sprint(i))}})
	})
	run("server", func(_ *state.State, i int) *logv1.Entry {
		v := &logv1.Server{Id: fmt.Sprint("s", i%100), Version: fmt.Sprint(i)}
		return &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: v}}}
	})
}
