package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// world is one bubble: servers that come and go, clients and watchers that use them,
// faults that befall them, and what everybody has seen.
type world struct {
	random *rand.Rand // of the faults alone
	mesh   *mesh
	timing Timing
	*record

	heralds sync.WaitGroup

	mu      sync.Mutex // guards what follows
	servers map[string]*server
	names   int // servers made so far
}

// server is one server in all of its lives.
type server struct {
	name    string
	disk    *memDisk
	cipher  Cipher
	store   *Store // nil: down
	removed bool   // it has left the cluster, and is not started again
	busy    bool   // a fault is stopping or starting it
}

// newWorld begins a cluster of n servers.
func newWorld(t *testing.T, r *record, n int) *world {
	seed := r.seed
	w := &world{
		random: rand.New(rand.NewPCG(seed, 1)), mesh: newMesh(seed), record: r,
		servers: map[string]*server{},
		timing: Timing{
			// The lease is as long as it may be: the longer, the staler could a read be.
			Heartbeat: time.Second, Election: time.Second, Lease: time.Second, Commit: 20 * time.Millisecond,
			SnapshotInterval: 2 * time.Second, SnapshotEntries: 60, TrailingEntries: 40,
		},
	}
	first := w.make()
	w.start(first)
	w.await("the first server leads", func() bool { return first.store.IsLeader() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := first.store.Propose(ctx, initEntry()); err != nil {
		t.Fatal(err)
	}
	for range n - 1 {
		s := w.make()
		w.start(s)
		if err := first.store.AddVoter(ctx, s.name, s.name); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// make makes a server that does not run yet.
func (w *world) make() *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := string(rune('a' + w.names))
	w.names++
	s := &server{name: name, disk: newMemDisk(w.seed + uint64(w.names)), cipher: newCipher(w.t)}
	w.servers[name] = s
	return s
}

// start opens a server that is down.
func (w *world) start(s *server) {
	store, err := Open(Config{
		ID: s.name, Dir: "/data", Bootstrap: s.name == "a", Address: s.name, Listener: w.mesh.listen(s.name),
		Dial: w.mesh.dialFrom(s.name), Logger: slog.New(slog.DiscardHandler), Now: time.Now, Timing: w.timing,
		Files: s.disk.open(), Cipher: s.cipher, segment: 64 << 10,
	})
	if err != nil {
		w.violation("%s does not start again: %v", s.name, err)
		return
	}
	w.observe(s.name, store)
	w.heralds.Go(func() { w.herald(store) })
	w.mu.Lock()
	defer w.mu.Unlock()
	s.store = store
}

// observe notes who leads in which term.
func (w *world) observe(name string, store *Store) {
	note := func() {
		if term := store.raft.CurrentTerm(); store.raft.State() == raft.Leader {
			w.leads(name, term)
		}
	}
	store.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if o.Data == raft.Leader { // asked in the goroutine that becomes it
			w.leads(name, o.Raft.CurrentTerm())
		}
		return false
	}))
	note()
}

// herald reads from a server whenever it begins to lead, at once.
func (w *world) herald(store *Store) {
	err := store.WatchLeader(context.Background(), func(leads bool, _ uint64) error {
		if leads {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			w.look(ctx, -1, store)
		}
		return nil
	})
	if !errors.Is(err, ErrClosed) {
		w.violation("%s: %v", store.cfg.ID, err)
	}
}

// take makes a running server one that nobody else stops or starts; nil if it is
// down or somebody does already.
func (w *world) take(name string) (*server, *Store) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.servers[name]
	if s == nil || s.store == nil || s.busy {
		return nil, nil
	}
	s.busy = true
	store := s.store
	s.store = nil // for the clients it is down from now on
	return s, store
}

func (w *world) done(s *server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.busy = false
}

// stop stops a server that was taken: in order, or as a power cut would.
func (w *world) stop(s *server, store *Store, killed bool) {
	w.archive(store)
	if !killed {
		if err := store.Close(); err != nil {
			w.violation("%s does not close: %v", s.name, err)
		}
		w.mesh.down(s.name)
		return
	}
	w.mesh.down(s.name)
	s.disk.kill()
	_ = store.stop() // What the dead say of their disk does not matter.
}

// restart stops a server and starts it again after a while.
func (w *world) restart(name string, killed bool, after time.Duration) {
	s, store := w.take(name)
	if s == nil {
		return
	}
	defer w.done(s)
	w.stop(s, store, killed)
	time.Sleep(after)
	w.start(s)
}

// running are the servers that run, sorted by name.
func (w *world) running() []*Store {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*Store
	for _, s := range w.servers {
		if s.store != nil {
			all = append(all, s.store)
		}
	}
	slices.SortFunc(all, func(a, b *Store) int { return strings.Compare(a.cfg.ID, b.cfg.ID) })
	return all
}

// leader is who leads as far as is seen; nil if nobody does.
func (w *world) leader() *Store {
	for _, s := range w.running() {
		if s.IsLeader() {
			return s
		}
	}
	return nil
}

// await waits in the bubble.
func (w *world) await(what string, until func() bool) bool {
	for start := time.Now(); !until(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 3*time.Minute {
			w.violation("after three minutes not yet: %s", what)
			for _, s := range w.running() {
				w.violation("%s", describe(s))
			}
			return false
		}
	}
	return true
}

func (s *Store) ended() bool {
	select {
	case <-s.end.ch:
		return true
	default:
		return false
	}
}

func describe(s *Store) string {
	progress, _ := s.fsm.progress()
	var end error
	if s.ended() {
		end = s.end.why
	}
	return fmt.Sprintf("%s: %v in term %d, leads %v, log to %d, committed %d, applied %d, state %d, members %v, ended %v",
		s.cfg.ID, s.raft.State(), s.raft.CurrentTerm(), s.IsLeader(), s.raft.LastIndex(), s.raft.CommitIndex(), progress, s.State().Index(), s.Members(), end)
}

// settle is called when all faults are over: every server of the cluster runs again,
// has all, and has the same.
func (w *world) settle() {
	w.mu.Lock()
	var down []*server
	for _, s := range w.servers {
		if s.store == nil && !s.removed {
			down = append(down, s)
		}
	}
	w.mu.Unlock()
	for _, s := range down {
		w.start(s)
	}
	members := func() (all []*Store) {
		leader := w.leader()
		if leader == nil {
			return nil
		}
		in := leader.Members()
		for _, s := range w.running() {
			if slices.ContainsFunc(in, func(m Member) bool { return m.ID == s.cfg.ID }) {
				all = append(all, s)
			}
		}
		if len(all) < len(in) {
			return nil
		}
		return all
	}
	w.await("all members have all", func() bool {
		leader := w.leader()
		if leader == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if leader.Barrier(ctx) != nil {
			return false
		}
		all := members()
		for _, s := range all {
			if s.State().Index() != leader.State().Index() {
				return false
			}
		}
		return len(all) > 0
	})
	for _, s := range members() {
		w.final(s.cfg.ID, s.State())
	}
}

// close ends every server.
func (w *world) close() {
	for _, store := range w.running() {
		s, store := w.take(store.cfg.ID)
		w.archive(store)
		w.mesh.down(s.name)
		if err := store.stop(); err != nil {
			w.violation("%s does not stop: %v", s.name, err)
		}
	}
	w.heralds.Wait()
}

// watchOver collects what the servers have committed, and starts again who has ended,
// until ctx is done. The one good reason to end is to have been removed; who is a
// member again comes to that, too, when it is told both at once.
func (w *world) watchOver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		for _, s := range w.running() {
			w.archive(s)
			if !s.ended() {
				continue
			}
			if s, store := w.take(s.cfg.ID); s != nil {
				if !errors.Is(store.end.why, ErrRemoved) {
					w.violation("%s has ended: %v", s.name, store.end.why)
				}
				w.stop(s, store, true)
				w.start(s)
				w.done(s)
			}
		}
	}
}

// archive reads what a server has committed, as far as it has not been read. What
// two servers have at one index must be the same.
func (w *world) archive(s *Store) {
	progress, _ := s.fsm.progress()
	log := &sealedLog{logStore: s.log, cipher: s.cfg.Cipher}
	for i := w.readTo(s) + 1; i <= progress; i++ {
		l := &raft.Log{}
		switch err := log.GetLog(i, l); {
		case errors.Is(err, raft.ErrLogNotFound): // It came by a snapshot, or has gone into one.
		case s.ended():
			return
		case err != nil:
			w.violation("%s cannot read entry %d: %v", s.cfg.ID, i, err)
			return
		default:
			w.committed(s, i, l)
		}
	}
}
