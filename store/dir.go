package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/store/state"
)

// The data directory:
//
//	lock        held by flock while a process has it open
//	server-id   whose it is; written once
//	log/        raft-wal: segments, and the terms and votes
//	snapshots/  raft's file snapshots, each a state.State with a checksum
const retainSnapshots = 2

// dirLock is the lock on a data directory. The kernel drops it when the process
// ends, however it ends.
type dirLock struct{ *os.File }

// openDir makes the directory if need be, locks it, and checks whose it is.
func openDir(dir, id string) (lock *dirLock, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // Nothing was written to it.
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrLocked
	} else if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	name := filepath.Join(dir, "server-id")
	was, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &dirLock{f}, writeOnce(name, id+"\n")
	case err != nil:
		return nil, err
	case strings.TrimSpace(string(was)) != id:
		return nil, fmt.Errorf("%w: %s, not %s", ErrOtherServer, strings.TrimSpace(string(was)), id)
	}
	return &dirLock{f}, nil
}

// writeOnce writes a small file so that after a crash it is there whole or not at
// all.
func writeOnce(name, content string) error {
	tmp, err := os.OpenFile(name+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(content)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// newestState reads the newest snapshot, or makes the first state. It does not
// fall back to an older one: entries between the two may be gone from the log.
func newestState(snapshots raft.SnapshotStore) (*state.State, error) {
	metas, err := snapshots.List()
	if err != nil {
		return nil, fmt.Errorf("%w: snapshots: %w", ErrUnreadable, err)
	}
	if len(metas) == 0 {
		return state.New(), nil
	}
	_, r, err := snapshots.Open(metas[0].ID)
	if err != nil {
		return nil, fmt.Errorf("%w: snapshot %s: %w", ErrUnreadable, metas[0].ID, err)
	}
	s, err := state.Read(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("%w: snapshot %s: %w", ErrUnreadable, metas[0].ID, err)
	}
	return s, nil
}
