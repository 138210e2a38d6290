package api

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// How much may be under way.
const (
	maxQueued  = 256 // changes that are judged, wait for it, or wait for their outcome
	maxDryRuns = 2   // at the same time; a large one takes much memory
	maxOffered = 32  // proposals whose outcome is open
)

// applier makes changes follow one another: each is judged on top of those offered
// before it, in the order in which they came, and handed to the log before the next
// is judged. It waits for none of them to be agreed on.
//
// That is sound since a change names the lineage of the documents that it was judged
// on, and the state machine takes it only on documents of that lineage: whatever has
// become of those before it, it is never taken on anything else.
type applier struct {
	queue   chan struct{} // holds a token for each change under way
	dryRuns chan struct{} // holds a token for each dry run under way
	turn    chan struct{} // holds one token; who has it may judge, offer, and use what follows
	offered []*offer      // oldest first; the outcome was open when they were looked at last
}

func newApplier() *applier {
	a := &applier{queue: make(chan struct{}, maxQueued), dryRuns: make(chan struct{}, maxDryRuns), turn: make(chan struct{}, 1)}
	a.turn <- struct{}{}
	return a
}

// offer is a change that was handed to the log.
type offer struct {
	submitted  Submitted
	entry      *logv1.Entry
	plan       *plan
	namespaces map[string]bool // whose documents it changes
}

// open tells whether the outcome is not known yet.
func (o *offer) open() bool {
	select {
	case <-o.submitted.Done():
		return false
	default:
		return true
	}
}

// settled waits for the outcome.
func (o *offer) settled(ctx context.Context) error {
	select {
	case <-o.submitted.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter makes room for a change, which leave gives back. A dry run waits for its
// turn; what would change something is refused if too many wait already.
func (a *applier) enter(ctx context.Context, dryRun bool) (leave func(), err error) {
	if dryRun {
		select {
		case a.dryRuns <- struct{}{}:
			return func() { <-a.dryRuns }, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case a.queue <- struct{}{}:
		return func() { <-a.queue }, nil
	default:
		return nil, refuse(codes.ResourceExhausted, "%d changes are under way already; nothing was changed, try again", maxQueued)
	}
}

// offer judges a wish when its turn comes, and hands what it comes to to the log.
// Where it comes to an answer instead, the answer is returned once everything that
// it rests on is settled; it is not confirmed.
func (s *Server) offer(ctx context.Context, w wish) (*offer, answer, error) {
	for {
		o, a, after, err := s.take(ctx, w)
		if err != nil || o != nil || after == nil {
			return o, a, err
		}
		if err := after.settled(ctx); err != nil {
			return nil, answer{}, err
		}
		if a.on != nil {
			return nil, a, nil
		}
	}
}

// take is one turn. Where there is something to wait for before the wish can be
// judged, or its answer given, it is returned as after.
func (s *Server) take(ctx context.Context, w wish) (o *offer, a answer, after *offer, err error) {
	select {
	case <-s.applier.turn:
		defer func() { s.applier.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, a, nil, ctx.Err()
	}
	st, ahead, err := s.applier.newest(ctx, s.cfg.Log)
	if err != nil {
		return nil, a, nil, err
	}
	if after := concerns(ahead, w.bases); after != nil {
		return nil, a, after, nil // which revision it makes is not known before it is agreed on
	}
	a = s.judge(ctx, st, w)
	if a.plan == nil {
		return nil, a, last(ahead), nil
	}
	// A member of an older version reads only what was validated on what is agreed on.
	alone := s.cfg.Cluster.Readable(state.Ahead) != nil
	if (alone || a.plan.proposal != nil) && len(ahead) > 0 {
		return nil, answer{}, last(ahead), nil // the state machine does not ask what it was judged on
	}
	failpoint.Hit("api.apply.planned")
	o = &offer{plan: a.plan, entry: a.plan.entry(st, w), namespaces: a.plan.namespaces()}
	if apply := o.entry.GetApply(); apply != nil && alone {
		apply.Lineage, apply.ValidatedAt = nil, st.Revision()
	} else if apply != nil {
		apply.Judged, _ = st.Admin(callOf(ctx).principal.Name)
	}
	s.sign(ctx, o.entry)
	s.keep(st, o)
	if o.submitted, err = s.cfg.Log.Submit(ctx, o.entry); err != nil {
		return nil, a, nil, err
	}
	s.applier.offered = append(s.applier.offered, o)
	return o, a, nil, nil
}

// newest is what the next change is judged on: what is agreed on, and on top of it
// what was offered and may still come about. ahead are those whose outcome is open.
// Of too many it waits for the oldest.
func (a *applier) newest(ctx context.Context, log Log) (st *state.State, ahead []*offer, err error) {
	if len(a.offered) >= maxOffered {
		if err := a.offered[0].settled(ctx); err != nil {
			return nil, nil, err
		}
	}
	// What has come of those that are settled is in a state that is read afterwards.
	a.offered = slices.DeleteFunc(a.offered, func(o *offer) bool { return !o.open() })
	st = log.State()
	index := st.Index()
	for _, o := range a.offered {
		index++
		// One that is in st already, or whose predecessor failed, is refused here as it
		// is there.
		if next, r := state.Apply(st, index, o.entry); r.Err == nil && !r.Replayed {
			st = next
		}
	}
	return st, a.offered, nil
}

// keep makes the view of what is expected of an offer the one of the state that it
// leads to.
func (s *Server) keep(st *state.State, o *offer) {
	next, r := state.Apply(st, st.Index()+1, o.entry)
	if r.Err != nil || len(r.Changed.Keys) == 0 {
		return
	}
	v := o.plan.next
	if o.plan.sound {
		v = v.Sound()
	}
	s.cfg.Views.Keep(next, v)
}

// concerns is the last offer that changes one of the namespaces.
func concerns(offers []*offer, namespaces map[string]uint64) *offer {
	for _, o := range slices.Backward(offers) {
		for ns := range namespaces {
			if o.namespaces[ns] {
				return o
			}
		}
	}
	return nil
}

func last(offers []*offer) *offer {
	if len(offers) == 0 {
		return nil
	}
	return offers[len(offers)-1]
}
