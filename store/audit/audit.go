// Package audit keeps the records of the audit chain on disk, beside the log and
// the snapshots of one server.
//
// It owns segments: files of records in the order of the chain, each framed with
// its length and a CRC-32C. It refuses to know what a record says, beyond its place
// in the chain: package state makes records, and checks them.
//
// Invariants:
//   - What Append has taken is in the chain, and is read back as it was. A record
//     that is on disk already is compared with, never written again.
//   - What Sync has covered outlives a crash. What was appended after that is made
//     again by whoever replays the log, which is not to be cut before Sync.
//   - What is not there is known: Holes names it. A server that took over a state
//     from a leader has one until Fill has closed it.
//   - A record that was edited, cut off, moved or forged is named, by Open or by
//     whoever reads it: DamageError.
//
// Append, Sync and Fill may be called from several goroutines; records come in
// their order, from one.
package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/store/state"
)

// Config is how a Log is kept. Every zero value stands for its default.
type Config struct {
	Dir string // required; made (0700) if absent
	// SegmentBytes is the size above which a segment is ended. Default 4 MiB.
	SegmentBytes int64
	// MaxBytes is how much is kept: above it, the oldest segments go. Default 1 GiB.
	MaxBytes int64
	// MaxAge is how long a segment is kept after its last record. Default: for ever.
	MaxAge time.Duration
	// Now is the clock that ages are judged by. Default time.Now.
	Now func() time.Time

	// Files is the file system that Dir is on; required.
	Files Files
}

// Files is what a Log needs of a file system. Names are paths. Errors are those of
// package os.
type Files interface {
	Open(name string) (File, error)   // to read and write
	Create(name string) (File, error) // empty, mode 0600, in the place of what is there
	List(dir string) ([]string, error)
	MakeDir(dir string) error
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Sync() error
}

// maxPending is how many bytes wait in memory while the disk is full, and flushAt how
// many do otherwise: a write for each record would make each sync of the log, which is
// on the same file system, carry one of this file, too.
const (
	maxPending = 64 << 20
	flushAt    = 64 << 10
)

// DamageError is returned when a record is not what was written.
type DamageError struct {
	Sequence uint64 // the first bad record
	Segment  string // where it should be; a file name. Empty: no file at all
	Reason   string
}

func (e *DamageError) Error() string {
	if e.Segment == "" {
		return fmt.Sprintf("audit record %d: %s", e.Sequence, e.Reason)
	}
	return fmt.Sprintf("audit record %d (%s): %s", e.Sequence, e.Segment, e.Reason)
}

// Head names a record and its hash; the zero value is the start of the chain.
type Head struct {
	Sequence uint64
	Hash     []byte
}

// Range is records that follow one another.
type Range struct{ First, Last uint64 }

// Log is the records of one server. Make one by Open; Close it.
type Log struct {
	cfg Config

	mu       sync.Mutex        // guards what follows; held while writing, not while syncing
	segments []*segment        // by first record; the last one may be written
	active   File              // the last segment; nil: the next record begins a new one
	written  int64             // bytes of the active segment that are in its file
	pending  []byte            // frames, or what is left of one, that are not in the file yet
	full     bool              // since the disk had no room for them
	dirty    []File            // not synced: ended segments, to be closed, then the active one
	head     Head              // of the chain, also where its records are not here
	anchor   Head              // what precedes it was let go
	replayed map[uint64][]byte // hashes of records on disk that the log will give again
	appended chan struct{}     // closed and replaced by Append, if awaited
	awaited  bool
	err      error // fatal: nothing is written any more

	syncing sync.Mutex // held by who syncs, fills, or lets go
}

// segment is one file.
type segment struct {
	name        string // in Dir
	first, last uint64
	previous    []byte // hash of the record before first
	hash        []byte // of last
	size        int64
	newest      time.Time // when last was
}

// Open opens or makes a directory of segments and verifies every record in it. head
// is where the state stands that the log will be replayed on: records after it
// come again. The error is a *DamageError when a record is not what was written.
func Open(cfg Config, head Head) (*Log, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = 4 << 20
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 1 << 30
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := cfg.Files.MakeDir(cfg.Dir); err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, replayed: make(map[uint64][]byte), appended: make(chan struct{})}
	if err := l.load(head); err != nil {
		return nil, err
	}
	return l, nil
}

// Append keeps a record. One that is on disk already must be equal to it. While the
// disk is full records wait in memory, and Full says so; on any other error nothing
// more is taken.
func (l *Log) Append(a *state.Audit) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if err := l.append(a); err != nil {
		l.err = err
		return err
	}
	if l.awaited {
		close(l.appended)
		l.appended, l.awaited = make(chan struct{}), false
	}
	return nil
}

func (l *Log) append(a *state.Audit) error {
	sequence := a.Record.GetSequence()
	if sequence <= l.head.Sequence {
		return l.compare(a)
	}
	if sequence > l.head.Sequence+1 {
		return fmt.Errorf("audit record %d comes after %d", sequence, l.head.Sequence)
	}
	if err := l.follows(a); err != nil {
		return err
	}
	if err := l.room(a); err != nil {
		return err
	}
	s := l.segments[len(l.segments)-1]
	before := len(l.pending)
	l.pending = appendFrame(l.pending, a.Bytes)
	s.size += int64(len(l.pending) - before)
	s.last, s.hash, s.newest = sequence, a.Hash, a.Record.GetWhen().AsTime()
	l.head = Head{sequence, a.Hash}
	if len(l.pending) < flushAt && !l.full {
		return nil // the log makes it again, should the process end now
	}
	return l.flush()
}

// follows wants the next record of the chain. The state has made it a moment ago: that
// its bytes and its hash are its own is not asked again, for each entry, but of what
// comes from a disk or from another server.
func (l *Log) follows(a *state.Audit) error {
	if !bytes.Equal(a.Record.GetPrevious(), l.head.Hash) {
		return &DamageError{a.Record.GetSequence(), "", "on disk is another chain: the new record does not follow the record before"}
	}
	return nil
}

// compare is Append of a record that the log gives again.
func (l *Log) compare(a *state.Audit) error {
	sequence := a.Record.GetSequence()
	had, ok := l.replayed[sequence]
	delete(l.replayed, sequence)
	if ok && string(had) != string(a.Hash) {
		return &DamageError{sequence, l.nameOf(sequence), "is not what the log says"}
	}
	return nil // or it is in a hole, which Fill will close with what was checked
}

func (l *Log) nameOf(sequence uint64) string {
	for _, s := range l.segments {
		if s.first <= sequence && sequence <= s.last {
			return s.name
		}
	}
	return ""
}

// room makes the last segment one that the record goes into.
func (l *Log) room(a *state.Audit) error {
	sequence := a.Record.GetSequence()
	if n := len(l.segments); n > 0 && l.active != nil {
		if s := l.segments[n-1]; s.last == sequence-1 && s.size < l.cfg.SegmentBytes {
			return nil
		}
		if err := l.flush(); err != nil || len(l.pending) > 0 {
			return err // while frames wait for room, they and this one belong together
		}
	}
	s := &segment{name: segmentName(sequence), first: sequence, last: sequence - 1, previous: a.Record.GetPrevious()}
	f, err := l.cfg.Files.Create(filepath.Join(l.cfg.Dir, s.name))
	if full(err) && l.active != nil {
		return nil // the segment grows instead
	}
	if err != nil {
		return fmt.Errorf("audit segment: %w", err)
	}
	l.active, l.written = f, 0
	l.dirty = append(l.dirty, f)
	l.segments = append(l.segments, s)
	return nil
}

// flush writes what is pending.
func (l *Log) flush() error {
	for len(l.pending) > 0 {
		n, err := l.active.WriteAt(l.pending, l.written)
		l.pending, l.written = l.pending[n:], l.written+int64(n)
		switch {
		case err == nil:
		case full(err) && len(l.pending) <= maxPending:
			l.full = true
			return nil
		default:
			return fmt.Errorf("audit segment: %w", err)
		}
	}
	l.pending, l.full = l.pending[:0], false
	return nil
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Full tells whether records wait for room on the disk. Nothing new should be done
// meanwhile that would need one.
func (l *Log) Full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && l.full {
		l.err = l.flush() // there may be room again
	}
	return l.full
}

// Sync returns when all that was appended before the call is durable; afterwards
// the oldest segments go that need not be kept. A sync that has failed is not tried
// again: what is on the disk then is not known.
func (l *Log) Sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	if l.err == nil {
		l.err = l.flush()
	}
	dirty, newest, err := l.dirty, l.newest(), l.err
	if err == nil && len(l.pending) > 0 {
		err = fmt.Errorf("audit segment: %w", unix.ENOSPC)
	}
	if err != nil {
		l.mu.Unlock()
		return err
	}
	active := l.active
	l.dirty = nil
	if active != nil {
		l.dirty = append(l.dirty, active) // it may grow again
	}
	l.mu.Unlock()
	for _, f := range dirty {
		err = errors.Join(err, f.Sync())
		if f != active {
			err = errors.Join(err, f.Close())
		}
	}
	if err == nil && newest.Sequence > 0 {
		err = errors.Join(l.cfg.Files.SyncDir(l.cfg.Dir), l.writeHead(completeName, newest))
	}
	if err != nil {
		return l.fail(fmt.Errorf("sync audit segments: %w", err))
	}
	return l.letGo()
}

// newest is the newest record that is here, which is not the head of the chain while
// that is in a hole.
func (l *Log) newest() Head {
	if n := len(l.segments); n > 0 {
		return Head{l.segments[n-1].last, l.segments[n-1].hash}
	}
	return l.anchor
}

func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	return l.err
}

// Jump tells that the state now stands at head, by the word of a leader: the
// records in between are not here.
func (l *Log) Jump(head Head) error {
	if err := l.Sync(); err != nil { // the log of these records may go now
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if head.Sequence > l.head.Sequence {
		l.head, l.active = head, nil
		clear(l.replayed)
	}
	return nil
}

// letGo removes the oldest segments above what is kept. First it writes down what
// hash precedes the rest. Called with syncing held.
func (l *Log) letGo() error {
	l.mu.Lock()
	var size int64
	for _, s := range l.segments {
		size += s.size
	}
	var gone []*segment
	for len(l.segments) > 1 {
		s := l.segments[0]
		old := l.cfg.MaxAge > 0 && l.cfg.Now().Sub(s.newest) > l.cfg.MaxAge
		if size <= l.cfg.MaxBytes && !old {
			break
		}
		gone, l.segments = append(gone, s), l.segments[1:]
		size -= s.size
	}
	l.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	last := gone[len(gone)-1]
	if err := l.setAnchor(Head{last.last, last.hash}); err != nil {
		return err
	}
	for _, s := range gone {
		if err := l.cfg.Files.Remove(filepath.Join(l.cfg.Dir, s.name)); err != nil {
			return l.fail(err)
		}
	}
	return nil
}

func (l *Log) setAnchor(h Head) error {
	if err := l.writeHead(anchorName, h); err != nil {
		return l.fail(fmt.Errorf("audit anchor: %w", err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.anchor = h
	return nil
}

// Head is the newest record of the chain, and Anchor the one before the first that
// is kept, or was ever to be.
func (l *Log) Head() (head, anchor Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head, l.anchor
}

// Appended is closed when there is another record.
func (l *Log) Appended() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.awaited = true
	return l.appended
}

// Holes are the records that should be here and are not, oldest first.
func (l *Log) Holes() []Range {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holes()
}

func (l *Log) holes() []Range {
	var out []Range
	last := l.anchor.Sequence
	for _, s := range l.segments {
		if s.first > last+1 {
			out = append(out, Range{last + 1, s.first - 1})
		}
		last = s.last
	}
	if l.head.Sequence > last {
		out = append(out, Range{last + 1, l.head.Sequence})
	}
	return out
}

// Close makes everything durable.
func (l *Log) Close() error {
	err := l.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.dirty {
		err = errors.Join(err, f.Close())
	}
	l.dirty, l.active = nil, nil
	if l.err == nil {
		l.err = errors.New("audit log is closed")
	}
	return err
}
