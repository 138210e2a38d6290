package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/store/state"
)

// ZT_DISK_CYCLES says how many times the disk goes wrong, and ZT_SEED how:
//
//	make disk N=2000 SEED=7
func cycles(t *testing.T, standard int) (n int, seed uint64) {
	t.Helper()
	n, seed = standard, rand.Uint64N(1<<30)
	for name, set := range map[string]func(int){
		"ZT_DISK_CYCLES": func(v int) { n = v }, "ZT_SEED": func(v int) { seed = uint64(v) },
	} {
		if s := os.Getenv(name); s != "" {
			v, err := strconv.Atoi(s)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(v)
		}
	}
	t.Logf("ZT_SEED=%d ZT_DISK_CYCLES=%d", seed, n)
	return n, seed
}

// disk is one data directory through many starts, with what must be on it.
type disk struct {
	t     *testing.T
	r     *rand.Rand
	files *faultyFiles
	log   *diskLog
	snaps *sealedSnapshots
	state *state.State

	term        uint64
	entries     map[uint64]raft.Log // all that were ever written, by index; the newest counts
	last        uint64              // of the log; 0: empty
	covered     uint64              // by the newest snapshot
	older       uint64              // by the one before it
	terms       map[string]string
	did         map[string]int
	pending     func(reach uint64) bool // judges what an op that failed may have left
	pendingTerm [2]string               // a key and the value that was being set
	failed      error                   // that of the store
}

const diskDir = "/data"

func newDisk(t *testing.T, r *rand.Rand) *disk {
	return &disk{
		t: t, r: r, files: newFaulty(r), entries: map[uint64]raft.Log{},
		terms: map[string]string{}, did: map[string]int{},
	}
}

// open is a start, as far as the disk is concerned.
func (d *disk) open(files *faultyFiles) error {
	s := &Store{end: newEnd()}
	d.failed = nil
	cfg := Config{Files: files, Dir: diskDir, Logger: slog.New(slog.DiscardHandler), Cipher: noCipher{}, segment: 8 << 10}
	if err := files.MakeDir(diskDir); err != nil {
		return err
	}
	st, snaps, err := s.openDisk(cfg)
	if err != nil {
		return err
	}
	d.files, d.log, d.snaps, d.state = files, s.log, snaps, st
	return nil
}

// noCipher leaves everything as it is: what is damaged is to be found without one.
type noCipher struct{}

func (noCipher) Seal(to, b, _ []byte) []byte                          { return append(to, b...) }
func (noCipher) Open(b, _ []byte) ([]byte, error)                     { return b, nil }
func (noCipher) SealTo(w io.Writer, _ []byte) (io.WriteCloser, error) { return unclosed{w}, nil }
func (noCipher) OpenFrom(r io.Reader, _ []byte) (io.Reader, error)    { return r, nil }
func (noCipher) PlainSize(n int64) int64                              { return n }

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

func (d *disk) reach() uint64 { return max(d.last, d.covered) }

// check compares what a start has found with what must be there. exact is whether
// nothing was under way when it ended.
func (d *disk) check() error {
	covered, last := d.state.Index(), d.log.last
	if covered != d.covered && covered != d.older {
		return fmt.Errorf("the state is that of %d, the snapshots are of %d and %d", covered, d.older, d.covered)
	}
	if last > 0 && d.log.first > covered+1 {
		return fmt.Errorf("the log begins at %d, the snapshot ends at %d", d.log.first, covered)
	}
	reach := max(covered, last)
	if reach != d.reach() && (d.pending == nil || !d.pending(reach)) {
		return fmt.Errorf("snapshot to %d and log to %d, but entries to %d were acknowledged", covered, last, d.reach())
	}
	return d.checkLog(covered)
}

// checkLog compares the log behind an index, and the terms.
func (d *disk) checkLog(covered uint64) error {
	for i := max(covered+1, d.log.first); i <= d.log.last; i++ {
		var got raft.Log
		if err := d.log.read(i, &got); err != nil {
			return fmt.Errorf("entry %d of %d to %d: %w", i, d.log.first, d.log.last, err)
		}
		if want, ok := d.entries[i]; !ok || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) || got.Type != want.Type {
			return fmt.Errorf("entry %d is another: term %d, was %d", i, got.Term, want.Term)
		}
	}
	for k, want := range d.terms {
		got, err := d.log.Get([]byte(k))
		if err != nil || string(got) != want && !(d.pendingTerm[0] == k && d.pendingTerm[1] == string(got)) {
			return fmt.Errorf("%s is %q, was %q: %v", k, got, want, err)
		}
	}
	return nil
}

// settle takes for acknowledged what a start has found.
func (d *disk) settle() {
	d.last, d.covered, d.pending = d.log.last, max(d.state.Index(), d.covered), nil
	if k := d.pendingTerm[0]; k != "" {
		v, _ := d.log.Get([]byte(k))
		d.terms[k], d.pendingTerm = string(v), [2]string{}
	}
	d.covered = d.state.Index()
}

// step does one thing that raft does. An error is one that ends a store.
func (d *disk) step() error {
	switch p := d.r.IntN(100); {
	case p < 62:
		return d.append()
	case p < 70:
		return d.cutBack()
	case p < 78:
		return d.snapshot()
	case p < 80:
		return d.install()
	case p < 90:
		k, v := []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"}[d.r.IntN(3)], fmt.Sprint(d.r.IntN(1000))
		d.pendingTerm = [2]string{k, v}
		if err := d.log.set([]byte(k), []byte(v)); err != nil {
			return err
		}
		d.terms[k], d.pendingTerm = v, [2]string{}
		return nil
	default:
		return d.log.mark.write()
	}
}

func (d *disk) append() error {
	if d.r.IntN(4) == 0 {
		d.term++
	}
	logs := make([]*raft.Log, 1+d.r.IntN(5))
	from := d.reach() + 1
	for i := range logs {
		data := make([]byte, d.r.IntN(900))
		if d.r.IntN(20) == 0 {
			data = make([]byte, 9<<10) // more than a segment
		}
		for j := range data {
			data[j] = byte(d.r.Uint32())
		}
		logs[i] = &raft.Log{Index: from + uint64(i), Term: d.term, Type: raft.LogCommand, Data: data}
		d.entries[logs[i].Index] = *logs[i]
	}
	before, after := from-1, from+uint64(len(logs))-1
	d.pending = func(reach uint64) bool { return reach >= before && reach <= after }
	if err := d.log.StoreLogs(logs); err != nil {
		return err
	}
	d.last, d.pending = after, nil
	return nil
}

// cutBack takes off what no snapshot has, as a follower does for a new leader.
func (d *disk) cutBack() error {
	least := max(d.log.first, d.covered)
	if d.last == 0 || d.last <= least {
		return nil
	}
	from := least + 1 + d.r.Uint64N(d.last-least)
	before := d.last
	d.pending = func(reach uint64) bool { return reach >= from-1 && reach <= before }
	if err := d.log.DeleteRange(from, d.last); err != nil {
		return err
	}
	d.last, d.pending = from-1, nil
	return nil
}

// snapshot folds a part of the log, and takes off some of what was folded.
func (d *disk) snapshot() error {
	if d.last <= d.covered {
		return nil
	}
	to := d.covered + 1 + d.r.Uint64N(d.last-d.covered)
	if full, err := d.write(to); full || err != nil {
		return err
	}
	if first := d.log.first; d.r.IntN(2) == 0 && first <= to {
		upTo := first + d.r.Uint64N(to-first+1)
		if err := d.log.DeleteRange(first, upTo); err != nil {
			return err
		}
		if upTo == d.last {
			d.last = 0
		}
	}
	return nil
}

// install is the snapshot of a leader that is far ahead.
func (d *disk) install() error {
	to := d.reach() + 1 + d.r.Uint64N(50)
	if full, err := d.write(to); full || err != nil {
		return err
	}
	if d.last > 0 {
		if err := d.log.DeleteRange(d.log.first, d.last); err != nil {
			return err
		}
	}
	d.last = 0
	return nil
}

// write writes a snapshot. One that finds the disk full leaves what there was.
func (d *disk) write(index uint64) (full bool, err error) {
	before := d.reach()
	d.pending = func(reach uint64) bool { return reach == before || reach == max(before, index) }
	was, older := d.covered, d.older
	d.covered, d.older = index, was // the start may find either
	init := initEntry()
	init.Format = state.FormatOf(init)
	s, result := state.Apply(state.New(), index, init)
	if result.Err != nil {
		d.t.Fatal(result.Err)
	}
	sink, err := d.snaps.Create(1, index, d.term, raft.Configuration{}, 1, nil)
	if err == nil {
		if _, err = s.WriteTo(sink); err == nil {
			err = sink.Close()
		} else {
			err = errors.Join(err, sink.Cancel())
		}
	}
	if isFull(err) && !errors.Is(err, errPower) {
		d.covered, d.older, d.pending = was, older, nil
		return true, nil
	}
	if err == nil {
		d.pending = nil
	}
	return false, err
}

// TestDiskPower cuts the power, kills the process, breaks the disk and fills it at
// random moments of a random life, and looks at each start whether everything that was
// acknowledged is there, and nothing else.
func TestDiskPower(t *testing.T) {
	n, seed := cycles(t, 300)
	did := map[string]int{}
	for life := uint64(0); n > 0; life++ {
		d := newDisk(t, rand.New(rand.NewPCG(seed, life)))
		if err := d.open(d.files); err != nil {
			t.Fatal(err)
		}
		for start := 0; start < 12 && n > 0; start++ {
			n--
			kind := d.live()
			did[kind]++
			if err := d.reopen(kind); err != nil {
				t.Fatalf("ZT_SEED=%d, life %d, start %d, after %s: %v", seed, life, start, kind, err)
			}
		}
		if err := d.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v", did)
}

// live does things until something goes wrong, and says what.
func (d *disk) live() string {
	kind, most := "kill", d.r.IntN(40)
	d.files.arrange(func(f *faultyFiles) {
		switch d.r.IntN(10) {
		case 0, 1, 2, 3:
			kind, most, f.dieAt = "power cut", 1<<20, f.ops+1+d.r.IntN(80)
		case 4:
			kind = "power cut at rest"
		case 5:
			kind, most, f.syncEIO = "sync error, then a restart", 1<<20, 1+d.r.IntN(30)
		case 6:
			kind, most, f.syncEIO = "sync error, then a power cut", 1<<20, 1+d.r.IntN(30)
		case 7:
			kind, most, f.short = "short write", 1<<20, 1+d.r.IntN(30)
		case 8:
			kind, most, f.room = "full disk", 20+d.r.IntN(40), int64(d.r.IntN(64<<10))
		}
	})
	for range most {
		err := d.step()
		if err == nil {
			continue
		}
		if kind == "full disk" && isFull(err) && d.log.broken == nil && !d.log.terms.failed() {
			d.pending = nil // refused, nothing of it was written: see whether it goes on
			if err := d.checkLog(0); err != nil || d.log.last != d.last {
				d.t.Fatalf("the log ends at %d, not %d: %v", d.log.last, d.last, err)
			}
			if d.r.IntN(3) == 0 {
				d.files.arrange(func(f *faultyFiles) { f.room = -1 })
			}
			continue
		}
		if kind != "power cut" && !errors.Is(err, errPower) { // then nothing is tried again
			if d.log.broken != nil {
				before := d.files.ops
				if err := d.log.StoreLog(&raft.Log{Index: d.reach() + 1}); err == nil || d.files.ops != before {
					d.t.Errorf("the log was used after %v", d.log.broken)
				}
			}
		}
		break
	}
	return kind
}

// reopen starts again after what live says.
func (d *disk) reopen(kind string) error {
	var files *faultyFiles
	if strings.Contains(kind, "power cut") {
		files = d.files.cut()
	} else {
		files = d.files.restart()
	}
	if err := d.open(files); err != nil {
		return err
	}
	if err := d.check(); err != nil {
		return err
	}
	d.settle()
	return nil
}

// TestDiskDamage flips bits, cuts tails, blanks sectors and takes files away while
// nobody looks. A start then refuses, and destroys nothing, or it has everything.
func TestDiskDamage(t *testing.T) {
	n, seed := cycles(t, 300)
	did := map[string]int{}
	for life := uint64(0); n > 0; life++ {
		d := newDisk(t, rand.New(rand.NewPCG(seed, life)))
		if err := d.open(d.files); err != nil {
			t.Fatal(err)
		}
		for range d.r.IntN(120) {
			if err := d.step(); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.log.Close(); err != nil {
			t.Fatal(err)
		}
		whole := d.files
		for range 10 {
			n--
			what, verdict, err := d.damaged(whole)
			if err != nil {
				t.Fatalf("ZT_SEED=%d, life %d, %s: %v", seed, life, what, err)
			}
			did[verdict]++
		}
	}
	t.Logf("%v", did)
	if did["refused"] == 0 || did["whole"] == 0 {
		t.Errorf("%v: the damage is not of every kind", did)
	}
}

// damaged damages a copy of a disk and starts from it.
func (d *disk) damaged(whole *faultyFiles) (what, verdict string, err error) {
	files := whole.copy()
	names := slices.DeleteFunc(sortedKeys(files.names), func(n string) bool { return strings.HasSuffix(n, "/lock") })
	name := names[d.r.IntN(len(names))]
	before := bytes.Clone(files.names[name].seen)
	if len(before) == 0 {
		return name, "whole", nil
	}
	// Most of a segment is room for more; what is written is what matters.
	used := max(1, len(bytes.TrimRight(before, "\x00")))
	at := d.r.IntN(min(len(before), used+16))
	switch d.r.IntN(5) {
	case 0, 1:
		what = fmt.Sprintf("flipped a bit of byte %d of %d of %s", at, len(before), name)
		files.damage(name, func(b []byte) []byte { b[at] ^= 1 << d.r.IntN(8); return b })
	case 2:
		what = fmt.Sprintf("cut %s off at %d of %d", name, at, len(before))
		files.damage(name, func(b []byte) []byte { return b[:at] })
	case 3:
		what = fmt.Sprintf("blanked a sector of %s at %d", name, at)
		files.damage(name, func(b []byte) []byte { clear(b[at:min(at+sectorBytes, len(b))]); return b })
	case 4:
		what = "took away " + name
		delete(files.names, name)
	}
	damaged := files.copy()
	err = d.open(files)
	if err == nil {
		return what, "whole", errors.Join(d.check(), d.log.Close())
	}
	if !isDamage(err) && !errors.Is(err, fs.ErrNotExist) {
		return what, "", fmt.Errorf("not called damage: %w", err)
	}
	if !strings.Contains(err.Error(), diskDir+"/") {
		return what, "", fmt.Errorf("no file is named: %w", err)
	}
	// What the refused start has left, with the damage undone, is as good as before.
	for _, name := range sortedKeys(damaged.names) {
		if n := files.names[name]; n == nil || !bytes.Equal(n.seen, damaged.names[name].seen) {
			return what, "", fmt.Errorf("a start that was refused has changed %s", name)
		}
	}
	return what, "refused", nil
}

func (f *faultyFiles) copy() *faultyFiles {
	next := newFaulty(f.rand)
	next.dirs = f.dirs
	for name, n := range f.names {
		next.names[name] = &inode{seen: bytes.Clone(n.seen), durable: bytes.Clone(n.seen), dirty: map[int]bool{}}
		next.durable[name] = next.names[name]
	}
	return next
}

// TestLogRefusesWhenFull: a segment that finds no room refuses its entries, and takes
// them once there is.
func TestLogRefusesWhenFull(t *testing.T) {
	d := newDisk(t, rand.New(rand.NewPCG(1, 1)))
	if err := d.open(d.files); err != nil {
		t.Fatal(err)
	}
	d.files.arrange(func(f *faultyFiles) { f.room = 9 << 10 })
	var err error
	index := uint64(1)
	for ; err == nil; index++ {
		err = d.log.StoreLog(&raft.Log{Index: index, Data: make([]byte, 1000)})
	}
	index--
	if !errors.Is(err, unix.ENOSPC) || index < 8 || d.log.broken != nil {
		t.Fatalf("entry %d: %v", index, err)
	}
	if names, _ := d.files.List(filepath.Join(diskDir, "log")); len(names) != 1 {
		t.Errorf("a segment without entries has stayed: %v", names)
	}
	d.files.arrange(func(f *faultyFiles) { f.room = -1 })
	if err := d.log.StoreLog(&raft.Log{Index: index}); err != nil {
		t.Error(err)
	}
	if err := d.log.Close(); err != nil {
		t.Error(err)
	}
}
