package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
)

// memDisk is one server's file system, in memory, across its lives. When the server
// is killed what was not synced is lost, or torn by sectors, and so are names that
// were made, moved or removed since their folder was synced.
type memDisk struct {
	mu     sync.Mutex // guards what follows
	random *rand.Rand
	life   int // counts kills; who opened it in an earlier one is dead
	locked bool
	dirs   map[string]*memDir
}

// memDir is one folder.
type memDir struct {
	files map[string]*memFile
	past  []map[string]*memFile // what it was before each change since it was synced
}

// memFile is one file.
type memFile struct {
	data     []byte // shorter than size: the rest is zeros
	size     int64
	unsynced []overwritten
}

// overwritten is what a write that is not synced has replaced.
type overwritten struct {
	at  int64
	was []byte
}

const sector = 512

var errKilled = errors.New("the server was killed")

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{random: rand.New(rand.NewPCG(seed, 3)), dirs: map[string]*memDir{}}
}

// kill takes the disk from whoever has it, and loses what may be lost.
func (d *memDisk) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.life++
	d.locked = false
	for _, name := range slices.Sorted(maps.Keys(d.dirs)) {
		dir := d.dirs[name]
		if n := len(dir.past); n > 0 {
			if i := d.random.IntN(n + 1); i < n {
				dir.files = dir.past[i]
			}
		}
		dir.past = nil
		for _, name := range slices.Sorted(maps.Keys(dir.files)) {
			dir.files[name].lose(d.random)
		}
	}
}

func (f *memFile) lose(random *rand.Rand) {
	for _, w := range slices.Backward(f.unsynced) {
		for at := 0; at < len(w.was); at += sector {
			if random.IntN(2) == 0 {
				copy(f.data[w.at+int64(at):], w.was[at:min(at+sector, len(w.was))])
			}
		}
	}
	f.unsynced = nil
}

// open gives the disk to a server's new life.
func (d *memDisk) open() Files {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &memFiles{disk: d, life: d.life}
}

// memFiles is a memDisk as one life of a server has it.
type memFiles struct {
	disk *memDisk
	life int
}

var _ Files = (*memFiles)(nil)

// do runs something on the disk, unless it belongs to a later life.
func (m *memFiles) do(f func(d *memDisk) error) error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if m.life != m.disk.life {
		return errKilled
	}
	return f(m.disk)
}

// in finds the folder of a name.
func (d *memDisk) in(name string) (*memDir, string, error) {
	dir := d.dirs[path.Dir(name)]
	if dir == nil {
		return nil, "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return dir, path.Base(name), nil
}

// change remembers what a folder was.
func (d *memDir) change(by func()) {
	d.past = append(d.past, maps.Clone(d.files))
	by()
}

func (m *memFiles) Open(name string) (f File, err error) {
	err = m.do(func(d *memDisk) error {
		dir, base, err := d.in(name)
		if err != nil {
			return err
		}
		if dir.files[base] == nil {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		f = &memHandle{m, dir.files[base]}
		return nil
	})
	return f, err
}

func (m *memFiles) Create(name string) (f File, err error) {
	err = m.do(func(d *memDisk) error {
		dir, base, err := d.in(name)
		if err != nil {
			return err
		}
		made := &memFile{}
		dir.change(func() { dir.files[base] = made })
		f = &memHandle{m, made}
		return nil
	})
	return f, err
}

func (m *memFiles) List(name string) (names []string, err error) {
	err = m.do(func(d *memDisk) error {
		if d.dirs[name] == nil {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		names = slices.Collect(maps.Keys(d.dirs[name].files))
		for other := range d.dirs {
			if path.Dir(other) == name {
				names = append(names, path.Base(other))
			}
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// MakeDir makes folders that a kill does not take away.
func (m *memFiles) MakeDir(name string) error {
	return m.do(func(d *memDisk) error {
		for ; strings.Trim(name, "/.") != "" && d.dirs[name] == nil; name = path.Dir(name) {
			d.dirs[name] = &memDir{files: map[string]*memFile{}}
		}
		return nil
	})
}

func (m *memFiles) Rename(from, to string) error {
	return m.do(func(d *memDisk) error {
		dir, old, err := d.in(from)
		if err == nil && (dir.files[old] == nil || path.Dir(from) != path.Dir(to)) {
			err = fmt.Errorf("%s: %w", from, fs.ErrNotExist)
		}
		if err == nil {
			dir.change(func() {
				dir.files[path.Base(to)] = dir.files[old]
				delete(dir.files, old)
			})
		}
		return err
	})
}

func (m *memFiles) Remove(name string) error {
	return m.do(func(d *memDisk) error {
		dir, base, err := d.in(name)
		if err == nil && dir.files[base] == nil {
			err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if err == nil {
			dir.change(func() { delete(dir.files, base) })
		}
		return err
	})
}

func (m *memFiles) SyncDir(name string) error {
	return m.do(func(d *memDisk) error {
		if d.dirs[name] == nil {
			return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		d.dirs[name].past = nil
		return nil
	})
}

func (m *memFiles) Lock(string) (io.Closer, error) {
	return memLock{m}, m.do(func(d *memDisk) error {
		if d.locked {
			return ErrLocked
		}
		d.locked = true
		return nil
	})
}

// memLock is held until it is closed, or the server killed.
type memLock struct{ *memFiles }

func (l memLock) Close() error {
	return l.do(func(d *memDisk) error {
		d.locked = false
		return nil
	})
}

func (m *memFiles) Free(string) (uint64, error) { return 1 << 40, nil }

type memHandle struct {
	*memFiles
	file *memFile
}

func (h *memHandle) Close() error { return nil }

func (h *memHandle) Size() (size int64, err error) {
	err = h.do(func(*memDisk) error {
		size = h.file.size
		return nil
	})
	return size, err
}

func (h *memHandle) Allocate(size int64) error {
	return h.do(func(*memDisk) error {
		h.file.size = max(h.file.size, size)
		return nil
	})
}

func (h *memHandle) Sync() error {
	return h.do(func(*memDisk) error {
		h.file.unsynced = nil
		return nil
	})
}

// ReadAt works after a kill, too: who is dead reads no harm.
func (h *memHandle) ReadAt(p []byte, at int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	n := int(max(0, min(int64(len(p)), h.file.size-at)))
	clear(p[:n])
	if at < int64(len(h.file.data)) {
		copy(p[:n], h.file.data[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteAt(p []byte, at int64) (int, error) {
	return len(p), h.do(func(*memDisk) error {
		end := at + int64(len(p))
		if grow := end - int64(len(h.file.data)); grow > 0 {
			h.file.data = append(h.file.data, make([]byte, grow)...)
		}
		h.file.size = max(h.file.size, end)
		h.file.unsynced = append(h.file.unsynced, overwritten{at, slices.Clone(h.file.data[at:end])})
		copy(h.file.data[at:], p)
		return nil
	})
}
