package audit

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/ztmesh/ztmesh/store/state"
)

// Read calls fn with the records from a sequence number on, oldest first, to the
// newest of the moment of the call. Those that are not here are left out. It returns
// the error of fn, or a *DamageError at the first record that is not as it was
// written; what follows what, is for the caller to check.
func (l *Log) Read(from uint64, fn func(*state.Audit) error) error {
	for _, s := range l.snapshot() {
		if s.last < from {
			continue
		}
		err := l.readSegment(s, func(a *state.Audit) error {
			if a.Record.GetSequence() < from {
				return nil
			}
			return fn(a)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadBack calls fn with the records before a sequence number (0: all), newest
// first, until fn returns false.
func (l *Log) ReadBack(before uint64, fn func(*state.Audit) bool) error {
	segments := l.snapshot()
	for _, s := range slices.Backward(segments) {
		if before != 0 && s.first >= before {
			continue
		}
		var records []*state.Audit
		if err := l.readSegment(s, func(a *state.Audit) error {
			records = append(records, a)
			return nil
		}); err != nil {
			return err
		}
		for _, a := range slices.Backward(records) {
			if (before == 0 || a.Record.GetSequence() < before) && !fn(a) {
				return nil
			}
		}
	}
	return nil
}

// snapshot is the segments as they are now; later records are not in it.
func (l *Log) snapshot() []segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = l.flush()
	}
	out := make([]segment, 0, len(l.segments))
	for _, s := range l.segments {
		if s.last >= s.first {
			out = append(out, *s)
		}
	}
	return out
}

// readSegment reads the records of a segment. One that was let go meanwhile has
// none.
func (l *Log) readSegment(s segment, fn func(*state.Audit) error) error {
	f, err := l.cfg.Files.Open(filepath.Join(l.cfg.Dir, s.name))
	if errors.Is(err, fs.ErrNotExist) {
		if _, anchor := l.Head(); anchor.Sequence >= s.last {
			return nil
		}
		return &DamageError{s.first, s.name, "is gone"}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	whole, err := reader(f)
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(whole, 64<<10)
	for next := s.first; next <= s.last; next++ {
		b, err := readFrame(in)
		if err == io.EOF || err == errTorn {
			if l.Full() {
				return nil // the rest waits in memory
			}
			return &DamageError{next, s.name, errTorn.Error()}
		}
		if err != nil {
			return &DamageError{next, s.name, err.Error()}
		}
		a, err := state.ReadAudit(b)
		if err != nil {
			return &DamageError{next, s.name, err.Error()}
		}
		if err := fn(a); err != nil {
			return err
		}
	}
	return nil
}
