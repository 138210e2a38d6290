package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// loggedEntries are what writtenLog holds.
func loggedEntries() (all []*raft.Log) {
	for i := range uint64(40) {
		all = append(all, &raft.Log{
			Index: i + 1, Term: 1 + i/10, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i*17)), Extensions: []byte{},
		})
	}
	return all
}

// writtenLog is the disk of a server whose log holds loggedEntries, in two segments.
func writtenLog(t testing.TB) *memDisk {
	d := newMemDisk(1)
	files := d.open()
	if err := files.MakeDir("/data"); err != nil {
		t.Fatal(err)
	}
	l, err := openLog(files, "/data", 8<<10, 0, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range loggedEntries() {
		if err := l.StoreLog(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

// reopen opens a log whose files were changed. Whatever was done to them, what it shows
// is what was written, from the first to no earlier than what was acknowledged.
func reopen(t testing.TB, d *memDisk) (opened bool) {
	l, err := openLog(d.open(), "/data", 8<<10, 0, func(error) {})
	if err != nil {
		return false
	}
	first, last := must(l.FirstIndex()), must(l.LastIndex())
	want := loggedEntries()
	if acked := l.mark.get().index; last < acked || last > uint64(len(want)) {
		t.Fatalf("it reaches to %d, acknowledged was up to %d, written to %d", last, acked, len(want))
	}
	for i := first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := l.GetLog(i, &e); err != nil {
			t.Fatalf("entry %d, which it has said it has: %v", i, err)
		}
		if w := want[i-1]; e.Index != w.Index || e.Term != w.Term || !bytes.Equal(e.Data, w.Data) {
			t.Fatalf("entry %d is another one", i)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return true
}

// content is a file of the disk, whole.
func (d *memDisk) content(t testing.TB, name string) []byte {
	f, err := d.open().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, must(f.Size()))
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

func (d *memDisk) put(t testing.TB, name string, b []byte) {
	f, err := d.open().Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// TestMutatedLog: CVE-2020-15106 (a length that is damaged, a panic) and CVE-2020-15112
// (an index that is out of range). A number that is put anywhere into the log, the mark
// or the terms makes it refuse, or show no more than a shorter log.
func TestMutatedLog(t *testing.T) {
	whole := writtenLog(t)
	refused := 0
	for _, name := range sortedKeys(whole.open().names) {
		b := whole.content(t, name)
		used := len(bytes.TrimRight(b, "\x00"))
		step := 1 + used/60
		for at := 0; at < used; at += step {
			for _, number := range []uint64{0, 1, 1<<31 - 1, 1<<63 - 1, 1<<64 - 1} {
				bad := append(slices.Clone(b), make([]byte, 8)...)
				binary.LittleEndian.PutUint64(bad[at:], number)
				d := writtenLog(t)
				d.put(t, name, bad[:len(b)])
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				if !reopen(t, d) {
					refused++
				}
				runtime.ReadMemStats(&after)
				if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
					t.Fatalf("%s with %d at %d took %d bytes of memory", name, number, at, took)
				}
			}
		}
	}
	if refused < 100 {
		t.Errorf("only %d mutations were refused", refused)
	}
	if !reopen(t, writtenLog(t)) {
		t.Error("as it was it is refused")
	}
}

// FuzzLogFiles changes bytes of the log's files, cuts them, or puts what one holds into
// another.
func FuzzLogFiles(f *testing.F) {
	for op := range uint8(4) {
		for file := range uint8(4) {
			f.Add([]byte{op, file, 0, 40, 3}, uint64(1)<<31)
		}
	}
	f.Fuzz(func(t *testing.T, script []byte, number uint64) {
		d := writtenLog(t)
		names := sortedKeys(d.open().names)
		for ; len(script) >= 5; script = script[5:] {
			name := names[int(script[1])%len(names)]
			b := d.content(t, name)
			at := int(binary.BigEndian.Uint16(script[2:]))
			if len(b) == 0 {
				continue
			}
			at %= len(b)
			switch script[0] % 4 {
			case 0:
				b[at] ^= script[4]
			case 1:
				b = b[:at]
			case 2:
				b = append(binary.LittleEndian.AppendUint64(b[:at:at], number), b[at:]...)
			case 3:
				b = append(b[:at:at], d.content(t, names[int(script[4])%len(names)])...)
			}
			d.put(t, name, b)
		}
		reopen(t, d)
	})
}

// TestTornLog: a kill in the middle of writing leaves all that was acknowledged.
func TestTornLog(t *testing.T) {
	want := loggedEntries()
	for seed := range uint64(200) {
		d := newMemDisk(seed)
		files := d.open()
		if err := files.MakeDir("/data"); err != nil {
			t.Fatal(err)
		}
		l, err := openLog(files, "/data", 8<<10, 0, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		n := int(seed) % len(want)
		if err := l.StoreLogs(want[:n]); n > 0 && err != nil {
			t.Fatal(err)
		}
		torn := &tornFiles{Files: files, disk: d}
		l.files = torn
		for _, s := range l.segments {
			s.file = tornFile{s.file, torn}
		}
		if err := l.StoreLogs(want[n:]); err == nil {
			t.Fatal("a killed server has acknowledged")
		}
		_ = l.Close() // It is dead.
		again, err := openLog(d.open(), "/data", 8<<10, 0, func(error) {})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if last := must(again.LastIndex()); last < uint64(n) {
			t.Errorf("seed %d: it reaches to %d, acknowledged was up to %d", seed, last, n)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if !reopen(t, d) {
			t.Errorf("seed %d: it does not open a second time", seed)
		}
	}
}

// tornFiles kills the server before the next sync.
type tornFiles struct {
	Files
	disk *memDisk
}

func (f *tornFiles) Create(name string) (File, error) {
	file, err := f.Files.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return tornFile{file, f}, nil
}

type tornFile struct {
	File
	of *tornFiles
}

func (f tornFile) Sync() error {
	f.of.disk.kill()
	return errPower
}
