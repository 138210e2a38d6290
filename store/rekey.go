package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/hashicorp/raft"
)

// What follows is for who rotates the keys of the Cipher: nothing of an old key is
// ever rewritten; it goes with the segments and snapshots that it is in.

// NewSegment has the next entries begin a segment of the log, so that those before
// can go as a whole when a snapshot has what is in them.
func (s *Store) NewSegment() { s.log.roll.Store(true) }

// Snapshot writes the state as a snapshot now, and cuts the log as after any other.
// Nothing is done if there is nothing new.
func (s *Store) Snapshot(ctx context.Context) error {
	done := make(chan struct{})
	var err error
	go func() { // ends with raft
		defer close(done)
		err = s.raft.Snapshot().Error()
	}()
	if stopped := s.wait(ctx, done); stopped != nil {
		return stopped
	}
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// AtRest returns the beginnings of what the Cipher has sealed and that is still on
// disk: of the oldest entry of the log, which is sealed by the oldest key of all of
// them, and of every snapshot. complete is false if nothing can be told now: the log
// has no entry.
func (s *Store) AtRest() (beginnings [][]byte, complete bool, err error) {
	oldest, ok, err := s.log.oldest()
	if err != nil || !ok {
		return nil, false, err
	}
	beginnings = append(beginnings, oldest)
	metas, err := s.snapshots.List()
	if err != nil {
		return nil, false, err
	}
	for _, m := range metas {
		b, err := s.snapshots.beginning(m.ID)
		if errors.Is(err, fs.ErrNotExist) && !s.snapshots.has(m.ID) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, false, err
		}
		beginnings = append(beginnings, b)
	}
	return beginnings, true, nil
}

// oldest is the data of the first entry on disk, as it lies there. That may be one that
// raft has removed, in a segment that has others.
func (l *diskLog) oldest() (data []byte, ok bool, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.segments) == 0 {
		return nil, false, nil
	}
	var e raft.Log
	if err := l.segments[0].read(0, &e); err != nil {
		return nil, false, err
	}
	return e.Data, true, nil
}

// beginning is that of the content of a snapshot.
func (s *snapshots) beginning(id string) ([]byte, error) {
	f, err := s.files.Open(s.path(id))
	if err != nil {
		return nil, err
	}
	b, err := contentOf(f)
	return b, errors.Join(err, f.Close())
}

func contentOf(f File) ([]byte, error) {
	const enough = 16
	head, b := make([]byte, len(snapshotMagic)+4), make([]byte, enough)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint32(head[len(snapshotMagic):])
	if string(head[:len(snapshotMagic)]) != snapshotMagic || length > maxDescription {
		return nil, fmt.Errorf("%w: it does not begin as a snapshot", errDamaged)
	}
	_, err := f.ReadAt(b, int64(len(head))+int64(length))
	return b, err
}
