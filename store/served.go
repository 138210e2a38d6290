package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
)

// servedMark is up to which entry watchers have been shown the state, and so proxies may
// have been told what it means. It is durable before a watcher is called: a start applies
// the log up to it without a leader, and what is told then is never older than what was.
//
// Its file is two slots, written by turns, as the marker's. A slot that is neither empty
// nor whole may have been the newer one: then it is not known what was told.
//
// It costs a sync for each state that is shown, and no proposer waits for it.
type servedMark struct {
	files Files
	name  string
	known bool // at the start; if not, see Store.withheld

	durable atomic.Uint64

	writing sync.Mutex // guards what follows
	file    File       // nil: there is none yet
	seq     uint64
}

const (
	servedFile  = "served"
	servedMagic = "ztserv1\n"
	servedSize  = len(servedMagic) + 2*8 + crc32.Size
)

// createServed makes the file of a new server.
func createServed(files Files, name string) error { return writeServed(files, name, 0, 1) }

func writeServed(files Files, name string, index, seq uint64) error {
	b := make([]byte, 2*markStride)
	copy(b[(seq-1)%2*markStride:], encodeServed(index, seq))
	return replaceFile(files, name, b)
}

// openServed reads the file, if there is one. An older build has made none.
func openServed(files Files, dir string) (*servedMark, error) {
	m := &servedMark{files: files, name: filepath.Join(dir, servedFile)}
	there, err := exists(files, dir, servedFile)
	if err != nil || !there {
		return m, err
	}
	if m.file, err = files.Open(m.name); err != nil {
		return nil, err
	}
	empty := make([]byte, servedSize)
	whole := 0
	for slot := range int64(2) {
		b := make([]byte, servedSize)
		if _, err := m.file.ReadAt(b, slot*markStride); err != nil && !errors.Is(err, io.EOF) {
			return nil, errors.Join(err, m.file.Close())
		}
		index, seq, ok := decodeServed(b)
		if ok || string(b) == string(empty) {
			whole++
		}
		if ok && seq > m.seq {
			m.seq, m.known = seq, true
			m.durable.Store(index)
		}
	}
	m.known = m.known && whole == 2
	return m, nil
}

func encodeServed(index, seq uint64) []byte {
	b := append(make([]byte, 0, servedSize), servedMagic...)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, index)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeServed(b []byte) (index, seq uint64, ok bool) {
	body := b[:servedSize-crc32.Size]
	if string(b[:len(servedMagic)]) != servedMagic || binary.LittleEndian.Uint32(b[len(body):]) != crc32.Checksum(body, castagnoli) {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint64(b[len(servedMagic)+8:]), binary.LittleEndian.Uint64(b[len(servedMagic):]), true
}

// again writes down what was read. After a sync that failed, it may not be on the disk.
func (m *servedMark) again() error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if !m.known {
		return nil // What is written would be taken for known by the next start.
	}
	return m.write(m.durable.Load())
}

// raise returns once it is durable that the state at an index may be told.
func (m *servedMark) raise(index uint64) error {
	if index <= m.durable.Load() {
		return nil
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	if index <= m.durable.Load() {
		return nil // Another watcher was shown it.
	}
	failpoint.Hit("store.served.raise")
	if err := m.write(index); err != nil {
		return err
	}
	m.durable.Store(index)
	failpoint.Hit("store.served.raised")
	return nil
}

// write is called with writing held.
func (m *servedMark) write(index uint64) (err error) {
	m.seq++
	if m.file == nil {
		if err = writeServed(m.files, m.name, index, m.seq); err == nil {
			m.file, err = m.files.Open(m.name)
		}
	} else if _, err = m.file.WriteAt(encodeServed(index, m.seq), int64((m.seq-1)%2)*markStride); err == nil && seeded != "lazy-served" {
		err = m.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", m.name, err)
	}
	return nil
}

func (m *servedMark) Close() error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}

// replay applies the log up to what was served before. Those entries are committed: they
// had been applied here. raft gives them to the fsm once more when it hears a leader.
//
// raft could apply what it knows to be committed by itself (Config.RestoreCommittedLogs).
// That of v1.8.0 forgets the members that the log names, and never returns if there are
// more than some 8,000 entries; and it does not know of the last batch.
func (s *Store) replay() error {
	to := s.log.served.durable.Load()
	last := uint64(0)
	for i := s.snapshots.covered() + 1; i <= to; i++ {
		e := &raft.Log{}
		if err := s.sealed.GetLog(i, e); err != nil {
			return fmt.Errorf("%w: log: %w", ErrUnreadable, err)
		}
		if e.Type != raft.LogCommand {
			continue
		}
		if err, broken := s.fsm.Apply(e).(error); broken {
			return err
		}
		last = i
	}
	s.fsm.replayed, s.fsm.given = last, 0
	return nil
}

// withheld is up to which entry the state must come before it is shown to watchers; 0:
// it has. Where it is not known what was served before, that is the last entry there was
// in the log then, or what is left of it: anything after it that another leader has
// overruled was never served.
func (s *Store) withheld() uint64 {
	suspect := s.log.suspect.Load()
	if suspect == 0 {
		return 0
	}
	need := s.lastSeen(suspect)
	if applied, _ := s.fsm.progress(); applied < need {
		return need
	}
	s.log.suspect.Store(0)
	return 0
}

// Withheld tells that the state here is not shown to watchers yet, since it is not known
// what they were shown before this start, and up to which entry it must come for that.
func (s *Store) Withheld() (index uint64, is bool) {
	index = s.withheld()
	return index, index > 0
}

// show returns when watchers may be shown the state.
func (s *Store) show(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.withheld() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.end.ch:
			return s.end.err()
		case <-tick.C:
		}
	}
	return nil
}

// shown is called before a watcher is shown the state at an index.
func (s *Store) shown(index uint64) error {
	if err := s.log.served.raise(index); err != nil {
		s.end.set(err)
		return s.end.err()
	}
	return nil
}

// lastSeen is the newest entry up to an index that the fsm is given; 0: a snapshot has it.
func (s *Store) lastSeen(index uint64) uint64 {
	for ; index > 0; index-- {
		var e raft.Log
		if err := s.sealed.GetLog(index, &e); err != nil {
			return 0
		}
		switch e.Type {
		case raft.LogCommand, raft.LogConfiguration:
			return index
		case entryOfSnapshot:
			return 0
		}
	}
	return 0
}

// CaughtUp tells whether what this server had missed when it started is applied here:
// all that was committed as far as the first leader that it heard knew. Once it is, it
// stays so. to is how far that is; 0: no leader was heard yet.
func (s *Store) CaughtUp() (applied, to uint64, is bool) {
	applied, _ = s.fsm.progress()
	if s.caughtUp.Load() || s.IsLeader() {
		s.caughtUp.Store(true)
		return applied, applied, true
	}
	to = s.transport.committed.Load()
	if to == 0 || s.raft.AppliedIndex() < to || applied < s.lastSeen(to) {
		return applied, to, false
	}
	s.caughtUp.Store(true)
	return applied, to, true
}
