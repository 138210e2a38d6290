package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// faultyFiles is a file system in memory that does to a store what disks do. It knows
// apart what a process sees and what is durable, sector by sector, and is as unkind
// about the difference as POSIX allows: without Sync, any of the written sectors may
// be on the disk, or a part of one; without SyncDir, any of the changed names.
type faultyFiles struct {
	mu      sync.Mutex // guards everything below, and every inode
	rand    *rand.Rand
	names   map[string]*inode // as the process sees them
	durable map[string]*inode
	dirs    map[string]bool
	changes []change // of names, not durable yet
	locked  map[string]bool
	ops     int // writes, syncs and changes of names so far

	dieAt   int    // the op, counted from 1, at which the power goes; 0: never
	syncEIO int    // the sync that fails, counted from now; 0: none
	room    int64  // bytes that can be taken; below 0: any number
	short   int    // the write that is cut short with EIO, counted from now; 0: none
	lying   bool   // Sync returns nil and does nothing
	dead    bool   // the power is gone
	slowly  func() // called by each sync, if set
}

type inode struct {
	seen    []byte
	durable []byte
	dirty   map[int]bool // sectors of seen that differ, perhaps, from durable
	taken   int64        // of room
}

// change is one name that was set (to is not nil) or removed.
type change struct {
	dir, name string
	to        *inode
	also      string // of a rename: the name that goes with it
}

const sectorBytes = 512

var errPower = errors.New("the power is gone")

var _ Files = (*faultyFiles)(nil)

func newFaulty(r *rand.Rand) *faultyFiles {
	return &faultyFiles{
		rand: r, names: map[string]*inode{}, durable: map[string]*inode{},
		dirs: map[string]bool{}, locked: map[string]bool{}, room: -1,
	}
}

// op counts one, and says whether there is still power. The caller holds mu.
func (f *faultyFiles) op() error {
	f.ops++
	if f.dieAt > 0 && f.ops >= f.dieAt {
		f.dead = true
	}
	if f.dead {
		return errPower
	}
	return nil
}

// cut takes the power away and returns the disk as the next start finds it.
func (f *faultyFiles) cut() *faultyFiles {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	next := newFaulty(f.rand)
	next.dirs = f.dirs
	names := f.durable
	for _, c := range f.changes {
		if f.rand.IntN(2) == 0 {
			continue
		}
		apply := func(name string, to *inode) {
			if to == nil {
				delete(names, name)
			} else {
				names[name] = to
			}
		}
		apply(c.name, c.to)
		if c.also != "" {
			apply(c.also, nil)
		}
	}
	for _, name := range sortedKeys(names) {
		b := names[name].afterCut(f.rand)
		next.names[name] = &inode{seen: b, durable: bytes.Clone(b), dirty: map[int]bool{}}
		next.durable[name] = next.names[name]
	}
	return next
}

// restart is what the next process sees on a machine that has kept its power.
func (f *faultyFiles) restart() *faultyFiles {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	next := newFaulty(f.rand)
	next.names, next.durable, next.dirs, next.changes = f.names, f.durable, f.dirs, f.changes
	return next
}

func (n *inode) afterCut(r *rand.Rand) []byte {
	b := bytes.Clone(n.durable)
	if len(n.seen) > len(b) && r.IntN(2) == 0 {
		b = append(b, make([]byte, len(n.seen)-len(b))...)
	}
	for _, i := range slices.Sorted(func(yield func(int) bool) {
		for i := range n.dirty {
			if !yield(i) {
				return
			}
		}
	}) {
		from, to := i*sectorBytes, min((i+1)*sectorBytes, len(n.seen))
		switch r.IntN(4) {
		case 0, 1: // lost
			continue
		case 2: // a part
			if to > from {
				to = from + r.IntN(to-from)
			}
		}
		if to > len(b) {
			b = append(b, make([]byte, to-len(b))...)
		}
		if from < to {
			copy(b[from:to], n.seen[from:to])
		}
	}
	return b
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (f *faultyFiles) Open(name string) (File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return nil, errPower
	}
	n := f.names[name]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &faultyFile{f, n, name, false}, nil
}

func (f *faultyFiles) Create(name string) (File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.op(); err != nil {
		return nil, err
	}
	if !f.dirs[filepath.Dir(name)] {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	if f.room == 0 {
		return nil, &fs.PathError{Op: "create", Path: name, Err: unix.ENOSPC}
	}
	n := &inode{dirty: map[int]bool{}}
	f.set(change{dir: filepath.Dir(name), name: name, to: n})
	return &faultyFile{f, n, name, false}, nil
}

// set changes a name. The caller holds mu.
func (f *faultyFiles) set(c change) {
	if c.to == nil {
		delete(f.names, c.name)
	} else {
		f.names[c.name] = c.to
	}
	if c.also != "" {
		delete(f.names, c.also)
	}
	f.changes = append(f.changes, c)
}

func (f *faultyFiles) List(dir string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return nil, errPower
	}
	if !f.dirs[dir] {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: fs.ErrNotExist}
	}
	var names []string
	for name := range f.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	for d := range f.dirs {
		if filepath.Dir(d) == dir && d != dir {
			names = append(names, filepath.Base(d))
		}
	}
	slices.Sort(names)
	return names, nil
}

// MakeDir is durable at once: a folder that is lost is made again.
func (f *faultyFiles) MakeDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ; !f.dirs[dir]; dir = filepath.Dir(dir) {
		f.dirs[dir] = true
	}
	return nil
}

func (f *faultyFiles) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.op(); err != nil {
		return err
	}
	n := f.names[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	f.set(change{dir: filepath.Dir(to), name: to, to: n, also: from})
	return nil
}

func (f *faultyFiles) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.op(); err != nil {
		return err
	}
	n := f.names[name]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if f.room >= 0 {
		f.room += n.taken
	}
	f.set(change{dir: filepath.Dir(name), name: name})
	return nil
}

func (f *faultyFiles) SyncDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sync(); err != nil || f.lying {
		return err
	}
	f.changes = slices.DeleteFunc(f.changes, func(c change) bool {
		if c.dir != dir {
			return false
		}
		if c.to == nil {
			delete(f.durable, c.name)
		} else {
			f.durable[c.name] = c.to
		}
		if c.also != "" {
			delete(f.durable, c.also)
		}
		return true
	})
	return nil
}

// sync counts one sync. The caller holds mu.
func (f *faultyFiles) sync() error {
	if err := f.op(); err != nil {
		return err
	}
	if f.slowly != nil {
		f.slowly()
	}
	if f.syncEIO > 0 {
		if f.syncEIO--; f.syncEIO == 0 {
			return unix.EIO
		}
	}
	return nil
}

func (f *faultyFiles) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locked[name] {
		return nil, ErrLocked
	}
	f.locked[name] = true
	return closer(func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.locked, name)
		return nil
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }

func (f *faultyFiles) Free(string) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room < 0 {
		return 1 << 40, nil
	}
	return uint64(f.room), nil
}

// arrange changes what is wrong with the disk.
func (f *faultyFiles) arrange(change func(*faultyFiles)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// take gives room to a file. The caller holds mu.
func (f *faultyFiles) take(n *inode, bytes int64) {
	n.taken += bytes
	if f.room >= 0 {
		f.room -= bytes
	}
}

// damage changes the durable bytes of a file, while nobody has it open.
func (f *faultyFiles) damage(name string, change func([]byte) []byte) {
	n := f.names[name]
	n.seen = change(bytes.Clone(n.seen))
	n.durable, n.dirty = bytes.Clone(n.seen), map[int]bool{}
}

// matching are the files whose names have an ending, sorted.
func (f *faultyFiles) matching(suffix string) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range sortedKeys(f.names) {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	return names
}

type faultyFile struct {
	fs     *faultyFiles
	n      *inode
	name   string
	closed bool
}

// ReadAt works without power, too: whoever is dead reads no harm.
func (h *faultyFile) ReadAt(b []byte, at int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	switch {
	case h.closed:
		return 0, fs.ErrClosed
	case at >= int64(len(h.n.seen)):
		return 0, io.EOF
	}
	n := copy(b, h.n.seen[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return 0, fs.ErrClosed
	}
	died := h.fs.op()
	if died != nil && h.fs.ops != h.fs.dieAt {
		return 0, died
	}
	if died != nil && len(b) > 0 { // in the midst of this write
		b = b[:h.fs.rand.IntN(len(b))]
	}
	var short error
	if h.fs.short > 0 {
		if h.fs.short--; h.fs.short == 0 {
			b, short = b[:len(b)/2], unix.EIO
		}
	}
	end := at + int64(len(b))
	if more := end - max(h.n.taken, int64(len(h.n.seen))); more > 0 {
		if h.fs.room >= 0 && more > h.fs.room {
			end -= more - h.fs.room
			b, short = b[:max(0, end-at)], unix.ENOSPC
			more = h.fs.room
		}
		h.fs.take(h.n, more)
	}
	if end > int64(len(h.n.seen)) {
		h.n.seen = append(h.n.seen, make([]byte, end-int64(len(h.n.seen)))...)
	}
	copy(h.n.seen[at:], b)
	for i := at / sectorBytes; i*sectorBytes < end; i++ {
		h.n.dirty[int(i)] = true
	}
	return len(b), errors.Join(died, short)
}

func (h *faultyFile) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return fs.ErrClosed
	}
	h.closed = true
	return nil
}

func (h *faultyFile) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.fs.dead {
		return 0, errPower
	}
	return int64(len(h.n.seen)), nil
}

func (h *faultyFile) Allocate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.op(); err != nil {
		return err
	}
	if h.fs.room >= 0 && size > h.fs.room {
		return unix.ENOSPC
	}
	h.fs.take(h.n, size)
	if more := size - int64(len(h.n.seen)); more > 0 {
		h.n.seen = append(h.n.seen, make([]byte, more)...)
	}
	return nil
}

// Sync that fails leaves the pages clean and unwritten, as Linux does: another one
// would succeed and write nothing.
func (h *faultyFile) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.fs.sync()
	switch {
	case errors.Is(err, unix.EIO):
		clear(h.n.dirty)
		return err
	case err != nil || h.fs.lying:
		return err
	}
	if more := len(h.n.seen) - len(h.n.durable); more > 0 {
		h.n.durable = append(h.n.durable, make([]byte, more)...)
	}
	for i := range h.n.dirty {
		from := i * sectorBytes
		copy(h.n.durable[from:], h.n.seen[from:min(from+sectorBytes, len(h.n.seen))])
	}
	clear(h.n.dirty)
	return nil
}
