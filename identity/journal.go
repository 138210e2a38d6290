package identity

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/ztmesh/ztmesh/failpoint"
)

// Journal is the local record of what a server was about to sign: one JSON
// object per line, each with the SHA-256 of the line before, so that a line
// cannot be changed, left out or moved without a trace from there on. Whoever
// knows the Head (the log keeps it) also sees lines cut off the end.
type Journal struct {
	mu   sync.Mutex // guards all below up to sync; held while writing, not while syncing
	f    *os.File
	head Head
	err  error // the first write or sync error; nothing is appended after it

	sync   sync.Mutex // held by the one who syncs for all that wait
	synced uint64     // guarded by sync: lines known to be durable
}

// Head names a state of a journal.
type Head struct {
	Lines uint64 `json:"lines"`
	Hash  string `json:"hash"` // SHA-256 of the last line without its line feed, hex; empty for no lines
}

// JournalError is returned when a line is not what was written.
type JournalError struct {
	Line   uint64 // from 1
	Reason string
}

func (e *JournalError) Error() string { return fmt.Sprintf("journal line %d: %s", e.Line, e.Reason) }

// record is one line.
type record struct {
	Issuance
	Line uint64 `json:"line"`
	Prev string `json:"prev"`
}

// OpenJournal opens the journal at path, mode 0600, or makes it. Every line is
// verified first. A last line without its end is what a crash leaves: its
// certificate was never signed, and it is cut off.
func OpenJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{f: f}
	if err := j.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), f.Close())
	}
	return j, nil
}

func (j *Journal) recover() error {
	if err := checkPrivate(j.f); err != nil {
		return err
	}
	head, size, _, err := verifyJournal(j.f)
	if err != nil {
		return err
	}
	j.head, j.synced = head, head.Lines
	if err := j.f.Truncate(size); err != nil {
		return err
	}
	if _, err := j.f.Seek(size, io.SeekStart); err != nil {
		return err
	}
	return errors.Join(j.f.Sync(), syncDir(filepath.Dir(j.f.Name())))
}

// Append writes i and returns once it is durable. Concurrent calls share one
// sync. After an error the journal takes nothing more: what the disk then holds
// is not known, and signing without a record is not an option.
func (j *Journal) Append(i Issuance) error {
	line, err := j.write(i)
	if err != nil {
		return err
	}
	j.sync.Lock()
	defer j.sync.Unlock()
	if j.synced >= line {
		return nil
	}
	j.mu.Lock()
	written, err := j.head.Lines, j.err
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := j.f.Sync(); err != nil {
		err = fmt.Errorf("journal: sync: %w", err)
		j.fail(err)
		return err
	}
	j.synced = written
	failpoint.Hit("identity.journal.synced")
	return nil
}

func (j *Journal) write(i Issuance) (line uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	r := record{Issuance: i, Line: j.head.Lines + 1, Prev: j.head.Hash}
	b, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("journal: %w", err)
	}
	failpoint.Hit("identity.journal.write")
	if _, err := j.f.Write(append(b, '\n')); err != nil {
		j.err = fmt.Errorf("journal: write: %w", err)
		return 0, j.err
	}
	failpoint.Hit("identity.journal.written")
	j.head = Head{r.Line, lineHash(b)}
	return r.Line, nil
}

func (j *Journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
}

// Head returns the newest state, which may not be durable yet.
func (j *Journal) Head() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head
}

// Durable returns the newest state that is known to outlive a crash.
func (j *Journal) Durable() (Head, error) {
	j.sync.Lock()
	defer j.sync.Unlock()
	j.mu.Lock()
	head, err := j.head, j.err
	j.mu.Unlock()
	if err != nil || head.Lines == j.synced {
		return head, err
	}
	if err := j.f.Sync(); err != nil {
		err = fmt.Errorf("journal: sync: %w", err)
		j.fail(err)
		return Head{}, err
	}
	j.synced = head.Lines
	return head, nil
}

// LeadsThrough tells whether the journal goes on from a state that it once had. The
// error says in what way it does not: it was cut, or rewritten.
func (j *Journal) LeadsThrough(was Head) error {
	if was.Lines == 0 {
		return nil
	}
	n, hash := uint64(0), ""
	err := j.Each(func(line []byte) error {
		if n++; n == was.Lines {
			hash = lineHash(line)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case n < was.Lines:
		return &JournalError{n + 1, fmt.Sprintf("is gone: there were %d lines", was.Lines)}
	case hash != was.Hash:
		return &JournalError{was.Lines, "is not what it was: this line, or one before it, was rewritten"}
	}
	return nil
}

// Each calls fn with every line that is in the journal at the time of the call.
func (j *Journal) Each(fn func(line []byte) error) error {
	lines := j.Head().Lines
	f, err := os.Open(j.f.Name())
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for range lines {
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

// Refuse makes every Append from now on fail with err: nothing more is signed.
func (j *Journal) Refuse(err error) { j.fail(err) }

// Close ends the journal. Append fails afterwards.
func (j *Journal) Close() error {
	j.fail(errors.New("journal: closed"))
	j.sync.Lock()
	defer j.sync.Unlock()
	return errors.Join(j.f.Sync(), j.f.Close())
}

// VerifyJournal reads a journal and returns its head, or a *JournalError that
// names the first bad line. An unfinished last line is bad.
func VerifyJournal(r io.Reader) (Head, error) {
	head, _, torn, err := verifyJournal(r)
	if err == nil && torn {
		err = &JournalError{head.Lines + 1, "is not finished"}
	}
	if err != nil {
		return Head{}, err
	}
	return head, nil
}

// verifyJournal returns the head and the size in bytes of the finished lines,
// and whether an unfinished one follows.
func verifyJournal(r io.Reader) (head Head, size int64, torn bool, err error) {
	in := bufio.NewReader(r)
	for {
		b, err := in.ReadBytes('\n')
		if err == io.EOF {
			return head, size, len(b) > 0, nil
		}
		if err != nil {
			return Head{}, 0, false, err
		}
		size += int64(len(b))
		b = b[:len(b)-1]
		if err := checkLine(b, head); err != nil {
			return Head{}, 0, false, err
		}
		head = Head{head.Lines + 1, lineHash(b)}
	}
}

// checkLine wants the bytes that write makes, after head.
func checkLine(b []byte, head Head) error {
	bad := func(reason string) error { return &JournalError{head.Lines + 1, reason} }
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return bad("not a record")
	}
	if r.Line != head.Lines+1 {
		return bad(fmt.Sprintf("says that it is line %d", r.Line))
	}
	if r.Prev != head.Hash {
		return bad("does not follow the line before")
	}
	if again, err := json.Marshal(r); err != nil || !bytes.Equal(again, b) {
		return bad("not as it was written")
	}
	return nil
}

func lineHash(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
