package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// diskLog is the log on disk: segments, the marks of how far they must reach and of what
// was served, and the terms and votes. It checks the sum of whatever it reads.
//
// A disk that has refused a write or a sync is not asked again, since what is on it
// is no longer known: the store fails. Only a segment that finds no room is another
// matter: nothing of it was written, so the entries are refused and may come again.
//
// raft calls StoreLogs and DeleteRange one at a time, and GetLog from any goroutine.
type diskLog struct {
	*terms
	files   Files
	dir     string
	mark    *marker
	served  *servedMark
	size    int64 // of a segment, at least
	fail    func(error)
	running atomic.Bool // raft has it: see halt
	roll    atomic.Bool // the next entries begin a segment
	// suspect is the last entry that there was when the log was opened, or that is left
	// of those, while it is not known what of them was served; see Store.withheld.
	suspect atomic.Uint64

	writing sync.Mutex // held by StoreLogs and DeleteRange
	broken  error      // guarded by writing: the disk has refused
	scratch []byte     // guarded by writing: what was written last, to be written over

	mu          sync.RWMutex // guards what follows; held while reading
	segments    []*segment   // in order; none is empty
	first, last uint64       // 0: no entries
	// gone is the last of the entries before all of them were deleted, until there are
	// some again; else 0. raft asks for those: see GetLog.
	gone uint64
}

var (
	_ raft.LogStore          = (*diskLog)(nil)
	_ raft.StableStore       = (*diskLog)(nil)
	_ raft.MonotonicLogStore = (*diskLog)(nil)
)

// segmentSize is how much is taken at a time.
const segmentSize = 16 << 20

// maxScratch is how much memory is kept for the next write.
const maxScratch = 1 << 20

const (
	markFile  = "acked"
	termsFile = "terms"
)

// openLog opens or makes the log, and reads all of it: a few thousand entries. What
// is damaged is found before this server votes with it. covered is the index of the
// newest snapshot, 0 without one.
func openLog(files Files, dir string, size int64, covered uint64, fail func(error)) (_ *diskLog, err error) {
	if size == 0 {
		size = segmentSize
	}
	l := &diskLog{files: files, dir: filepath.Join(dir, "log"), size: size, fail: fail}
	if err := l.create(dir, covered); err != nil {
		return nil, err
	}
	if l.terms, err = openTerms(files, filepath.Join(dir, termsFile)); err != nil {
		return nil, err
	}
	l.terms.halt = l.halt
	if l.mark, err = openMark(files, filepath.Join(dir, markFile), fail); err != nil {
		return nil, err
	}
	if l.served, err = openServed(files, dir); err != nil {
		return nil, errors.Join(err, l.mark.file.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeSegments(), l.mark.file.Close(), l.served.Close())
		}
	}()
	if err := l.open(covered); err != nil {
		return nil, err
	}
	return l, nil
}

// start is called when raft has the log.
func (l *diskLog) start() {
	l.running.Store(true)
	l.mark.start()
}

// create makes what a new server has: the terms, what was served, then the mark. A folder
// that has more than this order allows for is not new: something was lost.
func (l *diskLog) create(dir string, covered uint64) error {
	if err := l.files.MakeDir(l.dir); err != nil {
		return err
	}
	names, err := l.files.List(l.dir)
	if err != nil {
		return err
	}
	terms, mark := filepath.Join(dir, termsFile), filepath.Join(dir, markFile)
	hasTerms, err := exists(l.files, dir, termsFile)
	if err != nil {
		return err
	}
	hasMark, err := exists(l.files, dir, markFile)
	if err != nil {
		return err
	}
	used := len(names) > 0 || covered > 0
	if !hasTerms {
		if used || hasMark {
			return fmt.Errorf("%s: %w: it is missing", terms, errDamaged)
		}
		if err := createTerms(l.files, terms); err != nil {
			return err
		}
	}
	if !hasMark {
		had, err := openTerms(l.files, terms)
		if err != nil {
			return err
		}
		if used || len(had.values) > 0 {
			return fmt.Errorf("%s: %w: it is missing", mark, errDamaged)
		}
		if err := createServed(l.files, filepath.Join(dir, servedFile)); err != nil {
			return err
		}
		if err := createMark(l.files, mark); err != nil {
			return err
		}
	}
	return l.files.SyncDir(dir)
}

// open reads the segments and checks that they reach as far as they must.
func (l *diskLog) open(covered uint64) error {
	names, err := l.files.List(l.dir)
	if err != nil {
		return err
	}
	bad := ""
	for i, name := range names {
		first, ok := parseSegmentName(name)
		if !ok {
			return fmt.Errorf("%s: %w: this is not a file of the log", filepath.Join(l.dir, name), errDamaged)
		}
		s, why, err := openSegment(l.files, l.dir, name, first)
		if err != nil {
			return err
		}
		l.segments = append(l.segments, s)
		if why != "" {
			bad = s.name + ": " + why
		}
		if i == 0 {
			continue
		}
		if before := l.segments[i-1]; before.last()+1 != s.first || (len(s.places) > 0 && before.chain() != s.seed) {
			if bad == "" {
				bad = fmt.Sprintf("%s does not go on where %s ends", s.name, before.name)
			}
			return fmt.Errorf("%w: %s", errDamaged, bad)
		}
	}
	// The first write to the last segment may have been torn.
	n := len(l.segments)
	empty := n > 0 && len(l.segments[n-1].places) == 0
	if empty {
		n--
	}
	if n > 0 {
		l.first, l.last = l.segments[0].first, l.segments[n-1].last()
	}
	if err := l.check(bad, covered); err != nil {
		return err
	}
	if empty {
		if err := l.remove(n); err != nil {
			return err
		}
	}
	return l.settle(covered)
}

// check compares what there is with the mark and the snapshot. bad is where the
// log ends before its files do.
func (l *diskLog) check(bad string, covered uint64) error {
	m, reach := l.mark.get(), max(l.last, covered)
	if bad != "" {
		bad = " (" + bad + ")"
	}
	if need := max(m.index, m.snapshot, l.served.durable.Load()); reach < need {
		return fmt.Errorf("%s: %w: log and snapshots reach to entry %d, but this server has acknowledged up to %d%s",
			l.dir, errDamaged, reach, need, bad)
	}
	if l.last > 0 && l.first > covered+1 {
		return fmt.Errorf("%s: %w: the log begins at entry %d and the newest snapshot ends at %d", l.dir, errDamaged, l.first, covered)
	}
	if m.index >= l.first && m.index <= l.last && l.last > 0 {
		var e raft.Log
		if err := l.read(m.index, &e); err != nil {
			return err
		}
		if e.Term != m.term {
			return fmt.Errorf("%s: %w: entry %d is of term %d, but the one acknowledged was of %d", l.dir, errDamaged, m.index, e.Term, m.term)
		}
	}
	return nil
}

// settle makes durable and exact what check has found to be there.
func (l *diskLog) settle(covered uint64) error {
	if err := errors.Join(l.files.SyncDir(l.dir), l.mark.again(), l.mark.snapshot(covered), l.served.again()); err != nil {
		return err
	}
	if !l.served.known {
		l.suspect.Store(l.last)
	}
	if l.last == 0 {
		return nil
	}
	if l.last < covered { // A crash between a leader's snapshot and the end of what it replaces.
		return l.deleteAll()
	}
	tail, marked := l.segments[len(l.segments)-1], l.mark.get().index
	if err := tail.clear(); err != nil {
		return err
	}
	for _, s := range l.segments {
		if s.last() > marked || s == tail {
			if err := s.rewrite(marked + 1); err != nil {
				return err
			}
		}
	}
	if l.last == marked {
		return nil
	}
	var e raft.Log
	if err := l.read(l.last, &e); err != nil {
		return err
	}
	l.mark.raise(e.Index, e.Term)
	return nil
}

// FirstIndex is part of raft.LogStore. After a restart it may be lower than before:
// only whole segments are removed.
func (l *diskLog) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.first, nil
}

// LastIndex is part of raft.LogStore.
func (l *diskLog) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last, nil
}

// IsMonotonic is part of raft.MonotonicLogStore: entries follow one another.
func (l *diskLog) IsMonotonic() bool { return true }

// GetLog is part of raft.LogStore. Damage ends the store.
//
// A follower that installs a snapshot deletes its whole log, but raft goes on believing
// that entries beyond the snapshot are in it, which another leader had not committed.
// Asked for one of them to compare with, and told that it is not there, raft would
// refuse the entries of the leader, who would send the snapshot again, and so for ever.
// Here such an entry is of term 0, which differs from that of any other, and raft
// replaces it. sealedLog leaves out those that a snapshot has.
func (l *diskLog) GetLog(index uint64, to *raft.Log) error {
	err := l.read(index, to)
	if errors.Is(err, raft.ErrLogNotFound) && l.isGone(index) {
		*to = raft.Log{Index: index, Type: entryOfSnapshot}
		return nil
	}
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		l.halt(fmt.Errorf("%w: log: %w", ErrUnreadable, err))
	}
	return err
}

func (l *diskLog) read(index uint64, to *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if index < l.first || index > l.last || l.last == 0 {
		return raft.ErrLogNotFound
	}
	s := l.segments[l.segmentOf(index)]
	return s.read(int(index-s.first), to)
}

func (l *diskLog) isGone(index uint64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return index > 0 && index <= l.gone
}

// segmentOf is the number of the segment that has an entry; the caller holds mu, or
// is the only one who writes.
func (l *diskLog) segmentOf(index uint64) int {
	n := len(l.segments) - 1
	for n > 0 && l.segments[n].first > index {
		n--
	}
	return n
}

// halt ends the store, and the goroutine of raft's that has met what raft has no
// way to bear: it would panic, and with it the process, before anybody could say
// why. Its other goroutines end when the store shuts raft down.
func (l *diskLog) halt(err error) {
	l.fail(err)
	if l.running.Load() {
		runtime.Goexit()
	}
}

// StoreLog is part of raft.LogStore.
func (l *diskLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs is part of raft.LogStore. What it returns without error is synced.
func (l *diskLog) StoreLogs(entries []*raft.Log) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	before := l.last
	for len(entries) > 0 {
		n, size := 0, int64(0)
		for n < len(entries) && (n == 0 || size < l.size/2) {
			size += recordHead + bodyHead + int64(len(entries[n].Data)+len(entries[n].Extensions))
			n++
		}
		if err := l.store(entries[:n], size); err != nil {
			return errors.Join(err, l.undo(before))
		}
		entries = entries[n:]
	}
	return nil
}

// undo takes back what was stored of entries that found no room: raft takes none of
// them for stored, and will give the same indexes again.
func (l *diskLog) undo(last uint64) error {
	var err error
	switch {
	case l.broken != nil || l.last == last:
		return nil
	case last == 0:
		err = l.deleteAll()
	default:
		err = l.deleteLast(last)
	}
	if err != nil {
		return l.refused(err)
	}
	return nil
}

// store writes entries into one segment.
func (l *diskLog) store(entries []*raft.Log, size int64) error {
	if l.broken != nil {
		return l.broken
	}
	if l.last != 0 && entries[0].Index != l.last+1 {
		return l.refused(fmt.Errorf("entry %d does not follow entry %d", entries[0].Index, l.last))
	}
	s, fresh, err := l.room(entries[0].Index, size)
	if err != nil {
		return err
	}
	b := slices.Grow(l.scratch[:0], headerSize+int(size))
	if cap(b) <= maxScratch {
		l.scratch = b
	}
	offset := s.end()
	if fresh {
		b, offset = append(b, s.header()...), 0
	}
	chain, places := s.chain(), make([]place, len(entries))
	for i, e := range entries {
		at := offset + int64(len(b))
		b, places[i] = appendRecord(b, chain, e)
		places[i].offset, chain = at, places[i].sum
	}
	_, err = s.file.WriteAt(b, offset)
	if err == nil && seeded != "lost-fsync" {
		err = s.file.Sync()
	}
	if err == nil && fresh {
		err = l.files.SyncDir(l.dir)
	}
	if err != nil {
		if fresh {
			err = errors.Join(err, s.file.Close())
		}
		return l.refused(err)
	}
	newest := entries[len(entries)-1]
	l.mu.Lock()
	s.places = append(s.places, places...)
	if fresh {
		l.segments = append(l.segments, s)
	}
	if l.first == 0 {
		l.first = entries[0].Index
	}
	l.last, l.gone = newest.Index, 0
	l.mu.Unlock()
	l.mark.raise(newest.Index, newest.Term)
	return nil
}

// refused notes that the disk has refused, for ever.
func (l *diskLog) refused(err error) error {
	l.broken = fmt.Errorf("write log: %w", err)
	l.fail(l.broken)
	return l.broken
}

// room returns the segment that the next entries go to. One that is made finds a
// disk that is full before anything is written.
func (l *diskLog) room(first uint64, size int64) (s *segment, fresh bool, err error) {
	chain := uint32(0)
	if n := len(l.segments); n > 0 {
		tail := l.segments[n-1]
		if tail.end()+size <= tail.size && !l.roll.Load() {
			return tail, false, nil
		}
		chain = tail.chain()
	}
	s = &segment{
		name: filepath.Join(l.dir, segmentName(first)), first: first, seed: chain,
		size: max(l.size, int64(headerSize)+size),
	}
	if s.file, err = l.files.Create(s.name); err == nil {
		if err = s.file.Allocate(s.size); err != nil {
			err = errors.Join(err, s.file.Close(), l.files.Remove(s.name))
		}
	}
	switch {
	case err == nil:
		l.roll.Store(false)
		return s, true, nil
	case isFull(err):
		return nil, false, fmt.Errorf("write log: %w", err)
	default:
		return nil, false, l.refused(err)
	}
}

// isFull says whether an error is that of a disk, or a quota, without room.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// DeleteRange is part of raft.LogStore: it takes away the first entries, the last,
// or all. Of the first, only whole segments go from the disk.
func (l *diskLog) DeleteRange(from, to uint64) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.broken != nil {
		return l.broken
	}
	var err error
	switch {
	case l.last == 0 || from > to || to < l.first || from > l.last:
		return nil
	case from <= l.first && to >= l.last:
		last := l.last
		err = l.deleteAll()
		l.mu.Lock()
		l.gone = last
		l.mu.Unlock()
	case from <= l.first:
		err = l.deleteFirst(to + 1)
	case to >= l.last:
		err = l.deleteLast(from - 1)
	default:
		return fmt.Errorf("entries %d to %d are in the middle of %d to %d", from, to, l.first, l.last)
	}
	if err != nil {
		return l.refused(err)
	}
	return nil
}

func (l *diskLog) deleteAll() error {
	if err := l.mark.lower(0, 0); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.segments) > 0 {
		if err := l.remove(0); err != nil {
			return err
		}
	}
	l.first, l.last = 0, 0
	l.suspect.Store(0)
	return nil
}

func (l *diskLog) deleteFirst(first uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.segments[0].last() < first {
		if err := l.remove(0); err != nil {
			return err
		}
	}
	l.first = first
	return nil
}

func (l *diskLog) deleteLast(last uint64) error {
	var e raft.Log
	if err := l.read(last, &e); err != nil {
		return err
	}
	if err := l.mark.lower(last, e.Term); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := len(l.segments) - 1; l.segments[n].first > last; n-- {
		if err := l.remove(n); err != nil {
			return err
		}
	}
	tail := l.segments[len(l.segments)-1]
	tail.places = tail.places[:last-tail.first+1]
	l.last = last
	l.suspect.Store(min(l.suspect.Load(), last))
	return tail.clear()
}

// remove takes the first or the last segment off the disk, durably, so that those
// that stay follow one another whenever the power goes.
func (l *diskLog) remove(n int) error {
	s := l.segments[n]
	l.segments = append(l.segments[:n:n], l.segments[n+1:]...)
	err := errors.Join(s.file.Close(), l.files.Remove(s.name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.files.SyncDir(l.dir)
}

func (l *diskLog) closeSegments() error {
	var errs []error
	for _, s := range l.segments {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// Close ends the use of the log; raft has ended before.
func (l *diskLog) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	orderly := l.broken == nil
	l.broken = errors.Join(l.broken, errClose)
	return errors.Join(l.mark.close(orderly && !l.terms.failed()), l.served.Close(), l.closeSegments())
}
