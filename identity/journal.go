package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/journal"
)

// Journal is the local record of what a server was about to sign: one line for each
// Issuance, durable before the signature. It is a journal.Journal: a line cannot be
// changed, left out or moved without a trace from there on, and whoever knows the Head
// (the log keeps it) also sees lines cut off the end.
type Journal struct {
	*journal.Journal

	mu      sync.Mutex // guards refused
	refused error      // why nothing is signed now; nil: it is
}

// Head names a state of a journal.
type Head = journal.Head

// JournalError is returned when a line is not what was written.
type JournalError = journal.LineError

// OpenJournal opens the journal at path, mode 0600, or makes it. Every line is
// verified first. A last line without its end is what a crash leaves: its
// certificate was never signed, and it is cut off.
func OpenJournal(path string) (*Journal, error) { return OpenJournalIn(path, 0) }

// OpenJournalIn is OpenJournal, with segments of so many bytes; 0 is the default.
func OpenJournalIn(path string, segment int64) (*Journal, error) {
	j, err := journal.Open(journal.Config{Path: path, SegmentBytes: segment, Check: checkIssuance})
	if err != nil {
		return nil, err
	}
	return &Journal{Journal: j}, nil
}

// Append writes i and returns once it is durable. Concurrent calls share one
// sync. After an error the journal takes nothing more: what the disk then holds
// is not known, and signing without a record is not an option.
func (j *Journal) Append(i Issuance) error {
	j.mu.Lock()
	refused := j.refused
	j.mu.Unlock()
	if refused != nil {
		return refused
	}
	b, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	failpoint.Hit("identity.journal.write")
	line, err := j.Journal.Append(b)
	if err != nil {
		return err
	}
	failpoint.Hit("identity.journal.written")
	if err := j.Sync(line); err != nil {
		return err
	}
	failpoint.Hit("identity.journal.synced")
	return nil
}

// Refuse makes every Append from now on fail with err: nothing more is signed, until
// Refuse(nil).
func (j *Journal) Refuse(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refused = err
}

// Refused is why nothing is signed now; nil: it is.
func (j *Journal) Refused() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.refused
}

// VerifyJournal reads the lines of a journal that follow a head, and returns the head
// of the last; or a *JournalError that names the first bad line. An unfinished last
// line is bad.
func VerifyJournal(r io.Reader, after Head) (Head, error) {
	return journal.Verify(r, after, checkIssuance)
}

// checkIssuance wants the body of a line that Append makes.
func checkIssuance(body []byte) error {
	var i Issuance
	if err := json.Unmarshal(body, &i); err != nil {
		return errors.New("not a record")
	}
	if again, err := json.Marshal(i); err != nil || !bytes.Equal(again, body) {
		return errors.New("not as it was written")
	}
	return nil
}
