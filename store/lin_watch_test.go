package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/store/state"
)

// watching is a watcher that goes from server to server. On each it sees states that
// only grow, with all that differs told, and it goes on where it was: from what it
// has, the revisions after lead to what it gets.
type watching struct {
	*world
	random *rand.Rand
	slow   bool

	mu   sync.Mutex // guards what follows
	on   *Store     // where it watches; nil: between two
	seen *state.State
}

func (w *world) watching(id int) *watching {
	return &watching{world: w, random: rand.New(rand.NewPCG(w.seed, uint64(2000+id))), slow: id%2 == 1, seen: state.New()}
}

// run goes on until ctx is done; after settled it stays where it is.
func (w *watching) run(ctx context.Context, settled <-chan struct{}) {
	for ctx.Err() == nil {
		all := w.running()
		if len(all) == 0 {
			time.Sleep(time.Second)
			continue
		}
		w.watch(ctx, all[w.random.IntN(len(all))], settled)
		time.Sleep(within(w.random, time.Second))
	}
}

// watch stays at one server for a while.
func (w *watching) watch(ctx context.Context, s *Store, settled <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	defer close(ended)
	stay := within(w.random, 20*time.Second)
	go func() {
		select {
		case <-time.After(stay):
		case <-ended:
			return
		}
		select {
		case <-settled: // It stays.
		default:
			cancel()
		}
	}()
	w.mu.Lock()
	w.on = s
	w.mu.Unlock()
	first, before := true, w.seen
	err := s.Watch(ctx, func(now *state.State, told state.Changes) error {
		w.wasShown(s, now.Index(), first)
		if first {
			w.resume(s, before, now)
			before = state.New()
		} else if now.Index() <= before.Index() {
			w.violation("watch on %s: state %d after %d", s.cfg.ID, now.Index(), before.Index())
		}
		if differs := state.Diff(before, now); !sameChanges(told.Union(differs), told.Union()) {
			w.violation("watch on %s: from %d to %d %+v differs, %+v is told", s.cfg.ID, before.Index(), now.Index(), differs, told)
		}
		first, before = false, now
		w.mu.Lock()
		w.seen = now
		w.mu.Unlock()
		if w.slow {
			time.Sleep(within(w.random, 2*time.Second))
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed) {
		w.violation("watch on %s: %v", s.cfg.ID, err)
	}
	w.mu.Lock()
	w.on = nil
	w.mu.Unlock()
}

func sameChanges(a, b state.Changes) bool {
	return slices.Equal(a.Keys, b.Keys) && slices.Equal(a.InstanceIDs, b.InstanceIDs) && slices.Equal(a.Proposals, b.Proposals) &&
		a.Trust == b.Trust && a.Tokens == b.Tokens && a.Admins == b.Admins && a.Servers == b.Servers
}

// resume goes on from a state by the revisions after it, if the new server has come
// so far.
func (w *watching) resume(s *Store, from, now *state.State) {
	changes, complete := now.RevisionsAfter(from.Revision())
	if now.Revision() < from.Revision() {
		return // The new server is behind; it will tell.
	}
	if !complete && from.Revision() == 0 {
		return // Nothing tells that there was nothing before what is kept.
	}
	if !complete {
		w.violation("watch on %s: revisions from %d to %d are not kept", s.cfg.ID, from.Revision(), now.Revision())
		return
	}
	docs := map[state.Key]string{}
	for d := range from.Documents("", "") {
		docs[d.Key] = string(d.Bytes)
	}
	for r := range changes {
		for _, c := range r.GetChanges() {
			k := state.Key{Kind: c.GetKey().GetKind(), Namespace: c.GetKey().GetNamespace(), Name: c.GetKey().GetName()}
			if docs[k] != string(c.GetBefore()) {
				w.violation("watch on %s: revision %d changes %s from %q, which was %q", s.cfg.ID, r.GetRevision(), k, c.GetBefore(), docs[k])
			}
			docs[k] = string(c.GetAfter())
		}
	}
	for d := range now.Documents("", "") {
		if docs[d.Key] != string(d.Bytes) {
			w.violation("watch on %s: revisions lead to another %s at %d", s.cfg.ID, d.Key, now.Revision())
		}
	}
}

// hasLast tells whether the watcher has seen the last state of where it is.
func (w *watching) hasLast() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.on != nil && state.Diff(w.seen, w.on.State()).Empty()
}

// wasShown notes what a watcher is shown. The first state after a restart is no older
// than any that was shown before it.
func (w *watching) wasShown(s *Store, index uint64, first bool) {
	w.record.mu.Lock()
	lives := w.shown[s.cfg.ID]
	if lives == nil {
		lives = map[*Store]uint64{}
		w.shown[s.cfg.ID] = lives
	}
	before := uint64(0)
	for life, i := range lives {
		if life != s {
			before = max(before, i)
		}
	}
	lives[s] = max(lives[s], index)
	w.record.mu.Unlock()
	if first && index < before {
		w.violation("watch on %s: state %d, and %d before a restart", s.cfg.ID, index, before)
	}
}
