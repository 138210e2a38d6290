package store

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/audit"
	"github.com/ztmesh/ztmesh/store/state"
)

// fsm applies committed entries. raft calls ApplyBatch, Snapshot and Restore from one
// goroutine, never two at a time; Persist runs beside later calls of ApplyBatch, which it
// does not see, since a State never changes.
//
// raft answers a batch, of at most 64 entries that were committed together, when all of
// it is applied. A proposer waits some microseconds for each entry behind its own. In
// return those of a batch propose again together, and their next entries share a sync;
// answered one by one, the first of them would get one of its own.
//
// An entry that cannot be applied breaks the fsm: it reports through fail, keeps
// the state before that entry, and refuses everything after it, snapshots too,
// so that no later start takes the hole for the truth.
type fsm struct {
	state  atomic.Pointer[state.State]
	format uint32 // the newest that this server reads
	hooks  fsmHooks
	broken error // only in raft's goroutine
	hashes hashes
	// replayed is the last entry that was applied before raft began, 0 if none was, and given
	// the last command that raft gave: those up to replayed come once more. Only in raft's
	// goroutine.
	replayed, given uint64

	mu       sync.Mutex            // guards what follows; never held while calling out
	watchers map[*watcher]struct{} // each gets every change; see Watch
	applied  uint64                // the index of the last command or configuration seen
	advanced chan struct{}         // closed and replaced when applied grows, if awaited
	awaited  bool                  // somebody has advanced
}

// fsmHooks is what the fsm tells the store. None of them may block.
type fsmHooks struct {
	format     uint32                   // the newest that it reads; 0: state.Format
	fail       func(error)              // it is broken
	audit      recorder                 // keeps the records of entries
	snapshot   func()                   // a snapshot was written
	configured func(raft.Configuration) // a configuration is committed
}

// recorder is what keeps audit records; see audit.Log.
type recorder interface {
	Append(*state.Audit) error
	Sync() error
	Jump(audit.Head) error
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(s *state.State, hooks fsmHooks) *fsm {
	f := &fsm{format: cmp.Or(hooks.format, state.Format), hooks: hooks, watchers: make(map[*watcher]struct{}), applied: s.Index(), advanced: make(chan struct{})}
	f.state.Store(s)
	return f
}

// Apply answers a command with a state.Result, or with an error when the fsm is
// broken. The state is published, and watchers are told, before it returns, and so
// before the proposer hears of it.
func (f *fsm) Apply(l *raft.Log) any {
	if f.broken != nil {
		return f.broken
	}
	if f.given = l.Index; f.given <= f.replayed {
		return nil // Nobody waits for its result: it was proposed before this start.
	}
	failpoint.Hit("store.fsm.apply")
	next, result, err := apply(f.state.Load(), l, f.format)
	if err == nil && result.Audit != nil {
		err = f.hooks.audit.Append(result.Audit)
	}
	if err != nil {
		f.broken = err
		f.hooks.fail(err)
		return err
	}
	f.hashes.note(f.state.Load(), next)
	if seeded == "late-publish" {
		go f.publish(next, l.Index, result.Changed)
		return result
	}
	f.publish(next, l.Index, result.Changed)
	failpoint.Hit("store.fsm.applied")
	return result
}

// ApplyBatch is Apply of each command in turn, and configure of each change of members,
// which has no answer.
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	answers := make([]any, len(entries))
	for i, e := range entries {
		if e.Type == raft.LogConfiguration {
			f.configure(e.Index, raft.DecodeConfiguration(e.Data))
			continue
		}
		answers[i] = f.Apply(e)
	}
	return answers
}

// configure notes a change of members.
func (f *fsm) configure(index uint64, c raft.Configuration) {
	if f.broken != nil {
		return
	}
	f.hooks.configured(c)
	f.publish(f.state.Load(), index, state.Changes{})
}

func apply(s *state.State, l *raft.Log, format uint32) (*state.State, state.Result, error) {
	e := &logv1.Entry{}
	if err := proto.Unmarshal(l.Data, e); err != nil {
		return nil, state.Result{}, fmt.Errorf("entry %d: %w", l.Index, err)
	}
	if e.GetFormat() > format {
		err := fmt.Errorf("%w: it is of format %d", state.ErrUnknownEntry, e.GetFormat())
		return nil, state.Result{}, errTooOld(fmt.Errorf("entry %d: %w", l.Index, err), format)
	}
	if forgotten, is := strings.CutPrefix(seeded, "lost-delete:"); is && e.GetApply() != nil {
		e.GetApply().Deletes = slices.DeleteFunc(e.GetApply().GetDeletes(), func(k *logv1.Key) bool { return k.GetName() == forgotten })
	}
	next, result := state.Apply(s, l.Index, e)
	if errors.Is(result.Err, state.ErrUnknownEntry) {
		return nil, state.Result{}, errTooOld(fmt.Errorf("entry %d: %w", l.Index, result.Err), format)
	}
	return next, result, nil
}

// errTooOld adds to an error what helps: this server stops, and does so again at
// each start, since it must not go on without the entry.
func errTooOld(err error, format uint32) error {
	return fmt.Errorf("%w; this server reads formats up to %d and stops: run the version of the other servers", err, format)
}

func (f *fsm) publish(s *state.State, applied uint64, changed state.Changes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Store(s)
	if applied > f.applied {
		f.applied = applied
		if f.awaited {
			close(f.advanced)
			f.advanced, f.awaited = make(chan struct{}), false
		}
	}
	if changed.Empty() {
		return
	}
	for w := range f.watchers {
		w.add(changed)
	}
}

// progress returns the index of the last entry applied, and a channel that is
// closed when there is a later one.
func (f *fsm) progress() (uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.awaited = true
	return f.applied, f.advanced
}

// errReplaying is why there is no snapshot: raft would say that it ends before what is in it.
var errReplaying = errors.New("entries that were applied before this start come once more")

// Snapshot is called between two entries. It takes no time: a State is a value.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	if f.given < f.replayed {
		return nil, errReplaying
	}
	return &snapshot{s: f.state.Load(), audit: f.hooks.audit, done: f.hooks.snapshot, fail: f.hooks.fail}, nil
}

// Restore replaces the state by that of a leader which this server is too far
// behind to follow entry by entry. What was read is used only if all of it is
// sound; otherwise raft asks again.
func (f *fsm) Restore(r io.ReadCloser) error {
	if f.broken != nil {
		return f.broken
	}
	failpoint.Hit("store.snapshot.received")
	s, err := state.Read(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if s.Index() < f.replayed {
		return nil // What is here has come from that, and raft gives again what is between.
	}
	if needs := s.SnapshotFormat(); needs > f.format {
		f.broken = errTooOld(fmt.Errorf("%w: the snapshot at %d is of format %d", state.ErrUnknownEntry, s.Index(), needs), f.format)
		f.hooks.fail(f.broken)
		return f.broken
	}
	if err := f.hooks.audit.Jump(auditHead(s)); err != nil {
		f.broken = err
		f.hooks.fail(err)
		return err
	}
	f.replayed = 0
	f.hashes.forget()
	changed := state.Diff(f.state.Load(), s)
	if seeded == "silent-restore" {
		changed = state.Changes{}
	}
	f.publish(s, s.Index(), changed)
	failpoint.Hit("store.snapshot.installed")
	return nil
}

// snapshot is one State on its way to disk.
type snapshot struct {
	s     *state.State
	audit recorder
	done  func()
	fail  func(error) // the state is not what it was
}

func auditHead(s *state.State) audit.Head {
	sequence, hash := s.AuditHead()
	return audit.Head{Sequence: sequence, Hash: hash}
}

// Persist runs in a goroutine of raft's, beside Apply. The records of all that the
// snapshot stands for are durable first: raft cuts the log after it.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	failpoint.Hit("store.snapshot.begun")
	if err := s.audit.Sync(); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := s.s.Check(); err != nil {
		s.fail(fmt.Errorf("%w: this server stops before it writes that down; its log is whole, start it again, and test its memory", err))
		return errors.Join(err, sink.Cancel())
	}
	w := bufio.NewWriterSize(halves{sink}, 256<<10)
	_, err := s.s.WriteTo(w)
	if err = errors.Join(err, w.Flush()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	failpoint.Hit("store.snapshot.written")
	if err := sink.Close(); err != nil {
		return err
	}
	failpoint.Hit("store.snapshot.placed")
	s.done()
	return nil
}

// Release is part of raft.FSMSnapshot.
func (s *snapshot) Release() {}
