package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/ztmesh/ztmesh/store/state"
)

// TestWatch: with writers at full speed and readers of every pace, each reader
// sees everything at first, only newer states, every change in what it is told,
// and the last state.
func TestWatch(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	mustPut(t, s, "first", "x")
	ctx := c.ctx()

	const writers, each, readers = 4, 40, 3
	errs := make([]error, readers)
	calls := make([]int, readers)
	written := make(chan struct{})
	var reading sync.WaitGroup
	for i := range readers {
		reading.Go(func() {
			seen := state.New()
			errs[i] = s.Watch(ctx, func(now *state.State, told state.Changes) error {
				differs := state.Diff(seen, now)
				switch calls[i]++; {
				case calls[i] == 1 && (!told.Trust || !told.Admins || len(told.Keys) != now.NumDocuments()):
					return fmt.Errorf("at first only %+v is told", told)
				case calls[i] > 1 && now.Index() <= seen.Index():
					return fmt.Errorf("state %d after %d", now.Index(), seen.Index())
				case len(told.Union(differs).Keys) != len(told.Keys):
					return fmt.Errorf("%v differs, %v is told", differs.Keys, told.Keys)
				}
				seen = now
				if i == 0 {
					<-written // this reader sees one state, then the last
				}
				if now.NumDocuments() == 1+writers*each {
					return errDone
				}
				return nil
			})
		})
	}
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if r, err := put(ctx, s, fmt.Sprintf("w%d-%d", w, i), "x"); err != nil || r.Err != nil {
					t.Errorf("put: %v, %v", err, r.Err)
				}
			}
		})
	}
	writing.Wait() // although one reader reads nothing
	close(written)
	reading.Wait()
	for i, err := range errs {
		if !errors.Is(err, errDone) {
			t.Errorf("reader %d: %v", i, err)
		}
	}
	if calls[0] != 2 {
		t.Errorf("the slow reader was called %d times", calls[0])
	}
}

func TestWatchEnds(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	ctx, cancel := context.WithCancel(c.ctx())
	if err := s.Watch(ctx, func(*state.State, state.Changes) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := s.Watch(c.ctx(), func(*state.State, state.Changes) error { return errDone }); !errors.Is(err, errDone) {
		t.Errorf("callback failed: %v", err)
	}
	if n := len(s.fsm.watchers); n != 0 {
		t.Errorf("%d watchers are still there", n)
	}
}

// TestWatcherPilesUpLittle: what a reader that does not read costs is bounded by
// what there is, not by how often it changes.
func TestWatcherPilesUpLittle(t *testing.T) {
	w := &watcher{ready: make(chan struct{}, 1)}
	for i := range 10 * compactAt {
		w.add(state.Changes{Keys: []state.Key{{Name: fmt.Sprint(i % 3)}}})
	}
	if len(w.pending) > compactAt {
		t.Errorf("%d are pending", len(w.pending))
	}
	if u := (state.Changes{}).Union(w.pending...); len(u.Keys) != 3 {
		t.Errorf("union %v", u.Keys)
	}
}
