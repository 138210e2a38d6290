package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
)

// leadership is whether this server leads, as runLeadership has found.
type leadership struct {
	mu      sync.Mutex    // guards what follows
	now     reign         // zero: does not lead
	changed chan struct{} // closed and replaced whenever raft has told something
}

// reign is one term of leading. It begins when an entry of that term is committed
// and applied here: the state then holds all that was ever acknowledged.
type reign struct {
	term  uint64
	index uint64 // of that entry; what precedes it is applied
}

func (l *leadership) get() (reign, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.changed
}

func (l *leadership) set(r reign) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = r
	close(l.changed)
	l.changed = make(chan struct{})
}

// runLeadership follows what raft says about leadership until the store closes, and
// then stops raft and its transport and waits for them.
func (s *Store) runLeadership() {
	for {
		select {
		case leads := <-s.notify:
			var r reign
			if leads {
				r = s.begin()
			} else {
				failpoint.Hit("store.leader.ended")
			}
			s.lead.set(r)
		case <-s.removed:
			if !s.isMember() { // It may have been added again since.
				s.end.set(ErrRemoved)
			}
		case <-s.end.ch:
			s.down = s.raft.Shutdown().Error() // A server that has failed must not lead.
			s.lead.set(reign{})
			return
		}
	}
}

// begin commits an entry in the new term and waits until it is applied. It
// returns the zero reign if leadership was lost before that.
func (s *Store) begin() reign {
	failpoint.Hit("store.leader.begin")
	term := s.raft.CurrentTerm()
	if seeded == "early-leader" {
		return reign{term: term, index: s.raft.LastIndex()}
	}
	f := s.raft.Barrier(0)
	if s.await(context.Background(), f) != nil || s.raft.CurrentTerm() != term {
		return reign{}
	}
	failpoint.Hit("store.leader.begun")
	return reign{term: term, index: f.(raft.IndexFuture).Index()}
}

// leading returns the reign of now. A server that was elected a moment ago is
// waited for; one that is not leader gets ErrNotLeader.
func (s *Store) leading(ctx context.Context) (reign, error) {
	for {
		r, changed := s.lead.get()
		select {
		case <-s.end.ch:
			return reign{}, s.end.err()
		default:
		}
		if s.raft.State() != raft.Leader {
			return reign{}, ErrNotLeader
		}
		if r.term != 0 && r.term == s.raft.CurrentTerm() {
			return r, nil
		}
		select {
		case <-changed:
		case <-s.end.ch:
		case <-ctx.Done():
			return reign{}, context.Cause(ctx)
		}
	}
}

// Barrier returns when State holds every entry that was acknowledged anywhere
// before the call: a read after it is linearizable. It costs one round trip to a
// quorum and no disk. It returns ErrNotLeader where this server does not lead.
func (s *Store) Barrier(ctx context.Context) error {
	r, err := s.leading(ctx)
	if err != nil {
		return err
	}
	// In a term in which it has committed, a leader's commit index covers all that
	// was acknowledged before, if it leads still: a quorum must say so afterwards.
	commit := s.raft.CommitIndex()
	if err := s.confirm(ctx, r.term); err != nil {
		return err
	}
	failpoint.Hit("store.barrier.confirmed")
	// Since the reign began, every entry is one that the fsm sees.
	for commit > r.index {
		applied, advanced := s.fsm.progress()
		if applied >= commit {
			break
		}
		select {
		case <-advanced:
		case <-s.end.ch:
			return s.end.err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// confirm returns when a quorum has answered, to calls sent after confirm was
// called, that this server leads in term.
func (s *Store) confirm(ctx context.Context, term uint64) error {
	if seeded == "stale-read" {
		return nil
	}
	after := s.transport.sent.Load()
	if err := s.await(ctx, s.raft.VerifyLeader()); err != nil { // makes raft send heartbeats now
		return readError(err)
	}
	if seeded == "old-answers" {
		return nil
	}
	for {
		var others []raft.ServerID
		voters := 0
		for _, m := range s.Members() {
			if m.Voter {
				voters++
				if m.ID != s.cfg.ID {
					others = append(others, raft.ServerID(m.ID))
				}
			}
		}
		_, led := s.lead.get()
		n, more := s.transport.confirmations(others, term, after)
		if r, err := s.leading(ctx); err != nil {
			return err
		} else if r.term != term {
			return ErrNotLeader
		}
		if voters-len(others)+n > voters/2 {
			return nil
		}
		select {
		case <-more:
		case <-led:
		case <-s.end.ch:
			return s.end.err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// readError is what an error of raft's means to a call that changes nothing.
func readError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost):
		return ErrNotLeader
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	default:
		return err
	}
}

// IsLeader tells whether this server leads and has committed in its term.
func (s *Store) IsLeader() bool {
	r, _ := s.lead.get()
	return r.term != 0 && r.term == s.raft.CurrentTerm() && s.raft.State() == raft.Leader
}

// LeadsSince is the term since which this server leads, as IsLeader says; 0: it does
// not.
func (s *Store) LeadsSince() uint64 {
	if r, _ := s.lead.get(); s.IsLeader() {
		return r.term
	}
	return 0
}

// WatchLeader calls fn at once and at each change with whether this server leads
// (as IsLeader says) and since which term; 0 when it does not. Changes that are
// over before fn returns may be skipped, the last never is: a term that differs
// from the one before tells that leadership was lost in between. fn is called
// from this goroutine. WatchLeader returns the error of fn or of ctx, or ErrClosed.
func (s *Store) WatchLeader(ctx context.Context, fn func(leads bool, term uint64) error) error {
	var told reign
	for first := true; ; first = false {
		r, changed := s.lead.get()
		if first || r != told {
			told = r
			if err := fn(r.term != 0, r.term); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.end.ch:
			if r.term != 0 {
				if err := fn(false, 0); err != nil {
					return err
				}
			}
			return s.end.err()
		}
	}
}

// Leader returns the leader as this server last heard; both are empty when it
// knows none.
func (s *Store) Leader() (id, address string) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a)
}

// LastContact returns when this server last heard its leader; now, if it leads;
// the zero time, if it never has.
func (s *Store) LastContact() time.Time {
	if s.IsLeader() {
		return s.cfg.Now()
	}
	return s.raft.LastContact()
}
