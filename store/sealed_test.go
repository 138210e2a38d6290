package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// found tells which files below dir hold the text.
func found(t *testing.T, dir, text string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// What is proposed stands nowhere on a disk in clear: not in the log, not in a
// snapshot that was taken, and not in one that came from a leader.
func TestDiskTellsNothing(t *testing.T) {
	c := newTestCluster(t, loopback())
	s := c.begin("a", "b", "c")
	const canary = "canary: what nobody may read"
	c.kill("c")
	mustPut(t, s, "g", canary)
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	// So far behind that only a snapshot helps.
	if err := s.sealed.DeleteRange(1, s.raft.AppliedIndex()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(c.dir, "c")); err != nil {
		t.Fatal(err)
	}
	behind := c.start("c")
	wait(t, behind, func(uint64) bool {
		d, ok := documentAt(behind.State(), "g")
		return ok && string(d.Bytes) == canary
	})
	snapshots, err := filepath.Glob(filepath.Join(c.dir, "c", "snapshots", "*"))
	if err != nil || len(snapshots) == 0 {
		t.Fatalf("c was not sent a snapshot: %v, %v", snapshots, err)
	}
	if names := found(t, c.dir, canary); len(names) > 0 {
		t.Errorf("in clear in %v", names)
	}
	if names := found(t, c.dir, canary[:8]); len(names) > 0 {
		t.Errorf("in part in %v", names)
	}
	c.kill("c")
	again := c.start("c")
	wait(t, again, func(uint64) bool {
		d, ok := documentAt(again.State(), "g")
		return ok && string(d.Bytes) == canary
	})
}

// A folder without its keys, or with another server's, does not open, and is as it
// was afterwards.
func TestDiskOfAnotherCipher(t *testing.T) {
	for _, name := range []string{"log only", "snapshot only"} {
		c := newTestCluster(t, loopback())
		s := c.begin("a")
		mustPut(t, s, "g", "x")
		if name == "snapshot only" {
			if err := s.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		c.kill("a")
		cfg := c.config("a")
		cfg.Cipher = newCipher(t)
		if _, err := Open(cfg); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
		waitLeads(t, c.start("a"))
	}
}

// An entry opens where it was written, and as what it was written.
func TestEntriesAreBoundToTheirPlace(t *testing.T) {
	cipher := newCipher(t)
	e := raft.Log{Index: 7, Term: 3, Type: raft.LogCommand, Data: []byte("x"), Extensions: []byte("e")}
	sealed, _ := sealEntry(cipher, &e, []byte("before"))
	for name, move := range map[string]func(*raft.Log){
		"index": func(l *raft.Log) { l.Index++ }, "term": func(l *raft.Log) { l.Term++ },
		"type":       func(l *raft.Log) { l.Type = raft.LogConfiguration },
		"extensions": func(l *raft.Log) { l.Extensions = []byte("f") }, "data": func(l *raft.Log) { l.Data = e.Data },
	} {
		moved := sealed
		move(&moved)
		if err := openEntry(cipher, &moved); !errors.Is(err, errSealed) {
			t.Errorf("with another %s: %v", name, err)
		}
	}
	if err := openEntry(cipher, &sealed); err != nil || string(sealed.Data) != "x" {
		t.Errorf("%q, %v", sealed.Data, err)
	}
}

// closed is a Cipher that opens nothing once it is shut.
type closed struct {
	Cipher
	shut atomic.Bool
}

func (c *closed) Open(box, about []byte) ([]byte, error) {
	if c.shut.Load() {
		return nil, errors.New("another key")
	}
	return c.Cipher.Open(box, about)
}

// TestWrongSealStops: an entry whose sum is right, and which does not open while the
// server runs, ends it with what to do; raft would panic, and the process with it.
func TestWrongSealStops(t *testing.T) {
	c := newTestCluster(t, loopback())
	cipher := &closed{Cipher: newCipher(t)}
	c.ciphers["b"] = cipher
	a := c.begin("a", "b", "c")
	mustPut(t, a, "old", "x")
	b := c.servers["b"]
	waitIndex(t, b, a.State().Index())
	b.sealed.tail.mu.Lock()
	b.sealed.tail.most = 0 // what was stored is read from the disk
	b.sealed.tail.mu.Unlock()
	cipher.shut.Store(true)
	mustPut(t, a, "new", "x")
	if err := b.Wait(c.ctx()); !errors.Is(err, ErrUnreadable) || !errors.Is(err, errSealed) {
		t.Errorf("wait: %v", err)
	}
	mustPut(t, a, "newer", "x") // the others go on
}
