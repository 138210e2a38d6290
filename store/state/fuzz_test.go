package state_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// FuzzReplay is TestProperties with logs that a fuzzer draws.
func FuzzReplay(f *testing.F) { f.Fuzz(rapid.MakeFuzz(properties)) }

// FuzzLog applies whatever bytes decode to, entry after entry, as a server does: never
// a panic, twice the same, and the same from a snapshot in between. An entry that is
// not known stops it there.
func FuzzLog(f *testing.F) {
	var all []byte
	for _, e := range sampleEntries(f) {
		b, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		all = append(binary.AppendUvarint(all, uint64(len(b))), b...)
		f.Add(uint8(1), append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	}
	for split := range uint8(8) {
		f.Add(split, all)
	}
	start := sample3(f)
	f.Fuzz(func(t *testing.T, split uint8, b []byte) {
		var entries []*logv1.Entry
		for len(b) > 0 && len(entries) < 50 {
			size, n := binary.Uvarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				break
			}
			e := &logv1.Entry{}
			if proto.Unmarshal(b[n:n+int(size)], e) != nil {
				break
			}
			entries, b = append(entries, e), b[n+int(size):]
		}
		run := func(s *state.State, entries []*logv1.Entry) *state.State {
			for _, e := range entries {
				next, r := state.Apply(s, s.Index()+1, proto.CloneOf(e))
				if errors.Is(r.Err, state.ErrUnknownEntry) {
					if next != s {
						t.Fatalf("an entry that is not known has changed something: %v", e)
					}
					return s
				}
				if e.GetFormat() < 1 || e.GetFormat() > state.Format || e.GetOp() == nil {
					t.Fatalf("an entry that nobody knows was answered %v: %v", r.Err, e)
				}
				if d := state.Diff(s, next); !covers(r.Changed, d) || r.Err != nil && !d.Empty() {
					t.Fatalf("%v: changed %+v, told %+v, %v", e, d, r.Changed, r.Err)
				}
				s = next
			}
			return s
		}
		end := snapshotOf(t, run(start, entries))
		if !bytes.Equal(snapshotOf(t, run(start, entries)), end) {
			t.Fatal("the same entries lead elsewhere")
		}
		at := min(int(split), len(entries))
		middle := run(start, entries[:at])
		if middle.Index() != start.Index()+uint64(at) {
			return // It has stopped before.
		}
		s, err := state.Read(bytes.NewReader(snapshotOf(t, middle)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshotOf(t, run(s, entries[at:])), end) {
			t.Fatal("snapshot and tail lead elsewhere than the log")
		}
	})
}

// sampleEntries are one of each kind, in every format, and some that are not known.
func sampleEntries(t testing.TB) []*logv1.Entry {
	c := newCluster(t)
	kinds := []*logv1.Entry{
		c.put(doc("Workload", "shop", "web", "w"), doc("Grant", "shop", "g", "1")), c.token("a", "shop/web"), redeem("a", "i", "shop/web"),
		{Op: &logv1.Entry_Endpoints{Endpoints: &logv1.Endpoints{Withdraw: []string{"i1"}, Restore: []string{"i1"}}}},
		{Op: &logv1.Entry_Place{Place: &logv1.Place{Instance: "i1", Zone: "north", Weight: 3}}},
		{Op: &logv1.Entry_Init{Init: initOp()}},
		{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "eve", Role: "editor"}}}},
		{Op: &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: "root"}}},
		{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s1"}}}},
		{Op: &logv1.Entry_DeleteServer{DeleteServer: &logv1.DeleteServer{Id: "s1"}}},
		{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: "i1"}}},
		{Op: &logv1.Entry_DeleteToken{DeleteToken: &logv1.DeleteToken{Id: "b"}}},
		propose("shop", doc("Grant", "shop", "g", "3")),
		applyEntry(&logv1.Apply{
			Deletes: []*logv1.Key{key("Workload", "shop", "web")}, Retired: []*logv1.Retired{c.retired("shop/web", time.Hour)},
			EndsProposals: []string{"shop"},
		}),
		{},
	}
	var all []*logv1.Entry
	for _, e := range kinds {
		for format := range uint32(state.Format + 2) {
			e := proto.CloneOf(e)
			e.Format, e.When = format, timestamppb.New(epoch.Add(time.Hour))
			e.IdempotencyKey, e.OperationHash = "k", hashOf("k")
			all = append(all, e)
		}
	}
	return all
}

// TestUnknownStops: an operation of a later version is not skipped, in whatever format
// it comes.
func TestUnknownStops(t *testing.T) {
	s := sample(t)
	for format := range uint32(state.Format + 3) {
		b, err := proto.Marshal(&logv1.Entry{Format: format, When: timestamppb.New(s.When())})
		if err != nil {
			t.Fatal(err)
		}
		b = protowire.AppendTag(b, 999, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte("what the future brings"))
		e := &logv1.Entry{}
		if err := proto.Unmarshal(b, e); err != nil {
			t.Fatal(err)
		}
		if next, r := state.Apply(s, s.Index()+1, e); next != s || !errors.Is(r.Err, state.ErrUnknownEntry) {
			t.Errorf("format %d: %v", format, r.Err)
		}
	}
}

// FuzzSnapshot edits the records of a snapshot, and gives it right sums: what Read
// takes then is a state like any other, and what it refuses it refuses as ErrSnapshot.
func FuzzSnapshot(f *testing.F) {
	whole := snapshotOf(f, sample3(f))
	for op := range uint8(6) {
		for at := range uint8(20) {
			f.Add([]byte{op, at, at + 1, 7})
		}
	}
	entries := sampleEntries(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		records := bodies(whole)
		for ; len(script) >= 4 && len(records) > 0; script = script[4:] {
			records = edit(records, script[0], int(script[1]), int(script[2]), script[3])
		}
		s, err := state.Read(bytes.NewReader(sealed(records)))
		if err != nil {
			if !errors.Is(err, state.ErrSnapshot) {
				t.Fatal(err)
			}
			return
		}
		again, err := state.Read(bytes.NewReader(snapshotOf(t, s)))
		if err != nil || !state.Diff(s, again).Empty() || !bytes.Equal(snapshotOf(t, s), snapshotOf(t, again)) {
			t.Fatalf("read, written and read again: %v", err)
		}
		for _, e := range entries {
			s, _ = state.Apply(s, s.Index()+1, e)
		}
		snapshotOf(t, s)
	})
}

// edit changes one record, or the order of two.
func edit(records [][]byte, op uint8, i, j int, b byte) [][]byte {
	i, j = i%len(records), j%len(records)
	switch op % 6 {
	case 0:
		return slices.Delete(records, i, i+1)
	case 1:
		return slices.Insert(records, j, records[i])
	case 2:
		records[i], records[j] = records[j], records[i]
	case 3:
		records[i] = records[i][:len(records[i])*int(b)/256]
	case 4:
		if n := len(records[i]); n > 0 {
			records[i] = slices.Clone(records[i])
			records[i][j%n] = b
		}
	case 5: // fields of both
		records[i] = append(slices.Clone(records[i]), records[j]...)
	}
	return records
}

// bodies are the records of a snapshot but its End.
func bodies(snapshot []byte) (records [][]byte) {
	for b := snapshot; len(b) > 0; {
		size, n := binary.Uvarint(b)
		records, b = append(records, b[n:n+int(size)]), b[n+int(size):]
	}
	return records[:len(records)-1]
}

func sealed(records [][]byte) (b []byte) {
	for _, r := range records {
		b = append(binary.AppendUvarint(b, uint64(len(r))), r...)
	}
	end, err := proto.Marshal(&logv1.Record{Record: &logv1.Record_End{End: &logv1.End{Records: uint64(len(records)), Sha256: hashOf(string(b))}}})
	if err != nil {
		panic(err)
	}
	return append(binary.AppendUvarint(b, uint64(len(end))), end...)
}

// TestHugeLengths: CVE-2020-15106. A length that is damaged costs no more memory than
// there are bytes, wherever it stands.
func TestHugeLengths(t *testing.T) {
	whole := snapshotOf(t, sample3(t))
	for _, length := range []uint64{1 << 20, 1<<20 + 1, 1 << 30, 1<<31 - 1, 1 << 31, 1 << 62, 1<<64 - 1} {
		at := 0
		for _, r := range bodies(whole) {
			bad := binary.AppendUvarint(slices.Clone(whole[:at]), length)
			bad = append(bad, whole[at:]...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := state.Read(bytes.NewReader(bad))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, state.ErrSnapshot) {
				t.Fatalf("length %d at %d: %v", length, at, err)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("length %d at %d of %d bytes took %d bytes of memory", length, at, len(whole), took)
			}
			at += len(binary.AppendUvarint(nil, uint64(len(r)))) + len(r)
		}
	}
}
