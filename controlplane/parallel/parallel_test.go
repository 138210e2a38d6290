package parallel_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/parallel"
)

func TestEachCallsOnce(t *testing.T) {
	for _, n := range []int{0, 1, 2, 1000} {
		counts := make([]atomic.Int64, n)
		parallel.Each(n, func(i int) { counts[i].Add(1) })
		for i := range counts {
			if got := counts[i].Load(); got != 1 {
				t.Errorf("of %d: %d was called %d times", n, i, got)
			}
		}
	}
}

func TestChunksCoverAll(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 100} {
		counts := make([]atomic.Int64, n)
		parallel.Chunks(n, 8, func(from, to int) {
			if to-from > 8 {
				t.Errorf("of %d: [%d, %d)", n, from, to)
			}
			for i := from; i < to; i++ {
				counts[i].Add(1)
			}
		})
		for i := range counts {
			if got := counts[i].Load(); got != 1 {
				t.Errorf("of %d: %d was in %d chunks", n, i, got)
			}
		}
	}
}

func TestPanicIsTheCallers(t *testing.T) {
	for _, n := range []int{1, 100} {
		func() {
			defer func() {
				if p, ok := recover().(string); !ok || !strings.HasPrefix(p, "no such thing") {
					t.Errorf("of %d: recovered %q", n, p)
				}
			}()
			parallel.Each(n, func(i int) {
				if i == n-1 {
					panic("no such thing")
				}
			})
			t.Errorf("of %d: no panic", n)
		}()
	}
}
