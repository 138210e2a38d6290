package store

import (
	"errors"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// TestSnapshotTwiceAtOnce: a follower takes a snapshot while its leader sends it the one
// of the same entry. Each is whole, whichever ends first or is given up.
func TestSnapshotTwiceAtOnce(t *testing.T) {
	for name, end := range map[string]func(raft.SnapshotSink) error{
		"both are kept": raft.SnapshotSink.Close, "one is given up": raft.SnapshotSink.Cancel,
	} {
		failed := func(err error) { t.Errorf("%s: the store ends: %v", name, err) }
		s, _, err := openSnapshots(osFiles{}, t.TempDir(), failed)
		if err != nil {
			t.Fatal(err)
		}
		s.note = func(uint64) error { return nil }
		var sinks [2]raft.SnapshotSink
		for i := range sinks {
			if sinks[i], err = s.Create(raft.SnapshotVersionMax, 7, 2, raft.Configuration{}, 1, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, half := range []string{"one ", "state"} {
			for _, sink := range sinks {
				if _, err := io.WriteString(sink, half); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := end(sinks[0]); err != nil {
			t.Errorf("%s: the first: %v", name, err)
		}
		if err := sinks[1].Close(); err != nil {
			t.Errorf("%s: the second: %v", name, err)
		}
		known, err := s.List()
		if err != nil || len(known) != 1 {
			t.Fatalf("%s: %d snapshots, %v", name, len(known), err)
		}
		_, r, err := s.Open(known[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); string(b) != "one state" || err != nil {
			t.Errorf("%s: it holds %q, %v", name, b, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSnapshotsAtOnce: many end at the same time, of few entries. The newest are kept, and
// what is listed is what is there.
func TestSnapshotsAtOnce(t *testing.T) {
	s, _, err := openSnapshots(osFiles{}, t.TempDir(), func(err error) { t.Errorf("the store ends: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	s.note = func(uint64) error { return nil }
	for round := range uint64(50) {
		var wg sync.WaitGroup
		for i := range uint64(9) {
			sink, err := s.Create(raft.SnapshotVersionMax, 3*round+i%3+1, 2, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if err := sink.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		there, err := filepath.Glob(filepath.Join(s.dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{s.path(snapshotID(3*round+2, 2)), s.path(snapshotID(3*round+3, 2))}
		if !slices.Equal(there, want) || s.covered() != 3*round+3 {
			t.Fatalf("round %d: %q are there, want %q", round, there, want)
		}
	}
}

// TestEndOfSnapshot: of the entry that the newest snapshot ends with, the log knows the
// term, whether it has the entry or not; of no other.
func TestEndOfSnapshot(t *testing.T) {
	failed := func(err error) { t.Errorf("the store ends: %v", err) }
	dir := t.TempDir()
	s, _, err := openSnapshots(osFiles{}, dir, failed)
	if err != nil {
		t.Fatal(err)
	}
	s.note = func(uint64) error { return nil }
	l, err := openLog(osFiles{}, dir, 0, 0, failed)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	log := &sealedLog{logStore: l, cipher: newCipher(t), ends: s.ends}
	if err := log.GetLog(0, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("without a snapshot: %v", err)
	}
	sink, err := s.Create(raft.SnapshotVersionMax, 47, 2, raft.Configuration{}, 1, nil)
	if err == nil {
		err = sink.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := log.StoreLog(&raft.Log{Index: 48, Term: 3}); err != nil {
		t.Fatal(err)
	}
	for index, term := range map[uint64]uint64{46: 0, 47: 2, 48: 3, 49: 0} {
		var e raft.Log
		err := log.GetLog(index, &e)
		if found := err == nil; found != (term > 0) || e.Term != term {
			t.Errorf("entry %d is of term %d, %v", index, e.Term, err)
		}
		if index == 47 && e.Type != entryOfSnapshot {
			t.Errorf("what only the snapshot holds has type %v, which raft might apply", e.Type)
		}
	}
}
