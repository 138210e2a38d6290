package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
)

// TestTailIsTheLog: whatever is stored, cut and refused, what is kept in memory is
// never anything else than what the disk has.
func TestTailIsTheLog(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	disk := &refusing{InmemStore: raft.NewInmemStore()}
	log := &sealedLog{logStore: disk, cipher: newCipher(t), tail: logTail{most: tailEntries}}
	first, last := uint64(1), uint64(0)
	hits := 0
	for step := range 2000 {
		switch n := r.Uint64N(10); {
		case n < 6:
			var batch []*raft.Log
			for i := range 1 + r.Uint64N(40) {
				batch = append(batch, &raft.Log{Index: last + 1 + i, Term: uint64(step), Data: fmt.Append(nil, step, " ", i)})
			}
			disk.refuse = r.Uint64N(10) == 0
			if err := log.StoreLogs(batch); (err != nil) != disk.refuse {
				t.Fatal(err)
			} else if err == nil {
				last = batch[len(batch)-1].Index
			}
		case n == 6 && last > first: // raft cuts what the leader does not have
			from := first + r.Uint64N(last-first)
			if err := log.DeleteRange(from, last); err != nil {
				t.Fatal(err)
			}
			last = from - 1
		case n == 7 && last > first: // or what a snapshot covers
			to := first + r.Uint64N(last-first)
			if err := log.DeleteRange(first, to); err != nil {
				t.Fatal(err)
			}
			first = to + 1
		}
		for range 20 {
			index := r.Uint64N(last + 3)
			var got, want raft.Log
			err := log.GetLog(index, &got)
			if index < first || index > last {
				if !errors.Is(err, raft.ErrLogNotFound) {
					t.Fatalf("step %d: entry %d of [%d, %d]: %v", step, index, first, last, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if log.tail.get(index, &want) {
				hits++
			}
			if err := disk.GetLog(index, &want); err != nil {
				t.Fatal(err)
			}
			if err := openEntry(log.cipher, &want); err != nil {
				t.Fatal(err)
			}
			if got.Index != want.Index || got.Term != want.Term || string(got.Data) != string(want.Data) {
				t.Fatalf("step %d: entry %d is %v, on disk %v", step, index, got, want)
			}
		}
	}
	if hits < 200 {
		t.Errorf("%d entries came from memory: that shows too little", hits)
	}
}

// TestTailIsBounded: it keeps the newest entry, and of the others as many as there
// is room for.
func TestTailIsBounded(t *testing.T) {
	r := logTail{most: tailEntries}
	var index uint64
	add := func(size int) {
		index++
		r.add([]*raft.Log{{Index: index, Data: make([]byte, size)}})
	}
	for range 3 * tailEntries {
		add(10)
	}
	if n := len(r.entries); n != tailEntries || r.bytes != 10*tailEntries {
		t.Errorf("%d entries of %d bytes are kept", n, r.bytes)
	}
	add(tailBytes + 1)
	if n := len(r.entries); n != 1 || !r.get(index, &raft.Log{}) {
		t.Errorf("%d entries are kept beside a large one", n)
	}
	add(10)
	if n := len(r.entries); n != 1 || r.bytes != 10 {
		t.Errorf("%d entries of %d bytes are kept after a large one", n, r.bytes)
	}
}

// refusing is a log that refuses to store where it is told so.
type refusing struct {
	*raft.InmemStore
	refuse bool
}

func (r *refusing) IsMonotonic() bool { return true }

func (r *refusing) StoreLogs(logs []*raft.Log) error {
	if r.refuse {
		return errors.New("no")
	}
	var kept []*raft.Log // what it is given will be written over
	for _, l := range logs {
		c := *l
		c.Data = bytes.Clone(l.Data)
		kept = append(kept, &c)
	}
	return r.InmemStore.StoreLogs(kept)
}
