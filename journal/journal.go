// Package journal keeps lines on one server's disk that cannot be changed, left out or
// moved without a trace from there on: each is a JSON object that ends with its number
// and the SHA-256 of the line before.
//
// It owns the files: the newest lines are at Config.Path, those of before beside it, in
// segments named by their first line. It refuses to know what a line says, and when
// lines may go: its callers do.
//
// Invariants:
//   - The chain goes on across segments, and across what was let go: the head of that is
//     kept in a file of its own, and a cut of more than that is a *LineError.
//   - An ended segment is whole and durable before the next one begins.
//   - After an error of writing or syncing nothing more is taken, until Recover.
//
// All methods may be called from several goroutines.
package journal

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config is how a Journal is kept.
type Config struct {
	Path string // of the newest segment, mode 0600; made if absent
	// SegmentBytes is the size above which a segment is ended. Default 16 MiB.
	SegmentBytes int64
	// Check wants a body that Append would have been given. Nil: any JSON object.
	Check func(body []byte) error
}

// Head names a state of a journal.
type Head struct {
	Lines uint64 `json:"lines"`
	Hash  string `json:"hash"` // SHA-256 of the last line without its line feed, hex; empty for no lines
}

// LineError is returned when a line is not what was written.
type LineError struct {
	Line   uint64 // from 1
	Reason string
}

func (e *LineError) Error() string { return fmt.Sprintf("journal line %d: %s", e.Line, e.Reason) }

// ErrLetGo is returned when what is asked for lies before the lines that are kept.
var ErrLetGo = errors.New("the line was let go")

// Journal is an open journal. Close it.
type Journal struct {
	cfg Config

	mu     sync.Mutex // guards all below up to syncing; held while writing, not while syncing
	f      *os.File   // the newest segment
	size   int64      // of its whole lines
	first  uint64     // its first line, or the next one
	ended  []segment  // oldest first
	closed []*os.File // ended and synced, to be closed by who syncs
	head   Head
	letGo  Head
	err    error // the first write or sync error; nothing is appended after it

	syncing sync.Mutex // held by the one who syncs for all that wait
	synced  uint64     // guarded by syncing: lines known to be durable
}

// segment is a file that grows no more.
type segment struct {
	path  string
	first uint64
	last  Head
	size  int64
	ended time.Time
}

// Open opens the journal at cfg.Path, or makes it. Every line is verified first. A last
// line without its end is what a crash leaves, and is cut off.
func Open(cfg Config) (*Journal, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = 16 << 20
	}
	j := &Journal{cfg: cfg}
	if err := j.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", cfg.Path, err), j.closeFile())
	}
	return j, nil
}

// Append writes a line for a body, a JSON object, and returns its number. It is durable
// after Sync only.
func (j *Journal) Append(body []byte) (line uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	if j.size >= j.cfg.SegmentBytes {
		if err := j.rotate(); err != nil {
			j.err = fmt.Errorf("journal: next segment: %w", err)
			return 0, j.err
		}
	}
	b := join(body, j.head)
	if _, err := j.f.WriteAt(append(b, '\n'), j.size); err != nil {
		j.err = fmt.Errorf("journal: write: %w", err)
		return 0, j.err
	}
	j.size += int64(len(b)) + 1
	j.head = Head{j.head.Lines + 1, hashOf(b)}
	return j.head.Lines, nil
}

// rotate ends the newest segment and begins another. The ended one is durable first: a
// power cut leaves no gap between them.
func (j *Journal) rotate() error {
	if err := j.f.Sync(); err != nil {
		return err
	}
	old := segment{path: segmentPath(j.cfg.Path, j.first, j.head.Lines), first: j.first, last: j.head, size: j.size}
	info, err := j.f.Stat()
	if err != nil {
		return err
	}
	old.ended = info.ModTime()
	if err := os.Rename(j.cfg.Path, old.path); err != nil {
		return err
	}
	f, err := os.OpenFile(j.cfg.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	j.closed = append(j.closed, j.f)
	j.ended = append(j.ended, old)
	j.f, j.size, j.first = f, 0, j.head.Lines+1
	return syncDir(filepath.Dir(j.cfg.Path))
}

// Sync returns once a line is durable. Concurrent calls share one sync of the disk.
func (j *Journal) Sync(line uint64) error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.synced >= line {
		return nil
	}
	_, err := j.sync()
	return err
}

// Durable makes the newest state durable, and returns it.
func (j *Journal) Durable() (Head, error) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	head, err := j.head, j.err
	j.mu.Unlock()
	if err != nil || head.Lines == j.synced {
		return head, err
	}
	return j.sync()
}

// sync syncs what is written. Called with syncing held.
func (j *Journal) sync() (Head, error) {
	j.mu.Lock()
	f, head, err, closed := j.f, j.head, j.err, j.closed
	j.closed = nil
	j.mu.Unlock()
	for _, c := range closed {
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return Head{}, err
	}
	if err := f.Sync(); err != nil {
		err = fmt.Errorf("journal: sync: %w", err)
		j.fail(err)
		return Head{}, err
	}
	j.synced = head.Lines
	return head, nil
}

func (j *Journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
}

// Recover makes a journal take lines again after it could not write one, for who can
// bear that lines are lost. What was left of the line is cut off.
func (j *Journal) Recover() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil || errors.Is(j.err, os.ErrClosed) {
		return j.err
	}
	if err := errors.Join(j.closeFile(), j.load()); err != nil {
		return err
	}
	j.err = nil
	return nil
}

func (j *Journal) closeFile() error {
	if j.f == nil {
		return nil
	}
	return j.f.Close()
}

// Head returns the newest state, which may not be durable yet.
func (j *Journal) Head() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head
}

// LetGoOf returns the state before the first line that is kept.
func (j *Journal) LetGoOf() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.letGo
}

// Spare is the last line that can go if no more than so many bytes are kept, and no
// segment longer than age after its end (0: for ever). The newest segment is kept.
func (j *Journal) Spare(bytes int64, age time.Duration, now time.Time) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	size := j.size
	for _, s := range j.ended {
		size += s.size
	}
	spare := j.letGo.Lines
	for _, s := range j.ended {
		if size <= bytes && (age == 0 || now.Sub(s.ended) <= age) {
			break
		}
		spare = s.last.Lines
		size -= s.size
	}
	return spare
}

// LetGo removes the segments that end at, or before, a line.
func (j *Journal) LetGo(line uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for n < len(j.ended) && j.ended[n].last.Lines <= line {
		n++
	}
	if n == 0 {
		return nil
	}
	gone := j.ended[:n]
	if err := writeLetGo(j.cfg.Path, gone[n-1].last); err != nil {
		return err
	}
	j.letGo, j.ended = gone[n-1].last, j.ended[n:]
	for _, s := range gone {
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
	return nil
}

// LeadsThrough tells whether the journal goes on from a state that it once had. The
// error says in what way it does not: a *LineError if it was cut, or rewritten; ErrLetGo
// if that state lies before what is kept.
func (j *Journal) LeadsThrough(was Head) error {
	letGo := j.LetGoOf()
	switch {
	case was.Lines < letGo.Lines:
		return ErrLetGo
	case was.Lines == letGo.Lines && was.Hash != letGo.Hash:
		return &LineError{was.Lines, "is not what it was: this line, or one before it, was rewritten"}
	case was.Lines == letGo.Lines:
		return nil
	}
	n, hash := uint64(0), ""
	err := j.each(was.Lines, func(first uint64) error { n = first - 1; return nil }, func(line []byte) error {
		if n++; n == was.Lines {
			hash = hashOf(line)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case n < was.Lines:
		return &LineError{n + 1, fmt.Sprintf("is gone: there were %d lines", was.Lines)}
	case hash != was.Hash:
		return &LineError{was.Lines, "is not what it was: this line, or one before it, was rewritten"}
	}
	return nil
}

// Each calls fn with every line that is kept at the time of the call, oldest first, and
// before that begin, if it is not nil, with the state that they go on from.
func (j *Journal) Each(begin func(Head) error, fn func(line []byte) error) error {
	return j.each(0, func(first uint64) error {
		if begin == nil {
			return nil
		}
		letGo := j.LetGoOf()
		if first != letGo.Lines+1 {
			return ErrLetGo // it was let go between the two looks; ask again
		}
		return begin(letGo)
	}, fn)
}

// each is Each from the segment on that holds a line. The files are opened at once:
// what is let go meanwhile is read all the same.
func (j *Journal) each(from uint64, begin func(first uint64) error, fn func(line []byte) error) error {
	type part struct {
		f     *os.File
		lines uint64
	}
	var parts []part
	defer func() {
		for _, p := range parts {
			p.f.Close()
		}
	}()
	j.mu.Lock()
	first := uint64(0)
	open := func(path string, at, last uint64) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if len(parts) == 0 {
			first = at
		}
		parts = append(parts, part{f, last + 1 - at})
		return nil
	}
	var err error
	for _, s := range j.ended {
		if s.last.Lines >= from && err == nil {
			err = open(s.path, s.first, s.last.Lines)
		}
	}
	if err == nil {
		err = open(j.cfg.Path, j.first, j.head.Lines)
	}
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := begin(first); err != nil {
		return err
	}
	for _, p := range parts {
		if err := readLines(p.f, p.lines, fn); err != nil {
			return err
		}
	}
	return nil
}

func readLines(f *os.File, n uint64, fn func(line []byte) error) error {
	in := bufio.NewReader(f)
	for range n {
		b, err := in.ReadBytes('\n')
		if err == io.EOF {
			return nil // it was cut meanwhile, and whoever counts finds out
		}
		if err != nil {
			return err
		}
		if err := fn(b[:len(b)-1]); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the journal. Append fails afterwards.
func (j *Journal) Close() error {
	j.fail(fmt.Errorf("journal: closed: %w", os.ErrClosed))
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.f.Sync()
	for _, f := range append(j.closed, j.f) {
		err = errors.Join(err, f.Close())
	}
	j.closed = nil
	return err
}

func hashOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
