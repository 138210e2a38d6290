package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// see is the first state that a watcher is shown; false: none within a moment.
func see(t testing.TB, s *Store, patience time.Duration) (st *state.State, is bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := s.Watch(ctx, func(now *state.State, _ state.Changes) error {
		st = now
		return errDone
	})
	if st == nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	return st, st != nil
}

// TestAloneAfterRestart: one of three servers that were killed, with nobody to tell it
// what is committed, shows what it has shown before, and nothing that it has not. Then
// the others come back, and it goes on, through snapshots and restarts.
func TestAloneAfterRestart(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a", "b", "c")
	for i := range 70 { // more than raft applies at once
		mustPut(t, a, fmt.Sprint("g", i), "x")
	}
	b := c.servers["b"]
	waitIndex(t, b, a.State().Index())
	shown, _ := see(t, b, patience)
	mustPut(t, a, "unseen", "x")
	waitIndex(t, b, a.State().Index())
	for _, name := range []string{"a", "b", "c"} {
		c.kill(name)
	}

	b = c.start("b")
	if got, is := see(t, b, patience); !is || got.Index() != shown.Index() || !bytes.Equal(snapshotOf(t, got), snapshotOf(t, shown)) {
		t.Fatalf("alone it shows %d, before it has shown %d", got.Index(), shown.Index())
	}
	if applied, to, is := b.CaughtUp(); is || to != 0 {
		t.Errorf("alone it has caught up with %d of %d", applied, to)
	}
	if n := len(b.Members()); n != 3 {
		t.Errorf("it knows %d members", n)
	}
	c.start("a")
	c.start("c")
	l := c.leader()
	mustPut(t, l, "later", "x")
	for name, s := range c.servers {
		waitIndex(t, s, l.State().Index())
		wait(t, s, func(uint64) bool { _, _, is := s.CaughtUp(); return is })
		if !bytes.Equal(snapshotOf(t, s.State()), snapshotOf(t, l.State())) {
			t.Errorf("%s has another state", name)
		}
		see(t, s, patience)
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Errorf("snapshot on %s: %v", name, err)
		}
	}
	before := l.State()
	for _, name := range []string{"a", "b", "c"} {
		c.kill(name)
	}
	if got, is := see(t, c.start("c"), patience); !is || !state.Diff(before, got).Empty() {
		t.Error("after a snapshot it shows another state")
	}
}

// TestServedBehindASnapshot: what was served lies behind a snapshot that ends with a change
// of members, and the log begins there.
func TestServedBehindASnapshot(t *testing.T) {
	c := newTestCluster(t, loopback())
	c.timing.Heartbeat, c.timing.Election, c.timing.Lease = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	open := func() *Store {
		cfg := c.config("a")
		cfg.segment = 1 << 10
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.servers["a"] = s
		waitLeads(t, s)
		return s
	}
	a := open()
	if _, err := a.Propose(c.ctx(), initEntry()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := a.AddNonvoter(c.ctx(), "x", fmt.Sprint("x", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.RemoveServer(c.ctx(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	mustPut(t, a, "g", "x")
	shown, _ := see(t, a, patience)
	c.kill("a")
	a = open()
	if first, covered := a.log.segments[0].first, a.snapshots.covered(); first <= 4 || covered <= 4 {
		t.Fatalf("the log begins at %d, the snapshot ends at %d", first, covered)
	}
	if got, is := see(t, a, patience); !is || got.Index() < shown.Index() {
		t.Error("it shows less")
	}
}

// TestSeededBehindWhatWasServed: a server that was started on what it had served gets a
// snapshot that ends before that. It keeps what it has.
func TestSeededBehindWhatWasServed(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a")
	mustPut(t, a, "old", "x")
	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	metas, err := a.snapshots.List()
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, a, "new", "x")
	shown, _ := see(t, a, patience)
	c.kill("a")
	cfg := c.config("a")
	f := &Store{cfg: cfg, end: newEnd()}
	cfg.Files, cfg.Format = osFiles{}, state.Format
	restored, snapshots, err := f.openDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.sealed = &sealedLog{logStore: f.log, cipher: cfg.Cipher}
	if f.audit, err = openAudit(cfg, restored); err != nil {
		t.Fatal(err)
	}
	f.fsm = newFSM(restored, fsmHooks{fail: f.end.set, audit: f.audit})
	if err := f.replay(); err != nil {
		t.Fatal(err)
	}
	_, r, err := snapshots.Open(metas[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.fsm.Restore(r); err != nil {
		t.Fatal(err)
	}
	if _, err := f.fsm.Snapshot(); !errors.Is(err, errReplaying) {
		t.Errorf("a snapshot that would end before what is in it: %v", err)
	}
	if got := f.State(); got.Index() != shown.Index() {
		t.Errorf("it went from %d to %d", shown.Index(), got.Index())
	}
	for i := metas[0].Index + 1; i <= f.log.last; i++ { // as raft does then
		var e raft.Log
		if err := f.sealed.GetLog(i, &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == raft.LogCommand {
			f.fsm.Apply(&e)
		}
	}
	if !bytes.Equal(snapshotOf(t, f.State()), snapshotOf(t, shown)) {
		t.Error("entries were applied twice")
	}
	if _, err := f.fsm.Snapshot(); err != nil {
		t.Error(err)
	}
	if err := f.release(); err != nil {
		t.Error(err)
	}
	if err := cfg.Listener.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotKnownWhatWasServed: a server whose mark is gone, or not whole, shows nothing
// until it has applied all that there was, which takes a leader.
func TestNotKnownWhatWasServed(t *testing.T) {
	for what, spoil := range map[string]func(name string) error{
		"gone": os.Remove,
		"torn": func(name string) error {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			for _, at := range []int{0, markStride} {
				if _, seq, ok := decodeServed(b[at : at+servedSize]); ok && seq > 1 {
					b[at+12] ^= 1
				}
			}
			return os.WriteFile(name, b, 0o600)
		},
		"empty": func(name string) error { return os.Truncate(name, 0) },
	} {
		t.Run(what, func(t *testing.T) {
			c := newTestCluster(t, loopback())
			a := c.begin("a", "b", "c")
			mustPut(t, a, "g", "x")
			b := c.servers["b"]
			waitIndex(t, b, a.State().Index())
			shown, _ := see(t, b, patience)
			for _, name := range []string{"a", "b", "c"} {
				c.kill(name)
			}
			if err := spoil(filepath.Join(c.dir, "b", servedFile)); err != nil {
				t.Fatal(err)
			}
			b = c.start("b")
			if st, is := see(t, b, 200*time.Millisecond); is {
				t.Fatalf("it shows %d", st.Index())
			}
			if need, is := b.Withheld(); !is || need < shown.Index() {
				t.Errorf("it must come to %d, it has shown %d", need, shown.Index())
			}
			c.start("a")
			if st, is := see(t, b, patience); !is || st.Index() < shown.Index() {
				t.Error("with a leader it shows nothing, or less")
			}
			if _, is := b.Withheld(); is {
				t.Error("it is withheld for ever")
			}
			c.kill("b")
			if st, is := see(t, c.start("b"), patience); !is || st.Index() < shown.Index() {
				t.Error("after one more restart it shows less")
			}
		})
	}
}

// TestLogEndsBeforeServed: a log that lacks what was served is damaged.
func TestLogEndsBeforeServed(t *testing.T) {
	c := newTestCluster(t, loopback())
	a := c.begin("a")
	mustPut(t, a, "g", "x")
	see(t, a, patience)
	c.kill("a")
	name := filepath.Join(c.dir, "a", servedFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	copy(b, encodeServed(1000, 100))
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(c.config("a")); err == nil {
		s.stop()
		t.Fatal("it opens")
	} else if !isDamage(err) {
		t.Errorf("not called damage: %v", err)
	}
}

// TestServedPower cuts the power at every write and sync of the mark, many times each:
// what the next start reads is what was raised, or was being raised, or it says that it
// does not know.
func TestServedPower(t *testing.T) {
	_, seed := cycles(t, 0)
	unknown := 0
	for at := range 40 {
		for try := range uint64(40) {
			r := rand.New(rand.NewPCG(seed, uint64(at)<<32|try))
			files := newFaulty(r)
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("ZT_SEED=%d, cut at %d, try %d: %v", seed, at, try, err)
				}
			}
			check(files.MakeDir(diskDir))
			check(files.SyncDir(diskDir))
			check(createServed(files, filepath.Join(diskDir, servedFile)))
			m, err := openServed(files, diskDir)
			check(err)
			files.arrange(func(f *faultyFiles) { f.dieAt = f.ops + 1 + at })
			raised, raising := uint64(0), uint64(0)
			for i := uint64(1); ; i++ {
				raising = raised + 1 + r.Uint64N(1<<r.UintN(40))
				if m.raise(raising) != nil {
					break
				}
				raised = raising
			}
			m, err = openServed(files.cut(), diskDir)
			check(err)
			got := m.durable.Load()
			switch {
			case !m.known:
				unknown++
			case got != raised && got != raising:
				t.Fatalf("ZT_SEED=%d, cut at %d, try %d: %d was raised, then %d; it is %d", seed, at, try, raised, raising, got)
			}
			check(m.again())
			check(m.raise(raising + 1))
			again, err := openServed(m.files, diskDir)
			check(err)
			if again.known && again.durable.Load() != raising+1 {
				t.Fatalf("ZT_SEED=%d, cut at %d, try %d: it does not go on", seed, at, try)
			}
		}
	}
	t.Logf("%d of 1600 were torn", unknown)
}

// TestMutatedServed: a number put anywhere into the mark makes it unknown, or leaves it.
func TestMutatedServed(t *testing.T) {
	whole := make([]byte, 2*markStride)
	copy(whole, encodeServed(70, 3))
	copy(whole[markStride:], encodeServed(60, 2))
	for _, slot := range []int{0, markStride} {
		for at := range servedSize {
			for _, number := range []uint64{0, 1, 1<<31 - 1, 1<<63 - 1, 1<<64 - 1} {
				b := bytes.Clone(whole)
				binary.LittleEndian.PutUint64(b[slot+at:], number)
				files := newFaulty(rand.New(rand.NewPCG(1, 1)))
				if err := files.MakeDir(diskDir); err != nil {
					t.Fatal(err)
				}
				if err := replaceFile(files, filepath.Join(diskDir, servedFile), b); err != nil {
					t.Fatal(err)
				}
				m, err := openServed(files, diskDir)
				if err != nil {
					t.Fatal(err)
				}
				if m.known && m.durable.Load() != 70 {
					t.Errorf("%d at %d: it is %d", number, slot+at, m.durable.Load())
				}
			}
		}
	}
}

// BenchmarkServed is what showing one more state costs: a sync of a small file.
func BenchmarkServed(b *testing.B) {
	dir := b.TempDir()
	if err := createServed(osFiles{}, filepath.Join(dir, servedFile)); err != nil {
		b.Fatal(err)
	}
	m, err := openServed(osFiles{}, dir)
	if err != nil {
		b.Fatal(err)
	}
	for i := uint64(1); b.Loop(); i++ {
		if err := m.raise(i); err != nil {
			b.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
}
