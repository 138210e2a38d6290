package state_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

var update = flag.Bool("update", false, "write the golden snapshots that are not there")

// sample1 is a state with something in every collection of format 1.
func sample1(t testing.TB) *state.State { return sampleCluster(t).s }

// sample is one with something in every collection.
func sample(t testing.TB) *state.State { return sampleOf(t).s }

func sampleOf(t testing.TB) *cluster {
	c := sampleCluster(t)
	c.must(c.put(doc("Workload", "shop", "old", "o"), doc("Workload", "bank", "old", "o")))
	e := applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Deletes: []*logv1.Key{key("Workload", "shop", "old"), key("Workload", "bank", "old")}})
	e.GetApply().Retired = []*logv1.Retired{c.retired("shop/old", 2*time.Hour), c.retired("bank/old", time.Hour)}
	c.must(e)
	e = propose("shop", doc("Workload", "shop", "web", "w2"), doc("Grant", "shop", "g", "3"))
	e.GetPropose().Message = "try"
	c.must(e)
	c.must(propose("bank"))
	return c
}

// sample3 is sample after a change that named a lineage.
func sample3(t testing.TB) *state.State {
	s := sample(t)
	l := s.Lineage()
	e := applyEntry(&logv1.Apply{Lineage: l[:], Puts: []*logv1.Put{doc("Grant", "shop", "g", "4")}})
	e.Format = state.Format
	s, r := state.Apply(s, s.Index()+1, e)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	return s
}

func sampleCluster(t testing.TB) *cluster {
	c := newCluster(t)
	e := c.put(doc("Mesh", "mesh", "mesh", "m"), doc("Workload", "shop", "web", "w"), doc("Grant", "shop", "g", "1"))
	e.GetApply().Message = "start"
	e.IdempotencyKey, e.OperationHash = "k1", hashOf("k1")
	c.must(e)
	e = c.put(doc("Grant", "shop", "g", "2"))
	e.IdempotencyKey, e.OperationHash = "k0", hashOf("k0")
	c.must(e)
	c.must(applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Deletes: []*logv1.Key{{Kind: "Mesh", Namespace: "mesh", Name: "mesh"}}}))
	c.must(c.token("a", "shop/web"))
	c.must(redeem("a", "i1", "shop/web"))
	c.must(c.token("b", "shop/web"))
	c.must(c.token("s", ""))
	c.must(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s1", Version: "v1"}}}})
	c.must(&logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: "eve", Role: "editor", Namespaces: []string{"shop"}}}}})
	return c
}

// TestGoldenSnapshots: what any release has written still restores, to the same
// state. A golden file is never rewritten.
func TestGoldenSnapshots(t *testing.T) {
	samples := map[string]func(testing.TB) *state.State{"format-1.snapshot": sample1, "format-2.snapshot": sample, "format-3-lineage.snapshot": sample3, "format-3-audit.snapshot": sampleAudit}
	golden, err := filepath.Glob(filepath.Join("testdata", "*.snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range golden {
		if samples[filepath.Base(name)] == nil {
			t.Errorf("%s: nobody knows what it holds", name)
		}
	}
	for name, sample := range samples {
		name = filepath.Join("testdata", name)
		if _, err := os.Stat(name); *update && errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(name, snapshotOf(t, sample(t)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := state.Read(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := state.Diff(sample(t), s); !d.Empty() {
			t.Errorf("%s differs: %+v", name, d)
		}
		if !bytes.Equal(snapshotOf(t, s), snapshotOf(t, sample(t))) {
			t.Errorf("%s restores to another state", name)
		}
	}
}

func TestSnapshotSharesBytesAgain(t *testing.T) {
	s, err := state.Read(bytes.NewReader(snapshotOf(t, sample(t))))
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Collect(s.Revisions(0))
	all = all[len(all)-3:]
	change := all[1].GetChanges()[0] // Grant shop/g, 1 → 2
	d, _ := s.Document(state.Key{Kind: "Grant", Namespace: "shop", Name: "g"})
	if &d.Bytes[0] != &change.GetAfter()[0] || &change.GetBefore()[0] != &all[2].GetChanges()[0].GetAfter()[0] {
		t.Error("documents are in memory more than once")
	}
}

// TestDamagedSnapshots: CVE-2020-15106, CVE-2020-15112. Every flipped bit and
// every cut is found, and none makes Read panic.
func TestDamagedSnapshots(t *testing.T) {
	whole := snapshotOf(t, sample(t))
	for i := range whole {
		for bit := range 8 {
			bad := slices.Clone(whole)
			bad[i] ^= 1 << bit
			if _, err := state.Read(bytes.NewReader(bad)); !errors.Is(err, state.ErrSnapshot) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if _, err := state.Read(bytes.NewReader(whole[:i])); !errors.Is(err, state.ErrSnapshot) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := state.Read(bytes.NewReader(append(slices.Clone(whole), 0))); !errors.Is(err, state.ErrSnapshot) {
		t.Errorf("one byte more: %v", err)
	}
	broken := errors.New("disk")
	for _, n := range []int64{0, 1, int64(len(whole)) - 1, int64(len(whole))} {
		r := io.MultiReader(io.LimitReader(bytes.NewReader(whole), n), iotest.ErrReader(broken))
		if _, err := state.Read(r); !errors.Is(err, broken) {
			t.Errorf("read error after %d bytes: %v", n, err)
		}
	}
}

// TestForgedSnapshots: the sums agree, the content does not.
func TestForgedSnapshots(t *testing.T) {
	var records []*logv1.Record
	for b := snapshotOf(t, sample(t)); len(b) > 0; {
		size, n := binary.Uvarint(b)
		rec := &logv1.Record{}
		if err := proto.Unmarshal(b[n:n+int(size)], rec); err != nil {
			t.Fatal(err)
		}
		records, b = append(records, rec), b[n+int(size):]
	}
	records = records[:len(records)-1]
	if _, err := state.Read(bytes.NewReader(forge(t, records))); err != nil {
		t.Fatalf("as it was: %v", err)
	}
	find := func(rs []*logv1.Record, is func(*logv1.Record) bool) int { return slices.IndexFunc(rs, is) }
	isDoc := func(r *logv1.Record) bool { return r.GetDocument() != nil }
	outcome := func(rs []*logv1.Record, n int) *logv1.Outcome {
		return rs[find(rs, func(r *logv1.Record) bool { return r.GetOutcome() != nil })+n].GetOutcome()
	}
	proposed := func(rs []*logv1.Record) *logv1.Proposal { return rs[len(rs)-1].GetProposal() }
	for name, change := range map[string]func([]*logv1.Record) []*logv1.Record{
		"newer format":      func(rs []*logv1.Record) []*logv1.Record { rs[0].GetHeader().Format = state.Format + 1; return rs },
		"no format":         func(rs []*logv1.Record) []*logv1.Record { rs[0].GetHeader().Format = 0; return rs },
		"no time":           func(rs []*logv1.Record) []*logv1.Record { rs[0].GetHeader().When = nil; return rs },
		"revision too high": func(rs []*logv1.Record) []*logv1.Record { rs[0].GetHeader().Revision = 1 << 40; return rs },
		"no header":         func(rs []*logv1.Record) []*logv1.Record { return rs[1:] },
		"two headers":       func(rs []*logv1.Record) []*logv1.Record { return slices.Insert(rs, 1, rs[0]) },
		"unknown record":    func(rs []*logv1.Record) []*logv1.Record { return append(rs, &logv1.Record{}) },
		"twice":             func(rs []*logv1.Record) []*logv1.Record { return slices.Insert(rs, 2, rs[1]) },
		"out of order":      func(rs []*logv1.Record) []*logv1.Record { rs[1], rs[2] = rs[2], rs[1]; return rs },
		"section back":      func(rs []*logv1.Record) []*logv1.Record { return append(rs, rs[1]) },
		"document without bytes": func(rs []*logv1.Record) []*logv1.Record {
			rs[find(rs, isDoc)].GetDocument().GetPut().Document = nil
			return rs
		},
		"outcome without a time": func(rs []*logv1.Record) []*logv1.Record {
			outcome(rs, 0).When = nil
			return rs
		},
		"key with two outcomes": func(rs []*logv1.Record) []*logv1.Record {
			outcome(rs, 0).Key = outcome(rs, 1).GetKey()
			return rs
		},
		"older format": func(rs []*logv1.Record) []*logv1.Record { rs[0].GetHeader().Format = 1; return rs },
		"retired without a time": func(rs []*logv1.Record) []*logv1.Record {
			rs[find(rs, func(r *logv1.Record) bool { return r.GetRetired() != nil })].GetRetired().Until = nil
			return rs
		},
		"proposal for elsewhere": func(rs []*logv1.Record) []*logv1.Record {
			proposed(rs).GetPuts()[1].GetKey().Namespace = "zoo"
			return rs
		},
		"proposal out of order": func(rs []*logv1.Record) []*logv1.Record {
			slices.Reverse(proposed(rs).GetPuts())
			return rs
		},
		"proposal without bytes": func(rs []*logv1.Record) []*logv1.Record {
			proposed(rs).GetPuts()[0].Document = nil
			return rs
		},
		"proposal for nothing": func(rs []*logv1.Record) []*logv1.Record {
			return slices.Insert(rs, len(rs)-2, &logv1.Record{Record: &logv1.Record_Proposal{Proposal: &logv1.Proposal{}}})
		},
		"nothing": func([]*logv1.Record) []*logv1.Record { return nil },
	} {
		var copied []*logv1.Record
		for _, r := range records {
			copied = append(copied, proto.CloneOf(r))
		}
		if _, err := state.Read(bytes.NewReader(forge(t, change(copied)))); !errors.Is(err, state.ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// forge writes records and a right End.
func forge(t *testing.T, records []*logv1.Record) []byte {
	var b []byte
	put := func(r *logv1.Record) {
		body, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		b = append(binary.AppendUvarint(b, uint64(len(body))), body...)
	}
	for _, r := range records {
		put(r)
	}
	put(&logv1.Record{Record: &logv1.Record_End{End: &logv1.End{Records: uint64(len(records)), Sha256: hashOf(string(b))}}})
	return b
}

func TestWriteError(t *testing.T) {
	s := sample(t)
	whole := int64(len(snapshotOf(t, s)))
	for _, n := range []int64{0, 1, whole / 2, whole - 1} {
		if got, err := s.WriteTo(&shortWriter{n}); err == nil || got > n {
			t.Errorf("a disk with room for %d of %d bytes: %d written, %v", n, whole, got, err)
		}
	}
}

type shortWriter struct{ room int64 }

func (w *shortWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.room {
		n := w.room
		w.room = 0
		return int(n), io.ErrShortWrite
	}
	w.room -= int64(len(p))
	return len(p), nil
}

func FuzzRead(f *testing.F) {
	f.Add(snapshotOf(f, sample(f)))
	f.Add(snapshotOf(f, sample3(f)))
	f.Add(snapshotOf(f, state.New()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := state.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := state.Read(bytes.NewReader(snapshotOf(t, s))); err != nil || !state.Diff(s, again).Empty() {
			t.Fatalf("read, written and read again: %v", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	c := newCluster(f)
	for _, e := range []*logv1.Entry{
		c.put(doc("Workload", "shop", "web", "w")), c.token("a", "shop/web"), redeem("a", "i", "shop/web"),
		{Op: &logv1.Entry_Endpoints{Endpoints: &logv1.Endpoints{Withdraw: []string{"i1"}}}},
		propose("shop", doc("Grant", "shop", "g", "3")),
		applyEntry(&logv1.Apply{
			Deletes: []*logv1.Key{key("Workload", "shop", "web")}, Retired: []*logv1.Retired{c.retired("shop/web", time.Hour)},
			EndsProposals: []string{"shop"},
		}),
	} {
		e.Format = state.Format
		b, err := proto.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	start := sample3(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &logv1.Entry{}
		if proto.Unmarshal(b, e) != nil {
			return
		}
		s, r := state.Apply(start, start.Index()+1, e)
		if d := state.Diff(start, s); !covers(r.Changed, d) {
			t.Fatalf("changed %+v, told %+v", d, r.Changed)
		}
		if _, err := state.Read(bytes.NewReader(snapshotOf(t, s))); err != nil {
			t.Fatal(err)
		}
	})
}
