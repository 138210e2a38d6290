package failpoint_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/failpoint"
)

func TestNames(t *testing.T) {
	names := failpoint.Names()
	if len(names) < 25 {
		t.Errorf("%d failpoints", len(names))
	}
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Error("a name stands twice")
	}
	for _, n := range names {
		if len(strings.Split(n, ".")) != 3 || strings.ToLower(n) != n {
			t.Errorf("%q is not package.subject.moment", n)
		}
	}
}

// A name that is not known is harmless: in this build a failpoint does nothing.
func TestHitIsNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { failpoint.Hit("store.log.append") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
