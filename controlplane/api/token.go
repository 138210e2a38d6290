package api

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// redeemable returns why the state would refuse a token, without proposing anything:
// guesses cost no entry of the log. Whether there is a token of that id makes no
// difference to the way that a refusal takes.
func (s *Server) redeemable(ctx context.Context, op *logv1.Redeem) error {
	e := &logv1.Entry{When: timestamppb.New(s.cfg.Now()), Op: &logv1.Entry_Redeem{Redeem: op}}
	if s.cfg.Log.State().Try(e) == nil {
		return nil
	}
	// Or it has not come here yet. The barrier is not this caller's alone, and outlives it.
	err := s.barriers.wait(ctx, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Deadline)
		defer cancel()
		return s.cfg.Log.Barrier(ctx)
	})
	if err != nil {
		return err
	}
	if err = s.cfg.Log.State().Try(e); errors.Is(err, state.ErrTokenInvalid) {
		s.metrics.tokens.Inc()
	}
	return err
}

// redeem uses a token up that was found to be redeemable a moment ago; of many that ask
// at once, the state lets one have it.
func (s *Server) redeem(ctx context.Context, op *logv1.Redeem) (state.Result, error) {
	result, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: op}})
	if errors.Is(err, state.ErrTokenInvalid) {
		s.metrics.tokens.Inc()
	}
	return result, err
}

// barriers makes one barrier serve all who ask while another is under way: a flood of
// calls that are to be refused costs the cluster no more than one at a time.
type barriers struct {
	mu   sync.Mutex // guards next
	next *barrier   // begins when the one that runs ends; nil: nobody waits for one

	running sync.Mutex // held by the one that runs
}

// errBarrier is what those hear that wait for a barrier which panics.
var errBarrier = errors.New("the barrier did not end")

type barrier struct {
	done chan struct{} // closed when err is known
	err  error
}

// wait returns what a barrier says that begins after the call.
func (b *barriers) wait(ctx context.Context, run func() error) error {
	b.mu.Lock()
	mine := b.next
	first := mine == nil
	if first {
		mine = &barrier{done: make(chan struct{}), err: errBarrier}
		b.next = mine
	}
	b.mu.Unlock()
	if !first {
		select {
		case <-mine.done:
			return mine.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer close(mine.done) // also when run panics
	b.running.Lock()
	defer b.running.Unlock()
	b.mu.Lock()
	b.next = nil // who comes from now on waits for the next
	b.mu.Unlock()
	mine.err = run()
	return mine.err
}
