package controlplane

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/store"
)

// Autopilot is the rule by which the leader gives votes to servers that have joined,
// and removes servers that are gone for good. Every zero value stands for its
// default. docs/adr/0020-membership.md argues for it.
type Autopilot struct {
	// Stable: a server that has joined is to be up to date, and in contact, for so
	// long before it votes. Default 10 s.
	Stable time.Duration
	// DeadAfter: a server that no leader has heard for so long is removed, if the
	// cluster is safe without it. Default 24 h; negative: never. Read replicas are
	// never removed so.
	DeadAfter time.Duration
	// MinVoters: nobody is removed if fewer voters than these would be left. Default
	// 3.
	MinVoters int
	// Contact: who was not heard for so long is not well. Default 10 s, or what the
	// timing of Raft needs.
	Contact time.Duration
	// MaxLag: who lacks more entries than these is not up to date. Default 1000.
	MaxLag uint64
	// Check: how often the leader looks, and servers ask one another where they
	// stand. Default 2 s, or a quarter of Stable if that is less.
	Check time.Duration
}

func (a Autopilot) withDefaults() Autopilot {
	a.Stable = cmp.Or(a.Stable, 10*time.Second)
	return Autopilot{
		Stable: a.Stable, DeadAfter: cmp.Or(a.DeadAfter, 24*time.Hour),
		MinVoters: cmp.Or(a.MinVoters, 3), Contact: cmp.Or(a.Contact, 10*time.Second),
		MaxLag: cmp.Or(a.MaxLag, 1000), Check: cmp.Or(a.Check, min(2*time.Second, max(a.Stable/4, 100*time.Millisecond))),
	}
}

// standing is one server as the leader sees it.
type standing struct {
	id       string
	voter    bool
	replica  bool      // it is to have no vote
	recorded bool      // it has a record: nobody has begun to remove it
	leads    bool      // it is the one that looks
	heard    time.Time // last; zero: never
	lag      uint64    // entries that it lacked then
	clockOff bool
	since    time.Time // it is well since then, without a break; zero: it is not
}

// well tells whether a server is in contact and up to date.
func (a Autopilot) well(s standing, now time.Time) bool {
	return s.leads || now.Sub(s.heard) <= a.Contact && s.lag <= a.MaxLag
}

// verdict is what the rule does next: one change at a time, each judged by what the
// one before has made. Empty: nothing.
type verdict struct{ promote, demote, remove string }

// judge is the rule, as a pure function. elected is when the leader began to lead:
// nobody counts as silent for longer.
func (a Autopilot) judge(servers []standing, elected, now time.Time) verdict {
	voters, well := 0, 0
	for _, s := range servers {
		if s.voter {
			voters++
			if a.well(s, now) {
				well++
			}
		}
	}
	// A majority of the voters after the change must be well then.
	safe := func(voters, well int) bool { return 2*well > voters }
	for _, s := range servers {
		switch {
		case s.leads:
		case !s.recorded: // a removal that was not finished: nobody speaks with it
			return verdict{remove: s.id}
		case s.voter && s.replica: // a demotion that was not finished
			left := well
			if a.well(s, now) {
				left--
			}
			if safe(voters-1, left) {
				return verdict{demote: s.id}
			}
		case !s.voter && !s.replica && !s.clockOff && !s.since.IsZero() && now.Sub(s.since) >= a.Stable && safe(voters+1, well+1):
			return verdict{promote: s.id}
		}
	}
	for _, s := range servers {
		last := s.heard
		if elected.After(last) {
			last = elected
		}
		if a.DeadAfter < 0 || s.leads || s.replica || now.Sub(last) < a.DeadAfter {
			continue
		}
		// Of the voters, it must be the only one that is not well: which of two silent
		// ones comes back first, nobody knows.
		if !s.voter && well == voters || s.voter && well == voters-1 && voters-1 >= a.MinVoters {
			return verdict{remove: s.id}
		}
	}
	return verdict{}
}

// pilot applies the rule while this server leads.
type pilot struct {
	rule   Autopilot
	store  *store.Store
	others *cluster
	remove func(ctx context.Context, id string) error // its record, and its vote
	log    *slog.Logger
	now    func() time.Time
}

// run looks until ctx ends. A change that fails is tried again at the next look.
func (p *pilot) run(ctx context.Context) error {
	tick := time.NewTicker(p.rule.Check)
	defer tick.Stop()
	var term uint64
	var elected time.Time
	var since map[string]time.Time
	for {
		if now := p.store.LeadsSince(); now != term {
			term, elected, since = now, p.now(), map[string]time.Time{}
		}
		if term != 0 {
			p.look(ctx, elected, since)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *pilot) look(ctx context.Context, elected time.Time, since map[string]time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v := p.rule.judge(p.standings(since), elected, p.now())
	var err error
	switch {
	case v.promote != "":
		err = p.others.Promote(ctx, v.promote)
		p.tell("server votes now", v.promote, err)
	case v.demote != "":
		err = p.others.Demote(ctx, v.demote)
		p.tell("server votes no more", v.demote, err)
	case v.remove != "":
		err = p.remove(ctx, v.remove)
		p.tell("server removed", v.remove, err)
	}
}

func (p *pilot) tell(what, id string, err error) {
	switch {
	case err == nil:
		p.log.Info(what, "server", id)
	case !errors.Is(err, context.Canceled):
		p.log.Warn("not done: "+what, "server", id, "error", err)
	}
}

// standings are the members, sorted by id. since is kept up to date.
func (p *pilot) standings(since map[string]time.Time) []standing {
	now, st := p.now(), p.store.State()
	last, _ := p.store.LastEntry()
	heard := p.store.Followers()
	var out []standing
	for _, m := range p.store.Members() {
		s := standing{id: m.ID, voter: m.Voter, leads: m.ID == p.others.self, clockOff: p.others.clockIsOff(m.ID)}
		if r, ok := st.Server(m.ID); ok {
			s.recorded, s.replica = true, r.Replica
		}
		if f, ok := heard[m.ID]; ok {
			s.heard = f.Heard
			s.lag = last - min(f.LastIndex, last)
		}
		if !p.rule.well(s, now) {
			delete(since, m.ID)
		} else if _, ok := since[m.ID]; !ok {
			since[m.ID] = now
		}
		s.since = since[m.ID]
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b standing) int { return cmp.Compare(a.id, b.id) })
	return out
}
