package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// faultyCluster is a cluster of one server on a file system that the test breaks.
func faultyCluster(t *testing.T, set func(*Config)) (*testCluster, *faultyFiles, func() (*Store, error)) {
	c := newTestCluster(t, loopback())
	c.timing.Heartbeat, c.timing.Election, c.timing.Lease = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	files := newFaulty(rand.New(rand.NewPCG(1, 2)))
	return c, files, func() (*Store, error) {
		cfg := c.config("a")
		cfg.Files, cfg.Dir, cfg.Cipher, cfg.segment = files, "/a", noCipher{}, 64<<10
		set(&cfg)
		s, err := Open(cfg)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = s.stop() })
		waitLeads(t, s)
		if !s.State().Initialized() {
			if _, err := s.Propose(c.ctx(), initEntry()); err != nil {
				t.Fatal(err)
			}
		}
		return s, nil
	}
}

// TestDiskFull: what adds is refused while there is little room, what takes away is
// not, and all is taken again once there is.
func TestDiskFull(t *testing.T) {
	c, files, start := faultyCluster(t, func(cfg *Config) { cfg.Reserve = 256 << 10 })
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "g", "x")
	hasReserve := func() bool { return len(files.matching("/"+reserveFile)) == 1 }
	if s.Full() || !hasReserve() {
		t.Fatalf("full: %v, reserve: %v", s.Full(), hasReserve())
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for timeout := time.After(patience); !ok(); {
			select {
			case <-tick.C:
			case <-timeout:
				t.Fatalf("never %s", what)
			}
		}
	}
	files.arrange(func(f *faultyFiles) { f.room = 200 << 10 })
	until("full", s.Full)
	if _, err := put(c.ctx(), s, "h", "x"); !errors.Is(err, ErrFull) {
		t.Errorf("put: %v", err)
	}
	if !hasReserve() {
		t.Error("the reserve is given back while there is room")
	}
	// Nothing is left: the reserve is for what takes away.
	files.arrange(func(f *faultyFiles) { f.room = 0 })
	until("without a reserve", func() bool { return !hasReserve() })
	for i := range 200 { // more than a segment
		e := putEntry(s.State().Revision(), fmt.Sprint("b", i), strings.Repeat("x", 500))
		e.GetApply().GetPuts()[0].Key.Kind = "Block"
		if r, err := s.Propose(c.ctx(), e); err != nil || r.Err != nil {
			t.Fatalf("block %d: %v, %v", i, err, r.Err)
		}
	}
	del := &logv1.Entry{Op: &logv1.Entry_Apply{Apply: &logv1.Apply{
		ValidatedAt: s.State().Revision(), Deletes: []*logv1.Key{{Kind: "Grant", Namespace: "shop", Name: "g"}},
	}}}
	if r, err := s.Propose(c.ctx(), del); err != nil || r.Err != nil {
		t.Errorf("delete: %v, %v", err, r.Err)
	}
	if err := s.Barrier(c.ctx()); err != nil {
		t.Errorf("read: %v", err)
	}
	files.arrange(func(f *faultyFiles) { f.room = 1 << 20 })
	until("roomy", func() bool { return !s.Full() })
	if !hasReserve() {
		t.Error("the reserve is not taken again")
	}
	mustPut(t, s, "h", "x")
}

// TestFullWithoutReserve: a log that finds no room says so, and nothing is lost.
func TestFullWithoutReserve(t *testing.T) {
	c, files, start := faultyCluster(t, func(*Config) {})
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	files.arrange(func(f *faultyFiles) { f.room = 0 })
	var taken []string
	for i := 0; ; i++ {
		name := fmt.Sprint("g", i)
		r, err := put(c.ctx(), s, name, strings.Repeat("x", 1000))
		if err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatalf("put: %v", err)
			}
			break
		}
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		taken = append(taken, name)
	}
	if len(taken) < 10 {
		t.Fatalf("only %d entries fit", len(taken))
	}
	// A full disk makes no snapshot; the one before, or the log, is enough.
	if err := s.raft.Snapshot().Error(); err == nil {
		t.Error("a snapshot on a full disk")
	}
	files.arrange(func(f *faultyFiles) { f.room = -1 })
	waitLeads(t, s)
	mustPut(t, s, "after", "x")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if s, err = start(); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(taken, "after") {
		if _, ok := documentAt(s.State(), name); !ok {
			t.Errorf("%s is lost", name)
		}
	}
}

// TestSyncErrorStops: a disk that refuses one sync ends the server, which says why,
// whatever it was writing.
func TestSyncErrorStops(t *testing.T) {
	for name, do := range map[string]func(*testCluster, *Store){
		"write log": func(c *testCluster, s *Store) {
			if _, err := s.Propose(c.ctx(), putEntry(0, "g", "x")); !errors.Is(err, ErrUnknown) {
				t.Errorf("propose: %v", err)
			}
		},
		// Raft itself panics when it cannot write its vote; here its goroutine does it.
		"write terms": func(_ *testCluster, s *Store) {
			done := make(chan bool)
			go func() {
				defer close(done)
				_ = s.log.SetUint64([]byte("CurrentTerm"), 99)
				t.Error("raft would go on")
			}()
			<-done
		},
		"write snapshot": func(_ *testCluster, s *Store) { _ = s.raft.Snapshot().Error() },
	} {
		t.Run(name, func(t *testing.T) {
			c, files, start := faultyCluster(t, func(*Config) {})
			s, err := start()
			if err != nil {
				t.Fatal(err)
			}
			waitMarked(t, s)
			files.arrange(func(f *faultyFiles) { f.syncEIO = 1 })
			do(c, s)
			if err := s.Wait(c.ctx()); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), name) {
				t.Errorf("wait: %v", err)
			}
		})
	}
}

// waitMarked waits until the mark is written, so that the next sync is not its.
func waitMarked(t *testing.T, s *Store) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); ; {
		s.log.mark.mu.Lock()
		ok := s.log.mark.now == s.log.mark.written
		s.log.mark.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("the mark is never written")
		}
	}
}

// TestScrub: damage that comes while the server runs ends it, with the file's name.
func TestScrub(t *testing.T) {
	for _, suffix := range []string{segmentSuffix, snapshotSuffix} {
		t.Run(suffix, func(t *testing.T) {
			c, files, start := faultyCluster(t, func(cfg *Config) { cfg.Timing.Scrub = 10 * time.Millisecond })
			s, err := start()
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, "g", "a document to be damaged")
			if err := s.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			name := files.matching(suffix)[0]
			files.arrange(func(f *faultyFiles) {
				b := f.names[name].seen
				b[bytes.Index(b, []byte("a document to be"))] ^= 4
			})
			if err := s.Wait(c.ctx()); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), name) {
				t.Errorf("wait: %v", err)
			}
			if s.Wait(c.ctx()); s.IsLeader() {
				if err := s.stop(); err != nil {
					t.Error(err)
				}
				if s.IsLeader() {
					t.Error("it leads on")
				}
			}
		})
	}
}

// TestDamagedSnapshot: the one before it is used if, and only if, the log has all
// that lies between; the damaged one is kept.
func TestDamagedSnapshot(t *testing.T) {
	for _, trimmed := range []bool{false, true} {
		t.Run(fmt.Sprint(trimmed), func(t *testing.T) {
			c, files, start := faultyCluster(t, func(cfg *Config) {
				if cfg.segment = 4 << 10; trimmed {
					cfg.Timing.TrailingEntries = 1
				} else {
					cfg.Timing.TrailingEntries = 1000
				}
			})
			s, err := start()
			if err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				mustPut(t, s, fmt.Sprint("g", i), strings.Repeat("x", 500))
				if !trimmed && (i == 4 || i == 6) || trimmed && i == 19 {
					if err := s.raft.Snapshot().Error(); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := s.State()
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			snaps := files.matching(snapshotSuffix)
			newest := snaps[len(snaps)-1]
			files.damage(newest, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
			s, err = start()
			if trimmed {
				if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), newest) {
					t.Errorf("open: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Barrier(c.ctx()); err != nil {
				t.Fatal(err)
			}
			if !state.Diff(before, s.State()).Empty() {
				t.Error("the state is another")
			}
			if kept := files.matching(damagedSuffix); len(kept) != 1 || kept[0] != newest+damagedSuffix {
				t.Errorf("kept: %v", kept)
			}
		})
	}
}

// TestLostFiles: a log that is gone, or ends before what was acknowledged, is no
// empty log.
func TestLostFiles(t *testing.T) {
	for _, lost := range []string{"log", "log/*", termsFile, markFile} {
		t.Run(lost, func(t *testing.T) {
			_, files, start := faultyCluster(t, func(*Config) {})
			s, err := start()
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, "g", "x")
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			for _, name := range sortedKeys(files.names) {
				rel, _ := filepath.Rel("/a", name)
				if ok, _ := filepath.Match(lost, rel); ok || strings.HasPrefix(rel, lost+"/") {
					delete(files.names, name)
				}
			}
			if s, err := start(); !errors.Is(err, ErrUnreadable) {
				t.Errorf("open: %v, %v", s, err)
			}
		})
	}
}
