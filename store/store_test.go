package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

func snapshotOf(t testing.TB, s *state.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOneServerComesBack(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	for i := range 20 {
		r := mustPut(t, s, fmt.Sprint("g", i), "x")
		if d, ok := documentAt(s.State(), fmt.Sprint("g", i)); !ok || d.Revision != r.Revision {
			t.Fatalf("State does not hold what Propose has answered: %+v", d)
		}
		if i == 9 {
			if err := s.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := snapshotOf(t, s.State())
	c.kill("a")
	s = c.start("a")
	waitLeads(t, s)
	if !bytes.Equal(snapshotOf(t, s.State()), before) {
		t.Error("the state is another after a restart")
	}
	if r := mustPut(t, s, "g0", "x"); !r.Replayed {
		t.Error("an idempotency key was forgotten by a restart")
	}
}

func TestOpenRefuses(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	mustPut(t, s, "g", "a document to be damaged")
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "h", "x")
	try := func(name string, want error, change func(*Config)) {
		t.Helper()
		cfg := c.config("a")
		change(&cfg)
		other, err := Open(cfg)
		if err == nil {
			_ = other.Close()
		}
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if cfg.Listener != nil {
			if _, err := cfg.Listener.Accept(); err == nil {
				t.Errorf("%s: the listener is still open", name)
			}
		}
	}
	try("open elsewhere", ErrLocked, func(*Config) {})
	try("nothing given", nil, func(cfg *Config) { *cfg = Config{} })
	try("metrics taken", nil, func(cfg *Config) {
		cfg.Dir = t.TempDir()
		cfg.Metrics = prometheus.NewRegistry()
		cfg.Metrics.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "zt_store_snapshots_total"}))
	})
	try("not a directory", nil, func(cfg *Config) {
		cfg.Dir = filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(cfg.Dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	c.kill("a")
	try("another server's", ErrOtherServer, func(cfg *Config) { cfg.ID = "b" })

	// flip damages the first file that matches.
	flip := func(pattern string, at func(whole []byte) int) (undo func()) {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(c.dir, "a", pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", pattern, names, err)
		}
		whole, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(whole)
		bad[at(bad)] ^= 1
		write := func(b []byte) {
			if err := os.WriteFile(names[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(bad)
		return func() { write(whole) }
	}
	undo := flip("log/*.log", func(whole []byte) int { // of a file that is mostly allocated only
		return len(bytes.TrimRight(whole, "\x00")) / 2
	})
	try("a flipped bit in the log", ErrUnreadable, func(*Config) {})
	undo()
	waitLeads(t, c.start("a")) // and with all as it was it opens
}

// TestProposeRefuses: a leads in all of it, however busy the machine is.
func TestProposeRefuses(t *testing.T) { bubble(t, proposeRefuses) }

func proposeRefuses(t *testing.T, c *testCluster, s *Store) {
	ctx := c.ctx()
	for name, err := range map[string]error{
		"propose":     second(c.servers["b"].Propose(ctx, putEntry(0, "g", "x"))),
		"barrier":     c.servers["b"].Barrier(ctx),
		"add voter":   c.servers["b"].AddVoter(ctx, "d", "d"),
		"remove":      c.servers["b"].RemoveServer(ctx, "c"),
		"hand over":   c.servers["b"].TransferLeadership(ctx),
		"still b's":   c.servers["c"].Barrier(ctx),
		"c's propose": second(c.servers["c"].Propose(ctx, putEntry(0, "g", "x"))),
	} {
		if !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s on a follower: %v", name, err)
		}
	}
	if id, addr := c.servers["b"].Leader(); id != "a" || addr != "a" {
		t.Errorf("b says that %s at %s leads", id, addr)
	}
	if _, err := s.Propose(ctx, putEntry(0, "g", strings.Repeat("x", MaxEntry))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Propose(done, putEntry(0, "g", "x")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("cancelled before: %v", err)
	}
	if s.State().Revision() != 0 {
		t.Error("something was applied")
	}
}

func second[T any](_ T, err error) error { return err }

// TestLargestEntry: what is just small enough goes to disk and comes back.
func TestLargestEntry(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	content := strings.Repeat("x", MaxEntry-200)
	r := mustPut(t, s, "big", content)
	mustPut(t, s, "after", "x")
	c.kill("a")
	s = c.start("a")
	waitLeads(t, s)
	if d, _ := documentAt(s.State(), "big"); d.Revision != r.Revision || string(d.Bytes) != content {
		t.Errorf("%d bytes at revision %d", len(d.Bytes), d.Revision)
	}
}

func TestEntriesAreStamped(t *testing.T) {
	c := newTestCluster(t, loopback())
	var mu sync.Mutex
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	set := func(at time.Time) {
		mu.Lock()
		defer mu.Unlock()
		now = at
	}
	c.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	s := c.begin("a")
	start := now
	e := putEntry(0, "g", "x")
	if _, err := s.Propose(c.ctx(), e); err != nil {
		t.Fatal(err)
	}
	if e.GetWhen() != nil || e.GetFormat() != 0 {
		t.Error("Propose has changed the caller's entry")
	}
	if !s.State().When().Equal(start) {
		t.Errorf("state time %v", s.State().When())
	}
	set(start.Add(-time.Hour))
	if mustPut(t, s, "h", "x"); !s.State().When().Equal(start) {
		t.Errorf("state time followed a clock that was set back: %v", s.State().When())
	}
	set(start.Add(time.Hour))
	if mustPut(t, s, "i", "x"); !s.State().When().Equal(start.Add(time.Hour)) {
		t.Errorf("state time %v", s.State().When())
	}
}

// TestUnknownEntryStops: an entry that this version cannot read stops the server.
// It is not skipped, then or later, and no snapshot hides it.
func TestUnknownEntryStops(t *testing.T) {
	for name, bad := range map[string][]byte{"not an entry": {0xff}, "newer format": must(proto.Marshal(&logv1.Entry{Format: state.Format + 1}))} {
		t.Run(name, func(t *testing.T) {
			c := newTestCluster(t, loopback())
			s := c.begin("a")
			mustPut(t, s, "g", "x")
			before := s.State()
			f := s.raft.Apply(bad, patience)
			if err := s.await(c.ctx(), f); err == nil {
				if err, ok := f.Response().(error); !ok {
					t.Errorf("answer %v", err)
				}
			}
			if err := s.Wait(c.ctx()); err == nil {
				t.Fatal("the store goes on")
			}
			if _, err := s.Propose(c.ctx(), putEntry(before.Revision(), "h", "x")); !errors.Is(err, ErrClosed) {
				t.Errorf("propose: %v", err)
			}
			if s.State() != before {
				t.Error("the state has moved on")
			}
			if _, err := s.fsm.Snapshot(); err == nil {
				t.Error("a snapshot would hide the entry")
			}
			c.kill("a")
			s = c.start("a")
			if err := s.Wait(c.ctx()); err == nil || s.IsLeader() {
				t.Errorf("after a restart it goes on: %v", err)
			}
			if d, ok := documentAt(s.State(), "g"); !ok || s.State().Index() != before.Index() {
				t.Errorf("after a restart: %+v at %d", d, s.State().Index())
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestWriteErrorStops: a log that refuses a write is not asked again.
func TestWriteErrorStops(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a")
	if err := s.log.closeSegments(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Propose(c.ctx(), putEntry(0, "g", "x")); !errors.Is(err, ErrUnknown) {
		t.Errorf("propose: %v", err)
	}
	if err := s.Wait(c.ctx()); err == nil || !strings.Contains(err.Error(), "write log") {
		t.Errorf("wait: %v", err)
	}
	delete(c.servers, "a")
	if err := s.stop(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("stop: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a", "b")
	c.kill("b") // no quorum: the next proposal hangs
	ctx := c.ctx()
	var wg sync.WaitGroup
	errs := make([]error, 3)
	var started sync.WaitGroup
	started.Add(2)
	wg.Go(func() {
		errs[0] = s.Watch(ctx, func(*state.State, state.Changes) error { started.Done(); return nil })
	})
	var once sync.Once
	wg.Go(func() {
		errs[1] = s.WatchLeader(ctx, func(bool, uint64) error { once.Do(started.Done); return nil })
	})
	wg.Go(func() { _, errs[2] = s.Propose(ctx, putEntry(0, "g", "x")) })
	started.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	delete(c.servers, "a")
	wg.Wait()
	if !errors.Is(errs[0], ErrClosed) || !errors.Is(errs[1], ErrClosed) {
		t.Errorf("watches: %v, %v", errs[0], errs[1])
	}
	// The proposal may have met a leader that had just lost its quorum, or none.
	if e := errs[2]; !errors.Is(e, ErrUnknown) && !errors.Is(e, ErrNotLeader) && !errors.Is(e, ErrClosed) {
		t.Errorf("propose: %v", e)
	}
	if err := s.Wait(ctx); err != nil {
		t.Errorf("wait: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	c := newTestCluster(t, loopback())
	registry := prometheus.NewRegistry()
	cfg := c.config("a")
	cfg.Metrics = registry
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.servers["a"] = s
	waitLeads(t, s)
	if _, err := s.Propose(c.ctx(), initEntry()); err != nil {
		t.Fatal(err)
	}
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	want := map[string]float64{"zt_store_applied_index": float64(s.State().Index()), "zt_store_is_leader": 1, "zt_store_snapshots_total": 1, "zt_store_commit_seconds": 1}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	c.kill("a")
	if families, _ := registry.Gather(); len(families) != 0 {
		t.Errorf("after Close there are still %d metrics", len(families))
	}
}

var _ raft.StreamLayer = (*streams)(nil)
