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
// here: Submit and Wait in one.
func (s *Store) Propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	p, err := s.Submit(ctx, e)
	if err != nil {
		return state.Result{}, err
	}
	return p.Wait(ctx)
}

// Submit puts an entry into the log and does not wait for what comes of it. Entries
// of one goroutine come into the log in the order in which they are submitted. The
// store fills in Format (state.FormatOf) and When; e is not changed. Any number of
// entries may be under way: they share fsyncs and round trips.
//
// The error is ErrNotLeader, ErrBusy, ErrFull, ErrTooLarge, ErrAudit, ErrClosed, a
// *state.FormatError, of a member that could not read the entry, or that of ctx: the
// entry has no effect.
func (s *Store) Submit(ctx context.Context, e *logv1.Entry) (*Proposal, error) {
	r, err := s.leading(ctx)
	if err != nil {
		return nil, err
	}
	if s.Full() && state.Grows(e) {
		return nil, ErrFull
	}
	if s.audit.Full() {
		return nil, fmt.Errorf("%w: the disk is full", ErrAudit)
	}
	key := e.GetIdempotencyKey()
	if seeded == "forgotten-key" {
		key = fmt.Sprint(key, "@", r.term)
	}
	when := s.cfg.Now()
	if newest := s.State().When(); when.Before(newest) {
		when = newest
	}
	entry := &logv1.Entry{
		When: timestamppb.New(when), Who: e.GetWho(), From: e.GetFrom(), Method: e.GetMethod(), SpiffeId: e.GetSpiffeId(),
		IdempotencyKey: key, OperationHash: e.GetOperationHash(), Op: e.GetOp(),
	}
	entry.Format = state.FormatOf(entry)
	if err := s.readable(entry.Format); err != nil {
		return nil, err
	}
	data, err := proto.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("propose: %w", err)
	}
	if len(data) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), MaxEntry)
	}
	wait := enqueueTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline)
	}
	if ctx.Err() != nil || wait <= 0 {
		return nil, context.Cause(ctx)
	}
	failpoint.Hit("store.propose.handed")
	p := &Proposal{start: s.cfg.Now(), future: s.raft.Apply(data, wait), done: make(chan struct{}), store: s}
	select {
	case s.proposals <- p:
	case <-s.end.ch: // Nobody answers any more; Wait says so.
	}
	return p, nil
}

// Proposal is an entry that the log was given.
type Proposal struct {
	store  *Store
	start  time.Time
	future raft.ApplyFuture
	done   chan struct{} // closed when what follows is set
	result state.Result
	err    error
}

// Wait returns what became of the entry once it is committed and applied here. Any
// number of callers may wait, and one that gives up is no other's loss.
//
// Result.Err is what the state answered; the entry was committed all the same.
// The error is ErrNotLeader or ErrBusy (the entry has no effect), or ErrUnknown.
func (p *Proposal) Wait(ctx context.Context) (state.Result, error) {
	if err := p.store.wait(ctx, p.done); err != nil {
		return state.Result{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return p.result, p.err
}

// Done is closed when Wait would return what became of the entry. It may never be
// when the store stops.
func (p *Proposal) Done() <-chan struct{} { return p.done }

// settle is called once, when the future has its answer.
func (p *Proposal) settle() {
	defer close(p.done)
	if err := p.future.Error(); err != nil {
		p.err = proposeError(err)
		return
	}
	failpoint.Hit("store.propose.committed")
	p.store.metrics.commit.Observe(p.store.cfg.Now().Sub(p.start).Seconds())
	switch answer := p.future.Response().(type) {
	case state.Result:
		p.result = answer
	case error:
		p.err = fmt.Errorf("%w: %w", ErrUnknown, answer)
	default:
		p.err = fmt.Errorf("%w: answer %T", ErrUnknown, answer)
	}
}

// answerProposals settles all proposals: they are answered in the order of the log,
// so one goroutine can wait for all of them, and is woken once for each batch. It
// ends when the store has stopped, or never, if raft leaves a proposal without an
// answer when it shuts down.
func (s *Store) answerProposals() {
	for {
		select {
		case p := <-s.proposals:
			p.settle()
		case <-s.end.ch:
			return
		}
	}
}

// await waits for a future of raft's, or until ctx is done or the store stops. raft
// leaves some futures without an answer when it shuts down, and only for those the
// goroutine outlives the store.
func (s *Store) await(ctx context.Context, f raft.Future) error {
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f.Error()
	}()
	if stopped := s.wait(ctx, done); stopped != nil {
		return stopped
	}
	return err
}

// wait returns nil when done is closed, or why it waits no longer.
func (s *Store) wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
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
	case isFull(err): // the log has refused it, and sent it to nobody
		return fmt.Errorf("%w: %w", ErrFull, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}
