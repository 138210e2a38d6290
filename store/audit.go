package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ztmesh/ztmesh/store/audit"
	"github.com/ztmesh/ztmesh/store/state"
)

// openAudit opens the records of the entries that led to a state, and of those that
// the log will give again.
func openAudit(cfg Config, restored *state.State) (*audit.Log, error) {
	dir := filepath.Join(cfg.Dir, "audit")
	l, err := audit.Open(audit.Config{
		Dir: dir, Files: auditFiles{cfg.Files}, MaxBytes: cfg.Audit.MaxBytes, MaxAge: cfg.Audit.MaxAge, Now: cfg.Now,
	}, auditHead(restored))
	if damage := (*audit.DamageError)(nil); errors.As(err, &damage) {
		return nil, fmt.Errorf("%w: %w (keep %s as evidence, move it away, and start again: the records come from the other servers)", ErrAuditDamaged, err, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	for _, h := range l.Holes() {
		cfg.Logger.Warn("audit records are missing here; the other servers are asked for them", "first", h.First, "last", h.Last)
	}
	return l, nil
}

// BeginAudit makes the records in the folder of a store that is not open begin with
// one: what is there is removed, and what was before it lies elsewhere.
func BeginAudit(folder string, a *state.Audit) error {
	dir := filepath.Join(folder, "audit")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return audit.Begin(audit.Config{Dir: dir, Files: auditFiles{osFiles{}}}, a)
}

// AuditHeads are where the audit chain stands here: its newest record, and the one
// before the first that is kept. It is what the records on this server's disk lead
// to, which State's AuditHead says too.
func (s *Store) AuditHeads() (head, anchor audit.Head) { return s.audit.Head() }

// AuditRange is audit records that follow one another.
type AuditRange = audit.Range

// AuditHoles are the records that should be on this server and are not, oldest first.
func (s *Store) AuditHoles() []audit.Range { return s.audit.Holes() }

// FillAudit closes a hole with records of another server: next returns them in their
// order, then io.EOF; anchor is the last that the other one has let go of. They are
// believed only if the chain leads through all of them to what is here.
func (s *Store) FillAudit(hole audit.Range, anchor uint64, next func() ([]byte, error)) error {
	return s.audit.Fill(hole, anchor, next)
}

// ReadAudit calls fn with the audit records on this server's disk from a sequence
// number on, oldest first. It returns the error of fn, or an *audit.DamageError at
// a record that is not as it was written.
func (s *Store) ReadAudit(from uint64, fn func(*state.Audit) error) error {
	return s.audit.Read(from, fn)
}

// ReadAuditBack is ReadAudit of the records before a sequence number (0: all),
// newest first, until fn returns false.
func (s *Store) ReadAuditBack(before uint64, fn func(*state.Audit) bool) error {
	return s.audit.ReadBack(before, fn)
}

// WatchAudit calls fn with every audit record from a sequence number on, oldest
// first, and then with each new one, until ctx is done or fn fails. A record that is
// not here ends it.
func (s *Store) WatchAudit(ctx context.Context, from uint64, fn func(*state.Audit) error) error {
	for next := max(from, 1); ; {
		more := s.audit.Appended()
		err := s.audit.Read(next, func(a *state.Audit) error {
			next = a.Record.GetSequence() + 1
			return fn(a)
		})
		if err != nil {
			return err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.end.ch:
			return s.end.err()
		}
	}
}

// auditFiles is the file system as the audit log sees it.
type auditFiles struct{ Files }

func (f auditFiles) Open(name string) (audit.File, error) {
	file, err := f.Files.Open(name)
	if err != nil {
		return nil, err // not a File that is nil
	}
	return file, nil
}

func (f auditFiles) Create(name string) (audit.File, error) {
	file, err := f.Files.Create(name)
	if err != nil {
		return nil, err
	}
	return file, nil
}
