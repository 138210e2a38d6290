//go:build system

package crash_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/failpoint"
)

// TestCrash is the suite. Every failpoint has its turn before one has its second.
func TestCrash(t *testing.T) {
	cycles, seed := int(fleet.Number(t, "ZT_CYCLES", uint64(len(failpoint.Names())))), fleet.Number(t, "ZT_SEED", rand.Uint64())
	until := fleet.Deadline(t)
	names := failpoint.Names()
	if only := os.Getenv("ZT_FAILPOINTS"); only != "" {
		names = strings.Split(only, ",")
	}
	for _, n := range names {
		if scenarios[n] == nil {
			t.Fatalf("failpoint %s has no scenario", n)
		}
	}
	t.Logf("ZT_SEED=%d ZT_CYCLES=%d", seed, cycles)
	r := begin(t, seed)
	began := time.Now()
	// The one that takes half a minute begins first.
	if slices.Contains(names, "agent.renew.answered") {
		r.renews("agent.renew.answered")
	}
	var order []string
	n := 0
	for ; n < cycles && (until.IsZero() || time.Now().Before(until)); n++ {
		if len(order) == 0 {
			order = slices.Clone(names)
			r.Rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		point := order[0]
		order = order[1:]
		at := time.Now()
		scenarios[point](r, point)
		if testing.Verbose() {
			fmt.Printf("cycle %d %s: %v, reached %d, missed %d\n", n+1, point, time.Since(at).Round(time.Millisecond), r.reached[point], r.missed[point])
		}
		if t.Failed() {
			t.Fatalf("cycle %d, %s, of ZT_SEED=%d", n+1, point, seed)
		}
	}
	took := time.Since(began)
	r.renewed()
	kills := 0
	for _, k := range r.reached {
		kills += k
	}
	t.Logf("%d cycles in %v, %d kills at %d of %d failpoints, %d kills where one was not reached in time (%v); %+v",
		n, took.Round(time.Second), kills, len(r.reached), len(names), sum(r.missed), slices.Sorted(maps.Keys(r.missed)), r.Ledger.Counts())
	for _, name := range names {
		// A short run may be too short for all of them.
		if n >= 2*len(names) && r.reached[name] == 0 {
			t.Errorf("%s was never reached", name)
		}
	}
	if want := min(25, len(names)); n >= 60 && len(r.reached) < want {
		t.Errorf("%d failpoints were reached, want %d", len(r.reached), want)
	}
	for _, name := range slices.Sorted(maps.Keys(r.reached)) {
		t.Logf("%4d %s", r.reached[name], name)
	}
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
