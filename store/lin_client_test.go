package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// worker is a client of the cluster. It does one thing after another, and what it
// does not know it asks again, now or later.
type worker struct {
	*world
	id     int
	random *rand.Rand
	mine   []*operation // applied or unknown
}

func (w *world) worker(id int) *worker {
	return &worker{world: w, id: id, random: rand.New(rand.NewPCG(w.seed, uint64(1000+id)))}
}

func (c *worker) chance(percent int) bool { return c.random.IntN(100) < percent }

func (c *worker) pause(atMost time.Duration) { time.Sleep(within(c.random, atMost)) }

// work goes on until the world has so many operations.
func (c *worker) work(ctx context.Context, operations int) {
	for ctx.Err() == nil && c.counted() < operations {
		c.pause(60 * time.Millisecond)
		all := c.running()
		if len(all) == 0 {
			c.pause(time.Second)
			continue
		}
		s := all[c.random.IntN(len(all))]
		// Mostly who is said to lead.
		if id, _ := s.Leader(); c.chance(85) {
			for _, other := range all {
				if other.cfg.ID == id {
					s = other
				}
			}
		}
		switch n := c.random.IntN(100); {
		case n < 45:
			c.apply(s)
		case n < 75:
			c.read(s)
		case n < 90:
			c.glimpse(all[c.random.IntN(len(all))])
			c.count()
		default:
			c.again(s)
		}
	}
}

func (c *worker) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 500*time.Millisecond+within(c.random, 4*time.Second))
}

func (c *worker) read(s *Store) {
	ctx, cancel := c.timeout()
	defer cancel()
	if !c.look(ctx, c.id, s) {
		c.pause(200 * time.Millisecond)
	}
}

// look is a linearizable read, if the server can answer it.
func (w *world) look(ctx context.Context, client int, s *Store) bool {
	o := w.begin(client, true)
	if s.Barrier(ctx) != nil {
		return false
	}
	o.saw = viewOf(s.State())
	w.finish(o)
	return true
}

// apply writes one or two namespaces, as whoever applies a spec does: it computes
// against a state that it saw, and asks again when documents have changed.
func (c *worker) apply(s *Store) {
	saw := viewOf(c.glimpse(s))
	o := c.begin(c.id, false)
	o.key = fmt.Sprintf("c%d-%d", c.id, o.id)
	o.validated = saw.revision
	if c.chance(5) && o.validated > 0 {
		o.validated--
	}
	for range 1 + c.random.IntN(2) {
		o.writes[c.random.IntN(spaces)] = true
	}
	for i := range spaces {
		if o.based[i] = o.writes[i] && c.chance(60); o.based[i] {
			o.bases[i] = saw.at[i].revision
		}
		if o.based[i] && c.chance(10) {
			o.bases[i] /= 2
		}
	}
	if c.chance(30) {
		c.pause(5 * time.Millisecond)
	}
	c.try(s, o, false)
	for tries := c.random.IntN(4); o.outcome == isUnknown && o.tries <= tries; {
		c.pause(time.Second)
		if all := c.running(); len(all) > 0 {
			c.try(all[c.random.IntN(len(all))], o, false)
		}
	}
	c.finish(o)
	switch o.outcome {
	case isNothing:
		c.pause(200 * time.Millisecond)
	case isApplied, isUnknown:
		c.mine = append(c.mine, o)
	}
}

// resolve asks once more, when all is well, for half of what is not known. The rest
// stays possible.
func (c *worker) resolve() {
	for _, o := range c.mine {
		if leader := c.leader(); leader != nil && o.outcome == isUnknown && c.chance(50) {
			c.try(leader, o, false)
			c.finish(o)
		}
	}
	if leader := c.leader(); leader != nil {
		c.read(leader)
	}
}

// again sends what was sent before: what was unknown becomes known, what was
// answered is answered the same.
func (c *worker) again(s *Store) {
	if len(c.mine) == 0 {
		return
	}
	i := c.random.IntN(len(c.mine))
	o := c.mine[i]
	if o.outcome == isApplied {
		c.try(s, o, c.chance(10))
		c.count()
		return
	}
	c.try(s, o, false)
	if o.outcome != isUnknown {
		c.finish(o)
		if o.outcome != isApplied {
			c.mine = append(c.mine[:i], c.mine[i+1:]...)
		}
	}
}

// entry is that of an operation. Each attempt says so, where no answer depends on it.
func (o *operation) entry(who string, reused bool) *logv1.Entry {
	op := &logv1.Apply{ValidatedAt: o.validated, Bases: map[string]uint64{}}
	for i := range spaces {
		if o.based[i] {
			op.Bases[spaceName(i)] = o.bases[i]
		}
		if o.writes[i] {
			op.Puts = append(op.Puts, &logv1.Put{
				Key: &logv1.Key{Kind: "Grant", Namespace: spaceName(i), Name: "g"}, Document: []byte(strconv.Itoa(o.id)),
			})
		}
	}
	e := &logv1.Entry{Who: who, IdempotencyKey: o.key, OperationHash: []byte(o.key), Op: &logv1.Entry_Apply{Apply: op}}
	if reused {
		e.OperationHash = []byte("another")
	}
	return e
}

// try proposes the entry of an operation, the first time or again.
func (c *worker) try(s *Store, o *operation, reused bool) {
	ctx, cancel := c.timeout()
	defer cancel()
	who := fmt.Sprintf("%d/%d", o.id, o.tries)
	o.tries++
	a := &attempt{op: o}
	r, err := s.Propose(ctx, o.entry(who, reused))
	var base *state.StaleBaseError
	switch {
	case errors.Is(err, ErrUnknown):
		a.outcome = isUnknown
	case err != nil:
		a.outcome = isNothing
	case errors.Is(r.Err, state.ErrKeyReused):
		a.reused, a.outcome = true, isStale
	case errors.As(r.Err, &base):
		a.outcome = isStale
	case errors.Is(r.Err, state.ErrRevalidate):
		a.outcome = isOutdated
	case r.Err != nil:
		c.violation("%s: %v", who, r.Err)
	default:
		a.outcome, a.revision, a.replayed = isApplied, r.Revision, r.Replayed
		if now := s.State().Revision(); now < r.Revision {
			c.violation("%s was answered %d, and the state is at %d", who, r.Revision, now)
		}
	}
	c.tried(who, a)
	c.judge(o, a, who, reused, base)
}

// judge draws from an attempt what is known of the operation.
func (c *worker) judge(o *operation, a *attempt, who string, reused bool, base *state.StaleBaseError) {
	was := o.outcome
	first := o.tries == 1
	switch {
	case was == isApplied: // Nothing but the same answer is right, or none.
		right := a.outcome == isApplied && a.replayed && a.revision == o.revision
		if reused {
			right = a.reused
		}
		if a.outcome != isUnknown && a.outcome != isNothing && !right {
			c.violation("%s was applied at %d, and again it is %+v", who, o.revision, *a)
		}
	case a.reused:
		c.violation("%s: the key is said to be another's", who)
	case a.outcome == isNothing:
		if first {
			o.outcome = isNothing
		}
	default:
		o.outcome, o.revision = a.outcome, a.revision
		if base != nil {
			o.current = base.Current
		}
	}
}
