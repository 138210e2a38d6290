package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// enqueueTimeout is how long an entry may wait for the log to take it when ctx has
// no deadline.
const enqueueTimeout = 10 * time.Second

// Propose puts an entry into the log and waits until it is committed and applied
// here. The store fills in Format (state.FormatOf) and When; e is not changed. Any number of calls
// may be under way: they share fsyncs and round trips.
//
// Result.Err is what the state answered; the entry was committed all the same.
// The error is ErrNotLeader, ErrBusy, ErrTooLarge or ErrClosed (the entry has no
// effect), that of ctx if it was done before the entry was handed over (likewise),
// or ErrUnknown.
func (s *Store) Propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	if _, err := s.leading(ctx); err != nil {
		return state.Result{}, err
	}
	when := s.cfg.Now()
	if newest := s.State().When(); when.Before(newest) {
		when = newest
	}
	data, err := proto.Marshal(&logv1.Entry{
		Format: state.FormatOf(e), When: timestamppb.New(when), Who: e.GetWho(),
		IdempotencyKey: e.GetIdempotencyKey(), OperationHash: e.GetOperationHash(), Op: e.GetOp(),
	})
	if err != nil {
		return state.Result{}, fmt.Errorf("propose: %w", err)
	}
	if len(data) > MaxEntry {
		return state.Result{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), MaxEntry)
	}
	wait := enqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline)
	}
	if ctx.Err() != nil || wait <= 0 {
		return state.Result{}, context.Cause(ctx)
	}
	start := s.cfg.Now()
	failpoint.Hit("store.propose.handed")
	f := s.raft.Apply(data, wait)
	if err := s.awaitProposal(ctx, f); err != nil {
		return state.Result{}, proposeError(err)
	}
	failpoint.Hit("store.propose.committed")
	s.metrics.commit.Observe(s.cfg.Now().Sub(start).Seconds())
	switch answer := f.Response().(type) {
	case state.Result:
		return answer, nil
	case error:
		return state.Result{}, fmt.Errorf("%w: %w", ErrUnknown, answer)
	default:
		return state.Result{}, fmt.Errorf("%w: answer %T", ErrUnknown, answer)
	}
}

// proposal is an entry that raft has been given.
type proposal struct {
	future raft.ApplyFuture
	done   chan error // holds one
}

// awaitProposal is await for entries. They are answered in the order of the log, so
// one goroutine can wait for all of them: it is woken once for each batch.
func (s *Store) awaitProposal(ctx context.Context, f raft.ApplyFuture) error {
	p := proposal{future: f, done: make(chan error, 1)}
	select {
	case s.proposals <- p:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.end.ch:
		return s.end.err()
	}
	return s.wait(ctx, p.done)
}

// answerProposals ends when the store has stopped, or never, if raft leaves a
// proposal without an answer when it shuts down.
func (s *Store) answerProposals() {
	for {
		select {
		case p := <-s.proposals:
			p.done <- p.future.Error()
		case <-s.end.ch:
			return
		}
	}
}

// await waits for a future of raft's, or until ctx is done or the store stops. raft
// leaves some futures without an answer when it shuts down, and only for those the
// goroutine outlives the store.
func (s *Store) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	return s.wait(ctx, done)
}

func (s *Store) wait(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.end.ch:
		return s.end.err()
	}
}

// proposeError says what an error of raft's means for an entry. raft refuses with
// the first group before the entry reaches its log; after any other error the
// entry may be in a log somewhere.
func proposeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}
