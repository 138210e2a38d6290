package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// perWorld is how many operations one bubble does.
const perWorld = 2000

// TestLinearizable: clusters in bubbles of fake time, under faults of every kind.
// make lin OPS=5000000 SEED=... runs more of them; a seed replays the same faults
// and the same clients, as far as goroutines are scheduled alike.
func TestLinearizable(t *testing.T) {
	operations, seed := 20_000, rand.Uint64()
	if v := os.Getenv("ZT_OPS"); v != "" {
		operations = must(strconv.Atoi(v))
	}
	if v := os.Getenv("ZT_SEED"); v != "" {
		seed = must(strconv.ParseUint(v, 10, 64))
	}
	var until time.Time
	if v := os.Getenv("ZT_MINUTES"); v != "" {
		until = time.Now().Add(time.Duration(must(strconv.Atoi(v))) * time.Minute)
	}
	sum := summary{faults: map[string]int{}}
	defer func() { t.Log(sum.line(seed)) }()
	for sum.operations < operations && !t.Failed() && (until.IsZero() || time.Now().Before(until)) {
		runWorld(t, seed+uint64(sum.histories), &sum)
		if sum.histories%200 == 0 {
			t.Log(sum.line(seed))
		}
	}
}

// runWorld runs one bubble and judges what was seen in it, also when it has failed.
func runWorld(t *testing.T, seed uint64, sum *summary) {
	r := newRecord(seed)
	defer func() {
		r.t = t
		r.check()
		sum.add(r)
	}()
	synctest.Test(t, func(t *testing.T) {
		r.t = t
		newWorld(t, r, 3+2*int(seed%3/2)).run(perWorld - 100)
	})
}

// run lets clients work under faults, and then all be well.
func (w *world) run(operations int) {
	ctx, over := context.WithCancel(context.Background())
	settled := make(chan struct{})
	var working, befalling, looking sync.WaitGroup
	workers := make([]*worker, 5)
	busy, enough := context.WithTimeout(ctx, 15*time.Minute)
	for i := range workers {
		workers[i] = w.worker(i)
		working.Go(func() { workers[i].work(busy, operations) })
	}
	watchers := make([]*watching, 3)
	for i := range watchers {
		watchers[i] = w.watching(i)
		looking.Go(func() { watchers[i].run(ctx, settled) })
	}
	looking.Go(func() { w.watchOver(ctx) })
	befalling.Go(func() { w.befall(busy) })
	working.Wait()
	enough()
	befalling.Wait()
	w.settle()
	for _, c := range workers {
		c.resolve()
	}
	close(settled)
	w.await("watchers have the last state", func() bool {
		return !slices.ContainsFunc(watchers, func(x *watching) bool { return !x.hasLast() })
	})
	over()
	looking.Wait()
	w.close()
}

// summary is of many bubbles.
type summary struct {
	operations, histories, violations int
	faults                            map[string]int
}

func (s *summary) add(r *record) {
	s.operations += r.done
	s.histories++
	s.violations += r.violations
	for name, n := range r.faults {
		s.faults[name] += n
	}
}

func (s *summary) line(seed uint64) string {
	var f []string
	for _, name := range slices.Sorted(maps.Keys(s.faults)) {
		f = append(f, fmt.Sprint(name, " ", s.faults[name]))
	}
	return fmt.Sprintf("seed %d: %d operations in %d histories, %d violations; faults: %s", seed, s.operations, s.histories, s.violations, strings.Join(f, ", "))
}
