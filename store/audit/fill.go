package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/ztmesh/ztmesh/store/state"
)

// ErrNotFilled is returned by Fill when what it was given does not close the hole.
// Nothing is kept of it.
var ErrNotFilled = errors.New("these are not the audit records that are missing")

// Begin makes a directory of which record a is the first that is kept: those before it
// lie with the cluster of before, and a says what they led to. There must be none yet.
func Begin(cfg Config, a *state.Audit) error {
	l, err := Open(cfg, Head{})
	if err != nil {
		return err
	}
	before := Head{a.Record.GetSequence() - 1, a.Record.GetPrevious()}
	if l.head.Sequence != 0 || len(l.segments) > 0 {
		err = errors.New("there are audit records already")
	} else if before.Sequence > 0 {
		err = l.setAnchor(before)
		l.head = before
	}
	if err == nil {
		err = l.Append(a)
	}
	return errors.Join(err, l.Close())
}

// Fill closes a hole with records that another server has: next returns them in
// their order, then io.EOF. They are believed only if the chain leads through all
// of them to what is here already. Records that the other server has let go of, by
// its own word, are let go of here too: those before anchor, where nothing older is
// here.
func (l *Log) Fill(hole Range, anchor uint64, next func() ([]byte, error)) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	before, after, err := l.around(hole)
	if err != nil {
		return err
	}
	f := &filling{log: l, at: before, last: hole.Last}
	defer f.drop()
	if before.Sequence == l.anchor.Sequence && anchor > before.Sequence && anchor <= hole.Last {
		f.at, f.free = Head{Sequence: anchor}, true
	}
	for {
		b, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := f.put(b); err != nil {
			return fmt.Errorf("%w: %w", ErrNotFilled, err)
		}
	}
	if f.at.Sequence != hole.Last {
		return fmt.Errorf("%w: they end at %d, not at %d", ErrNotFilled, f.at.Sequence, hole.Last)
	}
	if !bytes.Equal(f.at.Hash, after) {
		return fmt.Errorf("%w: they do not lead to those that are here", ErrNotFilled)
	}
	return l.take(f, anchor)
}

// around is what the first record of a hole must follow, and the hash that its last
// must have.
func (l *Log) around(hole Range) (before Head, after []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.holes(), hole) {
		return Head{}, nil, fmt.Errorf("%w: nothing is missing from %d to %d", ErrNotFilled, hole.First, hole.Last)
	}
	before, after = l.anchor, l.head.Hash
	for _, s := range l.segments {
		if s.last == hole.First-1 {
			before = Head{s.last, s.hash}
		}
		if s.first == hole.Last+1 {
			after = s.previous
		}
	}
	return before, after, nil
}

// filling is segments that are not believed yet.
type filling struct {
	log      *Log
	at       Head
	free     bool // the first record may follow anything
	last     uint64
	segments []*segment
	file     File
}

func (f *filling) put(b []byte) error {
	a, err := state.ReadAudit(b)
	if err != nil {
		return fmt.Errorf("record %d %w", f.at.Sequence+1, err)
	}
	if f.free {
		f.at.Hash, f.free = a.Record.GetPrevious(), false
	}
	if a, err = state.CheckAudit(b, f.at.Sequence, f.at.Hash); err != nil {
		return fmt.Errorf("record %d %w", f.at.Sequence+1, err)
	}
	if a.Record.GetSequence() > f.last {
		return fmt.Errorf("record %d was not asked for", a.Record.GetSequence())
	}
	if n := len(f.segments); n == 0 || f.segments[n-1].size >= f.log.cfg.SegmentBytes {
		if err := f.begin(a); err != nil {
			return err
		}
	}
	frame := appendFrame(nil, b)
	s := f.segments[len(f.segments)-1]
	if _, err := f.file.WriteAt(frame, s.size); err != nil {
		return err
	}
	s.size += int64(len(frame))
	s.last, s.hash, s.newest = a.Record.GetSequence(), a.Hash, a.Record.GetWhen().AsTime()
	f.at = Head{s.last, s.hash}
	return nil
}

func (f *filling) begin(a *state.Audit) error {
	if err := f.end(); err != nil {
		return err
	}
	s := &segment{name: segmentName(a.Record.GetSequence()), first: a.Record.GetSequence(), previous: a.Record.GetPrevious()}
	file, err := f.log.cfg.Files.Create(filepath.Join(f.log.cfg.Dir, s.name+newSuffix))
	if err != nil {
		return err
	}
	f.file, f.segments = file, append(f.segments, s)
	return nil
}

// end makes the file that is being written durable.
func (f *filling) end() error {
	if f.file == nil {
		return nil
	}
	err := errors.Join(f.file.Sync(), f.file.Close())
	f.file = nil
	return err
}

// drop removes what was not taken.
func (f *filling) drop() {
	if f.file != nil {
		_ = f.file.Close() // it goes anyway
	}
	for _, s := range f.segments {
		_ = f.log.cfg.Files.Remove(filepath.Join(f.log.cfg.Dir, s.name+newSuffix))
	}
}

// take puts the segments in their place.
func (l *Log) take(f *filling, anchor uint64) error {
	if err := f.end(); err != nil {
		return err
	}
	if len(f.segments) > 0 && f.segments[0].first == anchor+1 && anchor > l.anchor.Sequence {
		if err := l.setAnchor(Head{anchor, f.segments[0].previous}); err != nil {
			return err
		}
	}
	for _, s := range f.segments {
		name := filepath.Join(l.cfg.Dir, s.name)
		if err := l.cfg.Files.Rename(name+newSuffix, name); err != nil {
			return err
		}
	}
	if err := l.cfg.Files.SyncDir(l.cfg.Dir); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, f.segments...)
	slices.SortFunc(l.segments, func(a, b *segment) int { return int(int64(a.first) - int64(b.first)) })
	return nil
}
