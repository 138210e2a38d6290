package identity

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/ztmesh/ztmesh/failpoint"
)

// WriteFile makes path hold b, mode 0600, all of it or nothing, and returns
// once that is durable. What is there is replaced.
func WriteFile(path string, b []byte) error { return place(path, b, os.Rename) }

// createFile is WriteFile for a path where there must be nothing yet.
func createFile(path string, b []byte) error { return place(path, b, os.Link) }

// place writes b beside path and puts the finished file there.
func place(path string, b []byte, put func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	failpoint.Hit("identity.file.written")
	if err == nil {
		err = put(f.Name(), path)
	}
	failpoint.Hit("identity.file.placed")
	if gone := os.Remove(f.Name()); !errors.Is(gone, os.ErrNotExist) { // after a rename there is none
		err = errors.Join(err, gone)
	}
	return errors.Join(err, syncDir(dir))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readPrivate reads a regular file that only its owner can read or write.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkPrivate(f); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

func checkPrivate(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %v, must be a file of mode 0600", f.Name(), st.Mode())
	}
	return nil
}

// ErrLocked is returned by LockFile while another process, or another caller, has it.
var ErrLocked = errors.New("in use by another process")

// LockFile takes a file, which it makes with mode 0600, until the result is closed or
// the process ends.
func LockFile(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written to it
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return locked{f}, nil
}

// locked is a file whose lock is given up before it is closed: a process that is being
// started at that moment has it open, too, and would keep the lock until it runs.
type locked struct{ *os.File }

func (l locked) Close() error {
	return errors.Join(syscall.Flock(int(l.Fd()), syscall.LOCK_UN), l.File.Close())
}
