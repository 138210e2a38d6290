package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"
)

// space keeps room for what must go on when the disk is full: renewals, removals,
// blocks, elections. It holds a file of as many bytes in reserve. When less than as
// much again is free, the disk counts as full, and the store takes no more of what
// would fill it. When hardly anything is left, or a write finds no room, it gives the
// reserve back. It takes it again, and the disk counts as full no more, once there is
// room for both.
//
// It is the Files of log and snapshots, so that a write that finds no room is tried
// once more with the reserve.
type space struct {
	Files
	dir  string
	size uint64 // of the reserve; 0: there is none, and the disk is never full
	log  *slog.Logger

	mu   sync.Mutex // guards what follows; not held while writing
	held bool
	full bool
}

const (
	reserveFile = "reserve"
	// lookEvery is how often the free space is asked for.
	lookEvery = time.Second
)

func newSpace(files Files, dir string, size uint64, log *slog.Logger) (*space, error) {
	s := &space{Files: files, dir: dir, size: size, log: log}
	there, err := exists(files, dir, reserveFile)
	if err != nil {
		return nil, err
	}
	s.held = there
	if size == 0 && there {
		return s, s.give()
	}
	return s, s.look()
}

// look compares what is free with what should be.
func (s *space) look() error {
	if s.size == 0 {
		return nil
	}
	free, err := s.Free(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.full
	switch {
	case s.held && free >= s.size:
		s.full = false
	case !s.held && free >= 2*s.size:
		if err := s.take(); err != nil && !isFull(err) {
			return err
		}
		s.full = !s.held
	default:
		s.full = true
		if s.held && free < s.size/8 {
			if err := s.give(); err != nil {
				return err
			}
		}
	}
	switch {
	case s.full && !was:
		s.log.Error("the disk is nearly full: changes are refused until there is room", "directory", s.dir, "free", free, "needed", s.size)
	case was && !s.full:
		s.log.Warn("the disk has room again", "directory", s.dir, "free", free)
	}
	return nil
}

// take makes the reserve. The caller holds mu.
func (s *space) take() error {
	name := filepath.Join(s.dir, reserveFile)
	f, err := s.Files.Create(name)
	if err != nil {
		return err
	}
	err = errors.Join(f.Allocate(int64(s.size)), f.Close())
	if err != nil {
		return errors.Join(err, s.Files.Remove(name))
	}
	s.held = true
	return nil
}

// give gives the reserve back. The caller holds mu, or is the only one.
func (s *space) give() error {
	if err := s.Files.Remove(filepath.Join(s.dir, reserveFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.held = false
	return nil
}

// isFullNow says whether the store should take no more.
func (s *space) isFullNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// found is told of each error, and says whether to try again.
func (s *space) found(err error) bool {
	if !isFull(err) || s.size == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.held
	if !s.full {
		s.full = true
		s.log.Error("the disk is full: changes are refused until there is room", "directory", s.dir, "error", err)
	}
	if err := s.give(); err != nil {
		s.log.Error("the reserve is not given back", "error", err)
		return false
	}
	return was
}

// Create is part of Files.
func (s *space) Create(name string) (File, error) {
	f, err := s.Files.Create(name)
	if s.found(err) {
		f, err = s.Files.Create(name)
	}
	if err != nil {
		return nil, err
	}
	return spaceFile{f, s}, nil
}

// Open is part of Files.
func (s *space) Open(name string) (File, error) {
	f, err := s.Files.Open(name)
	if err != nil {
		return nil, err
	}
	return spaceFile{f, s}, nil
}

type spaceFile struct {
	File
	space *space
}

// WriteAt is part of File. A write is not a sync: what found no room was not taken,
// and may be tried again.
func (f spaceFile) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b, at)
	if f.space.found(err) {
		return f.File.WriteAt(b, at)
	}
	return n, err
}

// Allocate is part of File.
func (f spaceFile) Allocate(size int64) error {
	err := f.File.Allocate(size)
	if f.space.found(err) {
		return f.File.Allocate(size)
	}
	return err
}

// watchSpace looks until the store ends.
func (s *Store) watchSpace() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.space.look(); err != nil {
				s.end.set(fmt.Errorf("free space: %w", err))
				return
			}
		case <-s.end.ch:
			return
		}
	}
}

// Full says whether the disk is so full that this server takes no entries that need
// more room (see state.Grows). It goes on with all others.
func (s *Store) Full() bool { return s.space.isFullNow() }
