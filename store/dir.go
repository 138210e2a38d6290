package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// The data directory:
//
//	lock        held while a process has it open
//	server-id   whose it is; written once
//	log/        segments: the entries
//	terms       the term and the vote
//	acked       how far the log must reach at least
//	audit/      segments of the audit log
//	snapshots/  each a state.State with a checksum

// openDir makes the directory if need be, locks it, and checks whose it is.
func openDir(files Files, dir, id string) (_ io.Closer, err error) {
	if err := files.MakeDir(dir); err != nil {
		return nil, err
	}
	lock, err := files.Lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	name := filepath.Join(dir, "server-id")
	was, err := readAll(files, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return lock, replaceFile(files, name, []byte(id+"\n"))
	case err != nil:
		return nil, err
	case strings.TrimSpace(string(was)) != id:
		return nil, fmt.Errorf("%w: %s, not %s", ErrOtherServer, strings.TrimSpace(string(was)), id)
	}
	return lock, nil
}
