package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// fsm applies committed entries. raft calls ApplyBatch, Apply, Snapshot and
// Restore from one goroutine, never two at a time; Persist runs beside later
// ApplyBatch calls, which it does not see, since a State never changes.
//
// An entry that cannot be applied breaks the fsm: it reports through fail, keeps
// the state before that entry, and refuses everything after it, snapshots too,
// so that no later start takes the hole for the truth.
type fsm struct {
	state  atomic.Pointer[state.State]
	hooks  fsmHooks
	broken error // only in raft's goroutine

	mu       sync.Mutex            // guards what follows; never held while calling out
	watchers map[*watcher]struct{} // each gets every change; see Watch
	applied  uint64                // the index of the last command or configuration seen
	advanced chan struct{}         // closed and replaced when applied grows
}

// fsmHooks is what the fsm tells the store. None of them may block.
type fsmHooks struct {
	fail       func(error)              // it is broken
	snapshot   func()                   // a snapshot was written
	configured func(raft.Configuration) // a configuration is committed
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(s *state.State, hooks fsmHooks) *fsm {
	f := &fsm{hooks: hooks, watchers: make(map[*watcher]struct{}), applied: s.Index(), advanced: make(chan struct{})}
	f.state.Store(s)
	return f
}

// Apply is part of raft.FSM; raft calls ApplyBatch instead.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch answers each command with a state.Result, or with an error when the
// fsm is broken. The state is published, and watchers are told, before it
// returns, and so before any proposer hears of it.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	s := f.state.Load()
	var changes []state.Changes
	var applied uint64
	for i, l := range logs {
		if f.broken == nil && l.Type == raft.LogCommand {
			next, result, err := apply(s, l)
			if err != nil {
				f.broken = err
				defer f.hooks.fail(err) // when what precedes it is published
			} else {
				s, answers[i] = next, result
				if !result.Changed.Empty() {
					changes = append(changes, result.Changed)
				}
			}
		}
		if f.broken != nil {
			answers[i] = f.broken
			continue
		}
		if l.Type == raft.LogConfiguration {
			f.hooks.configured(raft.DecodeConfiguration(l.Data))
		}
		applied = l.Index
	}
	f.publish(s, applied, changes)
	return answers
}

func apply(s *state.State, l *raft.Log) (*state.State, state.Result, error) {
	e := &logv1.Entry{}
	if err := proto.Unmarshal(l.Data, e); err != nil {
		return nil, state.Result{}, fmt.Errorf("entry %d: %w", l.Index, err)
	}
	next, result := state.Apply(s, l.Index, e)
	if errors.Is(result.Err, state.ErrUnknownEntry) {
		return nil, state.Result{}, fmt.Errorf("entry %d: %w", l.Index, result.Err)
	}
	return next, result, nil
}

func (f *fsm) publish(s *state.State, applied uint64, changes []state.Changes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Store(s)
	if applied > f.applied {
		f.applied = applied
		close(f.advanced)
		f.advanced = make(chan struct{})
	}
	if len(changes) == 0 {
		return
	}
	for w := range f.watchers {
		w.add(changes)
	}
}

// progress returns the index of the last entry applied, and a channel that is
// closed when there is a later one.
func (f *fsm) progress() (uint64, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.advanced
}

// Snapshot is called between two batches. It takes no time: a State is a value.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	return &snapshot{s: f.state.Load(), done: f.hooks.snapshot}, nil
}

// Restore replaces the state by that of a leader which this server is too far
// behind to follow entry by entry. What was read is used only if all of it is
// sound; otherwise raft asks again.
func (f *fsm) Restore(r io.ReadCloser) error {
	if f.broken != nil {
		return f.broken
	}
	s, err := state.Read(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	f.publish(s, s.Index(), []state.Changes{state.Diff(f.state.Load(), s)})
	return nil
}

// snapshot is one State on its way to disk.
type snapshot struct {
	s    *state.State
	done func()
}

// Persist runs in a goroutine of raft's, beside ApplyBatch.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	w := bufio.NewWriterSize(sink, 256<<10)
	_, err := s.s.WriteTo(w)
	if err = errors.Join(err, w.Flush()); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	s.done()
	return nil
}

// Release is part of raft.FSMSnapshot.
func (s *snapshot) Release() {}
