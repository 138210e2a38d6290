package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Files is the file system under the log, the terms and the snapshots: what of
// it a store needs, so that tests can put one in its place that loses power,
// lies, fills up or breaks. Names are paths. Errors are those of package os.
//
// What was written is durable once Sync has returned; a name that was made, moved
// or removed, once SyncDir has.
type Files interface {
	// Open opens a file to read and write.
	Open(name string) (File, error)
	// Create makes an empty file, of mode 0600, in the place of one that is there.
	Create(name string) (File, error)
	// List returns the names in a folder, sorted; fs.ErrNotExist without one.
	List(dir string) ([]string, error)
	// MakeDir makes a folder, of mode 0700, and those above it, unless it is there.
	MakeDir(dir string) error
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	// Lock takes a file for this process until it is closed or the process ends;
	// ErrLocked if another one has it.
	Lock(name string) (io.Closer, error)
	// Free is how many bytes more can be written.
	Free(dir string) (uint64, error)
}

// File is one open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size is how long the file is, in bytes.
	Size() (int64, error)
	// Allocate makes the file size bytes long and takes the room for them, so that
	// writes within do not find the disk full. What was not written reads as zeros.
	Allocate(size int64) error
	// Sync returns when everything written is on the disk. After an error nobody
	// knows what is on it, and another Sync would not tell.
	Sync() error
}

// osFiles is the file system of this machine.
type osFiles struct{}

var _ Files = osFiles{}

func (osFiles) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFiles) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFiles) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (osFiles) MakeDir(dir string) error     { return os.MkdirAll(dir, 0o700) }
func (osFiles) Rename(from, to string) error { return os.Rename(from, to) }
func (osFiles) Remove(name string) error     { return os.Remove(name) }

func (osFiles) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFiles) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written to it
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return locked{f}, nil
}

// locked is a file whose lock is given up before it is closed: a process that is being
// started at that moment has it open, too, and would keep the lock until it runs.
type locked struct{ *os.File }

func (l locked) Close() error {
	return errors.Join(unix.Flock(int(l.Fd()), unix.LOCK_UN), l.File.Close())
}

func (osFiles) Free(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Allocate(size int64) error { return allocate(f.File, size) }

// replaceFile makes name hold b, all of it or what was there before, and returns
// once that is durable.
func replaceFile(files Files, name string, b []byte) error {
	tmp := name + newSuffix
	f, err := files.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := files.Rename(tmp, name); err != nil {
		return err
	}
	return files.SyncDir(filepath.Dir(name))
}

// newSuffix is that of files that are not finished. One that a crash has left is
// of no use to anybody.
const newSuffix = ".new"

// removeUnfinished removes what a crash has left in a folder.
func removeUnfinished(files Files, dir string) error {
	names, err := files.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, newSuffix) {
			if err := files.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAll reads a file.
func readAll(files Files, name string) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.NewSectionReader(f, 0, size))
	}
	return b, errors.Join(err, f.Close())
}

// exists says whether a folder has a name.
func exists(files Files, dir, name string) (bool, error) {
	names, err := files.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.Contains(names, name), err
}
