package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// chain makes records as package state does; word makes chains differ.
func chain(t testing.TB, n int, word string) []*state.Audit {
	t.Helper()
	var out []*state.Audit
	var previous []byte
	for i := range n {
		rec := &logv1.AuditRecord{
			Sequence: uint64(i + 1), Index: uint64(2*i + 3), When: timestamppb.New(start.Add(time.Duration(i) * time.Minute)),
			Who: "spiffe://control.shop.example/admin/root", Operation: "apply", Detail: word, Outcome: "ok", Previous: previous,
		}
		b, err := state.EncodeAudit(rec)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		previous = sum[:]
		out = append(out, &state.Audit{Record: rec, Bytes: b, Hash: sum[:]})
	}
	return out
}

func headOf(records []*state.Audit, n int) Head {
	if n == 0 {
		return Head{}
	}
	return Head{uint64(n), records[n-1].Hash}
}

func small(dir string) Config { return Config{Dir: dir, SegmentBytes: 1000, Files: disk{}} }

// disk is the file system of this machine, with room for so many bytes; nil: any.
type disk struct {
	room *int
	err  error // when there is no more
}

type diskFile struct {
	*os.File
	disk
}

func (d disk) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return diskFile{f, d}, nil
}

func (d disk) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f, d}, nil
}

func (disk) List(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (disk) MakeDir(dir string) error     { return os.MkdirAll(dir, 0o700) }
func (disk) Rename(from, to string) error { return os.Rename(from, to) }
func (disk) Remove(name string) error     { return os.Remove(name) }
func (disk) SyncDir(string) error         { return nil }

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f diskFile) WriteAt(b []byte, at int64) (int, error) {
	if f.room == nil {
		return f.File.WriteAt(b, at)
	}
	if len(b) <= *f.room {
		*f.room -= len(b)
		return f.File.WriteAt(b, at)
	}
	n, err := f.File.WriteAt(b[:*f.room], at)
	*f.room = 0
	if err == nil {
		err = &os.PathError{Op: "write", Path: f.Name(), Err: f.err}
	}
	return n, err
}

func (f diskFile) Sync() error {
	if f.room != nil && *f.room == 0 && f.err == unix.EIO {
		return f.err
	}
	return f.File.Sync()
}

func open(t testing.TB, cfg Config, head Head) *Log {
	t.Helper()
	l, err := Open(cfg, head)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func appendAll(t testing.TB, l *Log, records []*state.Audit) {
	t.Helper()
	for _, a := range records {
		if err := l.Append(a); err != nil {
			t.Fatal(err)
		}
	}
}

func sequences(t testing.TB, l *Log, from uint64) (out []uint64) {
	t.Helper()
	if err := l.Read(from, func(a *state.Audit) error {
		out = append(out, a.Record.GetSequence())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func wantRange(t testing.TB, l *Log, from, to uint64) {
	t.Helper()
	got := sequences(t, l, from)
	if uint64(len(got)) != to-from+1 || got[0] != from || got[len(got)-1] != to {
		t.Errorf("records %v, want %d to %d", got, from, to)
	}
}

// filled is a directory of several segments, all of it durable.
func filled(t testing.TB, records []*state.Audit) string {
	t.Helper()
	dir := t.TempDir()
	l := open(t, small(dir), Head{})
	appendAll(t, l, records)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(names) < 3 {
		t.Fatalf("segments %v, %v", names, err)
	}
	return names
}

func TestReadsBack(t *testing.T) {
	records := chain(t, 40, "a")
	dir := filled(t, records)
	l := open(t, small(dir), headOf(records, 40))
	defer l.Close()
	wantRange(t, l, 1, 40)
	wantRange(t, l, 17, 40)
	var back []uint64
	if err := l.ReadBack(30, func(a *state.Audit) bool {
		back = append(back, a.Record.GetSequence())
		return len(back) < 25
	}); err != nil || len(back) != 25 || back[0] != 29 || back[24] != 5 {
		t.Errorf("back from 30: %v, %v", back, err)
	}
	if len(l.Holes()) != 0 {
		t.Errorf("holes %v", l.Holes())
	}
}

// TestReplay: what the log gives again must be what is on disk, and what the disk
// had not yet is written now.
func TestReplay(t *testing.T) {
	records := chain(t, 40, "a")
	dir := filled(t, records[:30])
	l := open(t, small(dir), headOf(records, 20))
	appendAll(t, l, records[20:])
	wantRange(t, l, 1, 40)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	other := chain(t, 40, "b")
	l = open(t, small(dir), headOf(records, 20))
	var damage *DamageError
	if err := l.Append(other[20]); !errors.As(err, &damage) || damage.Sequence != 21 {
		t.Errorf("another record 21: %v", err)
	}
	if err := l.Append(records[20]); err == nil {
		t.Error("it goes on afterwards")
	}
	_ = l.Close()
}

// TestDamage: whatever is done to what was durable, Open names the first record
// that is not as it was written.
func TestDamage(t *testing.T) {
	records := chain(t, 40, "a")
	forged := chain(t, 40, "b")
	frames := func(records []*state.Audit) (b []byte) {
		for _, a := range records {
			b = appendFrame(b, a.Bytes)
		}
		return b
	}
	for _, tt := range []struct {
		name  string
		spoil func(names []string) error
		first uint64
	}{
		{"a byte of a record", func(n []string) error { return flip(n[1], frameHead+20) }, 0},
		{"a byte of a length", func(n []string) error { return flip(n[1], 0) }, 0},
		{"a byte of a sum", func(n []string) error { return flip(n[1], 5) }, 0},
		{"a byte of the last record", func(n []string) error { return flip(n[len(n)-1], -1) }, 40},
		{"the end of a segment", func(n []string) error { return cut(n[0], 10) }, 0},
		{"the end of the last one", func(n []string) error { return cut(n[len(n)-1], 10) }, 40},
		{"the last segment", func(n []string) error { return os.Remove(n[len(n)-1]) }, 0},
		{"an edited record with its sum", func(n []string) error {
			b, err := os.ReadFile(n[0])
			if err != nil {
				return err
			}
			edited := bytes.Replace(b, []byte("admin/root"), []byte("admin/r00t"), 1)
			copy(edited[4:], binary.LittleEndian.AppendUint32(nil, frameSum(edited[:4], edited[frameHead:frameHead+int(binary.LittleEndian.Uint32(edited))])))
			return os.WriteFile(n[0], edited, 0o600)
		}, 2}, // the first whose previous one is another
		{"two records in another order", func(n []string) error {
			s := segmentOf(n[0], records)
			s[1], s[2] = s[2], s[1]
			return os.WriteFile(n[0], frames(s), 0o600)
		}, 2},
		{"a record left out", func(n []string) error {
			s := segmentOf(n[0], records)
			return os.WriteFile(n[0], frames(append(s[:1:1], s[2:]...)), 0o600)
		}, 2},
		{"a segment renamed", func(n []string) error { return os.Rename(n[1], filepath.Join(filepath.Dir(n[1]), segmentName(1))) }, 0},
		{"everything forged", func(n []string) error {
			for i := range n {
				if err := os.Remove(n[i]); err != nil {
					return err
				}
			}
			return os.WriteFile(n[0], frames(forged), 0o600)
		}, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filled(t, records)
			if err := tt.spoil(segmentFiles(t, dir)); err != nil {
				t.Fatal(err)
			}
			l, err := Open(small(dir), headOf(records, 40))
			var damage *DamageError
			if !errors.As(err, &damage) || tt.first != 0 && damage.Sequence != tt.first {
				t.Fatalf("%v", err)
			}
			if err == nil {
				_ = l.Close()
			}
		})
	}
}

// segmentOf is the records of a file.
func segmentOf(name string, records []*state.Audit) (out []*state.Audit) {
	f, err := os.Open(name)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	for {
		b, err := readFrame(f)
		if err != nil {
			return out
		}
		a, err := state.ReadAudit(b)
		if err != nil {
			panic(err)
		}
		out = append(out, records[a.Record.GetSequence()-1])
	}
}

func flip(name string, at int) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x40
	return os.WriteFile(name, b, 0o600)
}

func cut(name string, n int64) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return os.Truncate(name, info.Size()-n)
}

// TestReadFindsDamage: an edit while the server runs is named by whoever reads.
func TestReadFindsDamage(t *testing.T) {
	records := chain(t, 40, "a")
	dir := filled(t, records)
	l := open(t, small(dir), headOf(records, 40))
	defer l.Close()
	names := segmentFiles(t, dir)
	if err := flip(names[1], frameHead+20); err != nil {
		t.Fatal(err)
	}
	first := segmentOf(names[0], records)
	var damage *DamageError
	if err := l.Read(1, func(*state.Audit) error { return nil }); !errors.As(err, &damage) || damage.Sequence != uint64(len(first)+1) {
		t.Errorf("%v", err)
	}
}

// TestTornTail: a crash may leave any part of what was not durable; the log gives
// it again.
func TestTornTail(t *testing.T) {
	records := chain(t, 12, "a")
	for lost := int64(0); lost < 400; lost += 7 {
		dir := t.TempDir()
		l := open(t, Config{Dir: dir, Files: disk{}}, Head{})
		appendAll(t, l, records[:6])
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		appendAll(t, l, records[6:])
		if lost%2 == 0 { // by turns with what was still in memory
			if err := l.Read(1, func(*state.Audit) error { return nil }); err != nil { // writes it
				t.Fatal(err)
			}
		} else {
			crash(l)
			l = open(t, Config{Dir: dir, Files: disk{}}, headOf(records, 4))
			appendAll(t, l, records[4:])
			wantRange(t, l, 1, 12)
		}
		crash(l)
		if err := cut(filepath.Join(dir, segmentName(1)), lost); err != nil {
			t.Fatal(err)
		}
		l = open(t, Config{Dir: dir, Files: disk{}}, headOf(records, 4))
		appendAll(t, l, records[4:])
		wantRange(t, l, 1, 12)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, Config{Dir: dir, Files: disk{}}, headOf(records, 12))
		wantRange(t, l, 1, 12)
		_ = l.Close()
	}
}

// crash leaves a log as a process that ends.
func crash(l *Log) {
	for _, f := range l.dirty {
		_ = f.Close()
	}
}

// source is what another server sends.
func source(records []*state.Audit) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(records) == 0 {
			return nil, io.EOF
		}
		b := records[0].Bytes
		records = records[1:]
		return b, nil
	}
}

// TestFill: a server that took over a leader's state gets what it lacks from
// others, and believes only what leads to what it has.
func TestFill(t *testing.T) {
	records, forged := chain(t, 60, "a"), chain(t, 60, "b")
	for _, kept := range []int{0, 10} { // a server with nothing, and one that was behind
		dir := t.TempDir()
		l := open(t, small(dir), Head{})
		appendAll(t, l, records[:kept])
		if err := l.Jump(headOf(records, 40)); err != nil {
			t.Fatal(err)
		}
		appendAll(t, l, records[40:50])
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, small(dir), headOf(records, 45))
		hole := Range{uint64(kept + 1), 40}
		if got := l.Holes(); len(got) != 1 || got[0] != hole {
			t.Fatalf("holes %v, want %v", got, hole)
		}
		for name, bad := range map[string]func() ([]byte, error){
			"forged":    source(forged[kept:40]),
			"too few":   source(records[kept:39]),
			"too many":  source(records[kept:41]),
			"one less":  source(append(append([]*state.Audit{}, records[kept:20]...), records[21:40]...)),
			"nothing":   source(nil),
			"gibberish": func() ([]byte, error) { return []byte("gibberish"), nil },
		} {
			if err := l.Fill(hole, 0, bad); !errors.Is(err, ErrNotFilled) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := l.Fill(hole, 0, func() ([]byte, error) { return nil, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a server that goes away: %v", err)
		}
		if got := l.Holes(); len(got) != 1 {
			t.Fatalf("holes %v", got)
		}
		if err := l.Fill(hole, 0, source(records[kept:40])); err != nil {
			t.Fatal(err)
		}
		appendAll(t, l, records[50:])
		wantRange(t, l, 1, 60)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, small(dir), headOf(records, 60))
		wantRange(t, l, 1, 60)
		if left, _ := filepath.Glob(filepath.Join(dir, "*"+newSuffix)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		_ = l.Close()
	}
}

// TestHoleAtTheEnd: a server that was told of a state, and stopped before it was sent the
// records that led there, starts again and knows what is missing.
func TestHoleAtTheEnd(t *testing.T) {
	records := chain(t, 60, "a")
	for name, stop := range map[string]func(*Log) error{
		"stopped": (*Log).Close,
		"killed":  func(l *Log) error { return l.Sync() }, // as a snapshot does, and no more
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, small(dir), Head{})
			appendAll(t, l, records[:10])
			if err := l.Jump(headOf(records, 40)); err != nil {
				t.Fatal(err)
			}
			if err := stop(l); err != nil {
				t.Fatal(err)
			}
			l = open(t, small(dir), headOf(records, 40))
			if got := l.Holes(); len(got) != 1 || got[0] != (Range{11, 40}) {
				t.Fatalf("holes %v", got)
			}
			if err := l.Fill(Range{11, 40}, 0, source(records[10:40])); err != nil {
				t.Fatal(err)
			}
			appendAll(t, l, records[40:])
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			wantRange(t, open(t, small(dir), headOf(records, 60)), 1, 60)
		})
	}
}

// TestFillFromLater: what the other server has let go of is no hole.
func TestFillFromLater(t *testing.T) {
	records := chain(t, 60, "a")
	dir := t.TempDir()
	l := open(t, small(dir), headOf(records, 40))
	if err := l.Fill(Range{1, 40}, 15, source(records[15:40])); err != nil {
		t.Fatal(err)
	}
	if head, anchor := l.Head(); len(l.Holes()) > 0 || anchor.Sequence != 15 || !bytes.Equal(anchor.Hash, records[14].Hash) || head.Sequence != 40 {
		t.Errorf("holes %v, anchor %v", l.Holes(), anchor)
	}
	appendAll(t, l, records[40:])
	_ = l.Close()
	l = open(t, small(dir), headOf(records, 60))
	wantRange(t, l, 16, 60)
	_ = l.Close()
}

func TestRetention(t *testing.T) {
	records := chain(t, 200, "a")
	for name, cfg := range map[string]Config{
		"size": {MaxBytes: 5000},
		"age":  {MaxAge: 30 * time.Minute, Now: func() time.Time { return start.Add(200 * time.Minute) }},
	} {
		cfg.Dir, cfg.SegmentBytes, cfg.Files = t.TempDir(), 1000, disk{}
		l := open(t, cfg, Head{})
		appendAll(t, l, records)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		_, anchor := l.Head()
		if anchor.Sequence < 100 || !bytes.Equal(anchor.Hash, records[anchor.Sequence-1].Hash) {
			t.Errorf("%s: anchor %d", name, anchor.Sequence)
		}
		wantRange(t, l, anchor.Sequence+1, 200)
		if len(l.Holes()) > 0 {
			t.Errorf("%s: holes %v", name, l.Holes())
		}
		_ = l.Close()
		// A first segment that is cut off by somebody else is missed.
		names := segmentFiles(t, cfg.Dir)
		if err := os.Remove(names[0]); err != nil {
			t.Fatal(err)
		}
		l = open(t, cfg, headOf(records, 200))
		if len(l.Holes()) != 1 {
			t.Errorf("%s: holes %v", name, l.Holes())
		}
		_ = l.Close()
	}
}

// TestFullDisk: records wait while there is no room, wherever it ends, and nothing
// is durable before they are written; then they are where they belong.
func TestFullDisk(t *testing.T) {
	records := chain(t, 40, "a")
	for room := 0; room < 3000; room += 97 {
		left := room
		cfg := small(t.TempDir())
		cfg.Files = disk{&left, unix.ENOSPC}
		l := open(t, cfg, Head{})
		appendAll(t, l, records)
		if !l.Full() {
			t.Fatalf("room for %d bytes: not full", room)
		}
		if err := l.Sync(); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("sync: %v", err)
		}
		if err := l.Read(1, func(*state.Audit) error { return nil }); err != nil {
			t.Fatalf("read: %v", err)
		}
		left = 1 << 20
		if l.Full() {
			t.Fatal("still full")
		}
		wantRange(t, l, 1, 40)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, small(cfg.Dir), headOf(records, 40))
		wantRange(t, l, 1, 40)
		_ = l.Close()
	}
}

// TestFailingDisk: after a write or a sync has failed, nothing more is taken.
func TestFailingDisk(t *testing.T) {
	records := chain(t, 40, "a")
	for _, sync := range []bool{false, true} {
		left := 2000
		cfg := small(t.TempDir())
		cfg.Files = disk{&left, unix.EIO}
		l := open(t, cfg, Head{})
		var err error
		for _, a := range records {
			if sync && a.Record.GetSequence() == 3 {
				left = 0
				if err = l.Sync(); !errors.Is(err, unix.EIO) {
					t.Fatalf("sync: %v", err)
				}
				left = 1 << 20 // the disk is well again, and is not believed
			}
			if err = l.Append(a); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("sync %v: %v", sync, err)
		}
		if err := l.Sync(); !errors.Is(err, unix.EIO) {
			t.Errorf("sync again: %v", err)
		}
		crash(l)
	}
}

func BenchmarkAppend(b *testing.B) {
	records := chain(b, b.N, "a")
	l := open(b, Config{Dir: b.TempDir(), Files: disk{}}, Head{})
	b.ResetTimer()
	appendAll(b, l, records)
	b.StopTimer()
	_ = l.Close()
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{100_000} {
		records := chain(b, n, "a")
		dir := b.TempDir()
		l := open(b, Config{Dir: dir, Files: disk{}}, Head{})
		appendAll(b, l, records)
		_ = l.Close()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				_ = open(b, Config{Dir: dir, Files: disk{}}, headOf(records, n)).Close()
			}
		})
	}
}
