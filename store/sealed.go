package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// Cipher encrypts what a store writes to its disk: the data of log entries, and
// snapshots. Its methods are called from any goroutine. What it opens is what it has
// sealed, about the same: a Cipher authenticates.
type Cipher interface {
	// Seal encrypts plain, binds about to it, and appends the box to to.
	Seal(to, plain, about []byte) []byte
	// Open is the inverse of Seal.
	Open(box, about []byte) ([]byte, error)
	// SealTo returns a writer that encrypts a stream to w. Without its Close the
	// stream does not open. It does not close w.
	SealTo(w io.Writer, about []byte) (io.WriteCloser, error)
	// OpenFrom returns a reader of what SealTo wrote to r: io.EOF comes at its true
	// end only.
	OpenFrom(r io.Reader, about []byte) (io.Reader, error)
	// PlainSize is how many bytes OpenFrom gives of a stream of so many.
	PlainSize(sealed int64) int64
}

// errSealed says that something does not open: it is damaged, was put there by
// somebody else, or is of another place in the log.
var errSealed = errors.New("does not open")

// sealEntry returns the entry as it is written: its data sealed, bound to where the
// entry stands. An entry that was moved, or given another type, does not open. The data
// is appended to to.
func sealEntry(c Cipher, e *raft.Log, to []byte) (raft.Log, []byte) {
	sealed, from := *e, len(to)
	to = c.Seal(to, e.Data, aboutEntry(e))
	sealed.Data = to[from:len(to):len(to)]
	return sealed, to
}

// openEntry is the inverse of sealEntry, in place.
func openEntry(c Cipher, e *raft.Log) error {
	data, err := c.Open(e.Data, aboutEntry(e))
	if err != nil {
		return fmt.Errorf("entry %d %w: %w", e.Index, errSealed, err)
	}
	e.Data = data
	return nil
}

func aboutEntry(e *raft.Log) []byte {
	b := append(make([]byte, 0, 32), "entry"...)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = append(b, byte(e.Type))
	return append(b, e.Extensions...)
}

// aboutSnapshot binds a snapshot to the entry that it ends with.
func aboutSnapshot(index, term uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte("snapshot"), index)
	return binary.BigEndian.AppendUint64(b, term)
}

// sealedLog is a log whose entries are encrypted on disk, all of them: also those
// that only raft reads.
type sealedLog struct {
	logStore
	cipher Cipher
	// ends tells the term of the entry that the newest snapshot ends with, if that is
	// at index; nil: there is no snapshot.
	ends func(index uint64) (term uint64, ok bool)
	// covered is the index that the newest snapshot ends with; set with ends.
	covered func() uint64
	// halt ends the store, and the goroutine of raft's that asks; nil while raft does
	// not run. See diskLog.
	halt func(error)
	tail logTail

	sealing sync.Mutex // guards scratch
	scratch []byte     // what was sealed last, to be written over: the log below keeps none of it
}

// entryOfSnapshot is the type of an entry that only a snapshot holds, or nobody. raft
// would panic rather than apply one.
const entryOfSnapshot raft.LogType = 255

// logStore is what raft uses of a diskLog.
type logStore interface {
	raft.LogStore
	raft.StableStore
	raft.MonotonicLogStore
}

// GetLog is part of raft.LogStore. Of the entry that the newest snapshot ends with,
// which the log may not have, it knows the term: a follower that was started again
// behind an installed snapshot is asked for it, and raft does not look there itself.
// Without it the leader would send the snapshot again and again, for ever.
func (l *sealedLog) GetLog(index uint64, to *raft.Log) error {
	if l.tail.get(index, to) {
		return nil
	}
	err := l.logStore.GetLog(index, to)
	gone := err == nil && to.Type == entryOfSnapshot
	if gone && (l.covered == nil || index < l.covered()) {
		return raft.ErrLogNotFound // it went into a snapshot: who needs it is to get that
	}
	if (gone || errors.Is(err, raft.ErrLogNotFound)) && l.ends != nil {
		if term, ok := l.ends(index); ok {
			*to = raft.Log{Index: index, Term: term, Type: entryOfSnapshot}
			return nil
		}
	}
	if err != nil || gone {
		return err
	}
	if err = openEntry(l.cipher, to); err != nil && l.halt != nil {
		l.halt(fmt.Errorf("%w: log: %w", ErrUnreadable, err)) // its sum is right: raft would panic
	}
	return err
}

// StoreLog is part of raft.LogStore.
func (l *sealedLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs is part of raft.LogStore.
func (l *sealedLog) StoreLogs(entries []*raft.Log) error {
	l.sealing.Lock()
	defer l.sealing.Unlock()
	sealed, pointers := make([]raft.Log, len(entries)), make([]*raft.Log, len(entries))
	b := l.scratch[:0]
	for i, e := range entries {
		sealed[i], b = sealEntry(l.cipher, e, b)
		pointers[i] = &sealed[i]
	}
	if cap(b) <= maxScratch {
		l.scratch = b
	}
	if err := l.logStore.StoreLogs(pointers); err != nil {
		l.tail.forget()
		return err
	}
	l.tail.add(entries)
	return nil
}

// DeleteRange is part of raft.LogStore.
func (l *sealedLog) DeleteRange(from, to uint64) error {
	l.tail.forget()
	return l.logStore.DeleteRange(from, to)
}

// readThrough opens every entry, so that what is not this server's own is found
// before it votes with it.
func (l *sealedLog) readThrough() error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	for i := first; i <= last; i++ {
		if err := l.GetLog(i, &raft.Log{}); err != nil {
			return err
		}
	}
	return nil
}

// sealedSnapshots are snapshots that are encrypted on disk. raft reads and writes
// them in clear: what it sends to another server is encrypted by TLS, and there by
// that server's keys.
type sealedSnapshots struct {
	raft.SnapshotStore
	cipher Cipher
}

// newest reads the newest snapshot, or makes the first state.
func (s *sealedSnapshots) newest() (st *state.State, covered uint64, err error) {
	metas, err := s.List()
	if err != nil {
		return nil, 0, err
	}
	if len(metas) == 0 {
		return state.New(), 0, nil
	}
	meta, r, err := s.Open(metas[0].ID)
	if err != nil {
		return nil, 0, err
	}
	st, err = state.Read(r)
	if err = errors.Join(err, r.Close()); err != nil { // of a file whose sum is right
		return nil, 0, fmt.Errorf("snapshot %s %w: %w", meta.ID, errSealed, err)
	}
	return st, meta.Index, nil
}

// Create is part of raft.SnapshotStore.
func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	w, err := s.cipher.SealTo(sink, aboutSnapshot(index, term))
	if err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return &sealedSink{SnapshotSink: sink, w: w}, nil
}

// Open is part of raft.SnapshotStore. Size is that of what is read.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	plain, err := s.cipher.OpenFrom(r, aboutSnapshot(meta.Index, meta.Term))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("snapshot %s %w: %w", id, errSealed, err), r.Close())
	}
	m := *meta
	m.Size = s.cipher.PlainSize(meta.Size)
	return &m, struct {
		io.Reader
		io.Closer
	}{plain, r}, nil
}

// sealedSink is a raft.SnapshotSink, used by one goroutine.
type sealedSink struct {
	raft.SnapshotSink
	w      io.WriteCloser
	closed bool
}

func (k *sealedSink) Write(p []byte) (int, error) { return k.w.Write(p) }

// Close is part of raft.SnapshotSink. raft calls it once more than Persist does.
func (k *sealedSink) Close() error {
	if k.closed {
		return nil
	}
	k.closed = true
	if err := k.w.Close(); err != nil {
		return errors.Join(err, k.Cancel())
	}
	return k.SnapshotSink.Close()
}
