package controlplane

import (
	"context"
	"log/slog"
	"maps"
	"time"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// Liveness is the rule by which the leader takes endpoints away and gives them
// back. An instance is alive while any server holds a stream of it.
type Liveness struct {
	// Withdraw: no server has seen it for so long. Default 60 s.
	Withdraw time.Duration
	// Grace: nothing is withdrawn for so long after an election or a restart,
	// since nobody can know yet who is alive. Default 120 s.
	Grace time.Duration
	// Check: how often the leader looks. Default 2 s.
	Check time.Duration
}

func (l Liveness) withDefaults() Liveness {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&l.Withdraw, time.Minute}, {&l.Grace, 2 * time.Minute}, {&l.Check, 2 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	return l
}

// judge is what the rule says, as a pure function: elected is when this server
// began to lead, seen when each instance was last seen by any server.
func (l Liveness) judge(instances []*logv1.Instance, seen map[string]time.Time, elected, now time.Time) *logv1.Endpoints {
	out := &logv1.Endpoints{}
	for _, i := range instances {
		last, known := seen[i.Id]
		if !known {
			last = elected
			if e := i.Enrolled.AsTime(); e.After(last) {
				last = e
			}
		}
		alive := now.Sub(last) < l.Withdraw
		switch {
		case i.Withdrawn && known && alive:
			out.Restore = append(out.Restore, i.Id)
		case !i.Withdrawn && !alive && now.Sub(elected) >= l.Grace:
			out.Withdraw = append(out.Withdraw, i.Id)
		}
	}
	return out
}

// watchLiveness applies the rule while this server leads.
func watchLiveness(ctx context.Context, rule Liveness, s *store.Store, p *proxies, log *slog.Logger, now func() time.Time) error {
	var stop context.CancelFunc
	done := make(chan struct{})
	close(done)
	defer func() {
		if stop != nil {
			stop()
		}
		<-done
	}()
	return s.WatchLeader(ctx, func(leads bool, _ uint64) error {
		if stop != nil {
			stop()
			<-done
			stop = nil
		}
		if leads {
			var term context.Context
			term, stop = context.WithCancel(ctx)
			done = make(chan struct{})
			go func() {
				defer close(done)
				lead(term, rule, s, p, log, now)
			}()
		}
		return nil
	})
}

const livenessPause = 100 * time.Millisecond

// lead looks for dead and returned instances until ctx ends: at all of them once in a
// while, and in between at those that come.
func lead(ctx context.Context, rule Liveness, s *store.Store, p *proxies, log *slog.Logger, now func() time.Time) {
	elected := now()
	seen := map[string]time.Time{}
	arrivals := p.expect()
	defer p.expectNoMore()
	tick := time.NewTicker(rule.Check)
	defer tick.Stop()
	for all := true; ; {
		st := s.State()
		came := p.arrived()
		var look []*logv1.Instance
		if all {
			for i := range p.connected() {
				seen[i] = now()
			}
			maps.DeleteFunc(seen, func(id string, _ time.Time) bool {
				_, enrolled := st.Instance(id)
				return !enrolled
			})
			look = instances(st)
		} else {
			for _, id := range came {
				if i, enrolled := st.Instance(id); enrolled {
					seen[id] = now()
					look = append(look, i)
				}
			}
		}
		if e := rule.judge(look, seen, elected, now()); len(e.Withdraw)+len(e.Restore) > 0 {
			_, err := s.Propose(ctx, &logv1.Entry{Who: "liveness", Method: "liveness", Op: &logv1.Entry_Endpoints{Endpoints: e}})
			if err != nil {
				log.Warn("endpoints not changed", "error", err)
			} else {
				log.Info("endpoints changed", "withdrawn", e.Withdraw, "restored", e.Restore)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			all = true
		case <-arrivals:
			all = false
			if await(ctx, time.After(min(rule.Check, livenessPause))) != nil { // others are about to come
				return
			}
		}
	}
}

func instances(st *state.State) []*logv1.Instance {
	var out []*logv1.Instance
	for i := range st.Instances() {
		out = append(out, i)
	}
	return out
}
