package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// write is what a client knows of one of its writes.
type write struct {
	name     string
	revision uint64
	retried  bool
}

// client writes one document after another, each under its own key, until stop is
// closed. Whatever is not known to have happened or not, it asks again.
func client(ctx context.Context, id int, servers func() []*Store, stop <-chan struct{}) ([]write, error) {
	var journal []write
	for i := 0; ; i++ {
		select {
		case <-stop:
			return journal, nil
		default:
		}
		w := write{name: fmt.Sprintf("c%d-%d", id, i)}
		for w.revision == 0 {
			for _, s := range servers() {
				r, err := put(ctx, s, w.name, w.name)
				if ctx.Err() != nil {
					return journal, context.Cause(ctx)
				}
				if errors.Is(err, ErrUnknown) {
					w.retried = true
				}
				if err == nil {
					if r.Err != nil {
						return journal, fmt.Errorf("%s: %w", w.name, r.Err)
					}
					w.revision = r.Revision
					break
				}
			}
		}
		journal = append(journal, w)
	}
}

// TestLeaderIsKilled: what was acknowledged is there afterwards, once, at the
// revision that was told, and what was not known becomes known by asking again.
func TestLeaderIsKilled(t *testing.T) {
	c := newTestCluster(t, loopback())
	c.begin("a", "b", "c")
	var mu sync.Mutex // guards c.servers while clients run
	running := func() []*Store {
		mu.Lock()
		defer mu.Unlock()
		var all []*Store
		for _, s := range c.servers {
			all = append(all, s)
		}
		return all
	}
	ctx, stop := c.ctx(), make(chan struct{})
	var clients sync.WaitGroup
	journals, errs := make([][]write, 6), make([]error, 6)
	for i := range journals {
		clients.Go(func() { journals[i], errs[i] = client(ctx, i, running, stop) })
	}
	for range 4 {
		leader := c.leader()
		waitDocuments(t, leader, 20) // the clients are at work
		mu.Lock()
		name := leader.cfg.ID
		delete(c.servers, name)
		mu.Unlock()
		c.net.isolate(name, true)
		if err := leader.stop(); err != nil {
			t.Error(err)
		}
		c.net.isolate(name, false)
		next := c.leader()
		waitDocuments(t, next, 20) // two of three go on
		s, err := Open(c.config(name))
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		c.servers[name] = s
		mu.Unlock()
	}
	close(stop)
	clients.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}

	leader := c.leader()
	if err := leader.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	s := leader.State()
	acked, unknown := 0, 0
	seen := map[uint64]string{}
	for _, w := range slices.Concat(journals...) {
		acked++
		if w.retried {
			unknown++
		}
		d, ok := documentAt(s, w.name)
		switch {
		case !ok:
			t.Errorf("%s was acknowledged and is lost", w.name)
		case d.Revision != w.revision:
			t.Errorf("%s was acknowledged at %d and is at %d: it was applied twice", w.name, w.revision, d.Revision)
		case seen[w.revision] != "":
			t.Errorf("%s and %s both got revision %d", w.name, seen[w.revision], w.revision)
		}
		seen[w.revision] = w.name
	}
	if s.NumDocuments() != acked {
		t.Errorf("%d documents, %d were acknowledged", s.NumDocuments(), acked)
	}
	t.Logf("%d acknowledged, %d of them after an unknown outcome", acked, unknown)
	for _, other := range c.servers {
		waitIndex(t, other, s.Index())
		if !bytes.Equal(snapshotOf(t, other.State()), snapshotOf(t, s)) {
			t.Errorf("%s and %s disagree", other.cfg.ID, leader.cfg.ID)
		}
	}
}

// TestUnknownIsAnsweredByAskingAgain: an entry is in the leader's log when the
// leader is cut off. It tells ErrUnknown, and the next leader what became of it.
func TestUnknownIsAnsweredByAskingAgain(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a", "b", "c")
	c.net.isolate("a", true)
	_, err := put(c.ctx(), a, "g", "x")
	if !errors.Is(err, ErrUnknown) {
		t.Fatalf("cut off: %v", err)
	}
	delete(c.servers, "a")
	next := c.leader()
	first := mustPut(t, next, "g", "x")
	c.net.isolate("a", false)
	c.servers["a"] = a
	again := mustPut(t, c.leader(), "g", "x")
	if !again.Replayed || again.Revision != first.Revision {
		t.Errorf("first %+v, again %+v", first, again)
	}
	// a throws its own entry away.
	waitIndex(t, a, next.State().Index())
	if d, _ := documentAt(a.State(), "g"); d.Revision != first.Revision {
		t.Errorf("a has revision %d, the others %d", d.Revision, first.Revision)
	}
}

// TestFollowerIsSeededBySnapshot: a follower that is further behind than the log
// reaches gets a snapshot, tells its watchers what that changed, and goes on.
func TestFollowerIsSeededBySnapshot(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a", "b", "c")
	mustPut(t, a, "old", "x")
	waitIndex(t, c.servers["c"], a.State().Index())
	c.net.isolate("c", true)

	sees := make(chan *state.State, 1) // newest only
	ctx, cancel := context.WithCancel(c.ctx())
	watch := make(chan error, 1)
	follower := c.servers["c"]
	go func() {
		seen := state.New()
		watch <- follower.Watch(ctx, func(s *state.State, told state.Changes) error {
			if differs := state.Diff(seen, s); len(told.Union(differs).Keys) != len(told.Keys) {
				return fmt.Errorf("%+v differs, %+v is told", differs, told)
			}
			seen = s
			select {
			case <-sees:
			default:
			}
			sees <- s
			return nil
		})
	}()
	for i := range 40 {
		mustPut(t, a, fmt.Sprint("g", i), "x")
	}
	waitIndex(t, c.servers["b"], a.State().Index())
	for _, name := range []string{"a", "b"} {
		if err := c.servers[name].raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	a = c.leader()
	behind := c.servers["c"].State().Index() + 1
	if err := a.log.GetLog(behind, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("c could follow the log, which still has entry %d: %v", behind, err)
	}
	c.net.isolate("c", false)
	waitIndex(t, c.servers["c"], a.State().Index())
	mustPut(t, a, "new", "x")
	waitIndex(t, c.servers["c"], a.State().Index())
	for s := range sees {
		if s.Revision() == a.State().Revision() {
			break
		}
	}
	cancel()
	if err := <-watch; !errors.Is(err, context.Canceled) {
		t.Errorf("watch on c: %v", err)
	}
	if !bytes.Equal(snapshotOf(t, c.servers["c"].State()), snapshotOf(t, a.State())) {
		t.Error("a and c disagree")
	}
	// What was installed is on c's disk, too.
	c.kill("c")
	s := c.start("c")
	if _, ok := documentAt(s.State(), "g39"); !ok {
		t.Error("after a restart c does not have the snapshot")
	}
	waitIndex(t, s, c.leader().State().Index())
}

// TestSnapshotOverUncommitted: a leader that was cut off with entries that nobody has
// agreed on gets a snapshot that ends before them, and follows again without a restart.
func TestSnapshotOverUncommitted(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a", "b", "c")
	mustPut(t, a, "old", "x")
	for _, name := range []string{"b", "c"} {
		waitIndex(t, c.servers[name], a.State().Index())
	}
	c.net.isolate("a", true)
	const lost = 200
	for i := range lost {
		if _, err := a.Submit(c.ctx(), putEntry(a.State().Revision(), fmt.Sprint("lost", i), "x")); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, a, func(uint64) bool { last, _ := a.log.LastIndex(); return last > lost })
	delete(c.servers, "a")
	other := c.leader()
	for i := range 40 {
		mustPut(t, other, fmt.Sprint("g", i), "x")
	}
	for _, name := range []string{"b", "c"} {
		waitIndex(t, c.servers[name], other.State().Index())
		if err := c.servers[name].raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	other = c.leader()
	if err := other.log.GetLog(a.State().Index()+1, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("a could follow the log: %v", err)
	}
	if last, _ := a.log.LastIndex(); last <= other.raft.LastIndex() {
		t.Fatalf("the log of a reaches to %d, that of the leader to %d", last, other.raft.LastIndex())
	}
	c.servers["a"] = a
	c.net.isolate("a", false)
	waitIndex(t, a, other.State().Index())
	mustPut(t, other, "new", "x")
	waitIndex(t, a, other.State().Index())
	if !bytes.Equal(snapshotOf(t, a.State()), snapshotOf(t, other.State())) {
		t.Error("they disagree")
	}
	c.kill("a")
	waitIndex(t, c.start("a"), other.State().Index())
}

// TestAutomaticSnapshots: raft takes them by itself, and trims the log.
func TestAutomaticSnapshots(t *testing.T) {
	c := newTestCluster(t, loopback())
	c.timing.SnapshotInterval, c.timing.SnapshotEntries = 5*time.Millisecond, 16
	s := c.begin("a")
	for i := 0; ; i++ {
		mustPut(t, s, fmt.Sprint("g", i), "x")
		if first, err := s.log.FirstIndex(); err != nil {
			t.Fatal(err)
		} else if first > 1 {
			break
		}
	}
	before := s.State()
	c.kill("a")
	s = c.start("a")
	waitLeads(t, s)
	if !state.Diff(before, s.State()).Empty() {
		t.Error("the state is another after a restart")
	}
}
