package store

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A fault befalls the servers for a while and is over when it returns. d is how long
// it is to last.
type fault struct {
	name string
	run  func(w *world, r *rand.Rand, d time.Duration)
}

// elections is how many of them are about elections. They stand last, and come more
// often: what goes wrong there does so in moments.
const elections = 3

var faults = []fault{
	{"partition", func(w *world, r *rand.Rand, d time.Duration) {
		a, rest := w.split(r)
		w.during(d, w.between(a, rest, w.mesh.hold)...)
	}},
	{"reset", func(w *world, r *rand.Rand, d time.Duration) {
		a, rest := w.split(r)
		w.during(d, w.between(a, rest, w.mesh.sever)...)
	}},
	{"one-way", func(w *world, r *rand.Rand, d time.Duration) {
		a, rest := w.split(r)
		if r.IntN(2) == 0 {
			a, rest = rest, a
		}
		var undo []func()
		for _, from := range a {
			for _, to := range rest {
				undo = append(undo, w.mesh.hold(from, to))
			}
		}
		w.during(d, undo...)
	}},
	{"bridge", func(w *world, r *rand.Rand, d time.Duration) {
		names := w.shuffled(r)
		if len(names) < 3 {
			return
		}
		middle := 1 + (len(names)-1)/2 // names[0] sees all
		w.during(d, w.between(names[1:middle], names[middle:], w.mesh.hold)...)
	}},
	{"flapping", func(w *world, r *rand.Rand, d time.Duration) {
		a, rest := w.split(r)
		for end := time.Now().Add(d); time.Now().Before(end); {
			w.during(within(r, time.Second), w.between(a, rest, w.mesh.hold)...)
			time.Sleep(within(r, time.Second))
		}
	}},
	{"slow", func(w *world, r *rand.Rand, d time.Duration) {
		var undo []func()
		names := w.shuffled(r)
		for _, to := range names[1:] {
			if r.IntN(2) == 0 {
				undo = append(undo, w.mesh.slow(to, names[0], within(r, 400*time.Millisecond)))
			}
			if r.IntN(3) == 0 {
				undo = append(undo, w.mesh.slow(names[0], to, within(r, 400*time.Millisecond)))
			}
		}
		w.during(d, undo...)
	}},
	{"pause", func(w *world, r *rand.Rand, _ time.Duration) {
		names := w.shuffled(r)
		w.during(5*time.Second+within(r, 25*time.Second), w.between(names[:1], names[1:], w.mesh.hold)...)
	}},
	{"restart", func(w *world, r *rand.Rand, d time.Duration) {
		w.restart(w.shuffled(r)[0], false, d/2)
	}},
	{"kill", func(w *world, r *rand.Rand, d time.Duration) {
		w.restart(w.shuffled(r)[0], true, d/2)
	}},
	{"power-cut", func(w *world, r *rand.Rand, _ time.Duration) {
		var all sync.WaitGroup
		for _, name := range w.shuffled(r) {
			after := within(r, time.Second)
			all.Go(func() { w.restart(name, true, after) })
		}
		all.Wait()
	}},
	{"membership", membersChange},
	{"transfer", func(w *world, r *rand.Rand, d time.Duration) {
		leader := w.leader()
		if leader == nil {
			return
		}
		// Whoever leads hears of its successor late, and is asked all the while.
		var undo []func()
		for _, name := range w.shuffled(r) {
			undo = append(undo, w.mesh.slow(name, leader.cfg.ID, 200*time.Millisecond+within(r, 600*time.Millisecond)))
		}
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		var asking sync.WaitGroup
		for range 3 {
			asking.Go(func() {
				for range 20 {
					w.look(ctx, -1, leader)
					time.Sleep(30 * time.Millisecond)
				}
			})
		}
		_ = leader.TransferLeadership(ctx) // Under other faults it may fail.
		asking.Wait()
		w.during(0, undo...)
	}},
	{"failover", func(w *world, r *rand.Rand, d time.Duration) {
		// Who leads next hears of the others late, and they of it.
		leader := w.leader()
		if leader == nil {
			return
		}
		var undo []func()
		names := w.shuffled(r)
		for _, from := range names {
			for _, to := range names {
				if from != to && from != leader.cfg.ID && to != leader.cfg.ID {
					undo = append(undo, w.mesh.slow(from, to, 20*time.Millisecond+within(r, 150*time.Millisecond)))
				}
			}
		}
		w.restart(leader.cfg.ID, true, 2*time.Second+within(r, 2*time.Second))
		w.during(0, undo...)
	}},
	{"voter", voterIsKilled},
}

// voterIsKilled cuts the leader of three off until one of the others votes for the
// other, kills the voter as soon as the vote has got there, and cuts the one who was
// elected off instead: what the voter has promised must be on its disk, or the two
// that are left elect another one in the same term.
func voterIsKilled(w *world, _ *rand.Rand, d time.Duration) {
	leader, all := w.leader(), w.running()
	if leader == nil || len(all) != 3 {
		return
	}
	old := leader.cfg.ID
	type vote struct{ voter, candidate string }
	votes := make(chan vote, 1)
	var others []string
	for _, s := range all {
		if s == leader {
			continue
		}
		others = append(others, s.cfg.ID)
		o := raft.NewObserver(nil, false, func(o *raft.Observation) bool {
			if req, ok := o.Data.(raft.RequestVoteRequest); ok && string(req.ID) != old {
				select {
				case votes <- vote{s.cfg.ID, string(req.ID)}:
				default:
				}
			}
			return false
		})
		s.raft.RegisterObserver(o)
		defer s.raft.DeregisterObserver(o)
	}
	back := w.between([]string{old}, others, w.mesh.hold)
	select {
	case v := <-votes:
		time.Sleep(2*usualDelay + usualDelay/2)
		undo := w.between([]string{v.candidate}, []string{v.voter, old}, w.mesh.hold)
		w.restart(v.voter, true, 0)
		w.during(0, back...)
		w.during(4*time.Second, undo...)
	case <-time.After(4*time.Second + d):
		w.during(0, back...)
	}
}

// membersChange makes a new server a member, or takes one out. Who is out may come
// back, with what it has.
func membersChange(w *world, r *rand.Rand, d time.Duration) {
	leader := w.leader()
	if leader == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second+d)
	defer cancel()
	members := leader.Members()
	if len(members) <= 3 || len(members) < 5 && r.IntN(2) == 0 {
		s := w.comer(r)
		w.start(s)
		_ = leader.AddVoter(ctx, s.name, s.name) // If it is not known to be a member, it is there all the same.
		w.done(s)
		return
	}
	name := members[r.IntN(len(members))].ID
	if leader.RemoveServer(ctx, name) != nil {
		return
	}
	s, store := w.take(name)
	if s == nil {
		return
	}
	defer w.done(s)
	time.Sleep(within(r, 2*time.Second))
	w.stop(s, store, r.IntN(2) == 0)
	w.mu.Lock()
	s.removed = true
	w.mu.Unlock()
}

// comer is a server that was removed, or a new one; it is busy.
func (w *world) comer(r *rand.Rand) *server {
	w.mu.Lock()
	var out []*server
	for _, s := range w.servers {
		if s.removed && !s.busy {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *server) int { return int(a.name[0]) - int(b.name[0]) })
	if len(out) > 0 && (w.names >= 8 || r.IntN(2) == 0) {
		s := out[r.IntN(len(out))]
		s.removed, s.busy = false, true
		w.mu.Unlock()
		return s
	}
	w.mu.Unlock()
	s := w.make()
	w.mu.Lock()
	defer w.mu.Unlock()
	s.busy = true
	return s
}

// befall lets faults follow one another, and overlap, until ctx is done, and waits
// for them.
func (w *world) befall(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	for ctx.Err() == nil {
		f := faults[w.random.IntN(len(faults))]
		if w.random.IntN(4) == 0 {
			f = faults[len(faults)-1-w.random.IntN(elections)]
		}
		r := rand.New(rand.NewPCG(w.random.Uint64(), 0))
		d := 500*time.Millisecond + within(r, 8*time.Second)
		if len(w.running()) > 0 {
			w.fault(f.name)
			under.Go(func() { f.run(w, r, d) })
		}
		select {
		case <-ctx.Done():
		case <-time.After(within(w.random, 6*time.Second)):
		}
	}
}

func (w *world) during(d time.Duration, undo ...func()) {
	time.Sleep(d)
	for _, u := range undo {
		u()
	}
}

// shuffled are the names of the servers that run.
func (w *world) shuffled(r *rand.Rand) []string {
	var names []string
	for _, s := range w.running() {
		names = append(names, s.cfg.ID)
	}
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	if len(names) == 0 {
		names = []string{"a"}
	}
	return names
}

// split parts a few servers from the rest; half the time the leader is one of them.
func (w *world) split(r *rand.Rand) (few, rest []string) {
	names := w.shuffled(r)
	if leader := w.leader(); leader != nil && r.IntN(2) == 0 {
		i := slices.Index(names, leader.cfg.ID)
		if i > 0 {
			names[0], names[i] = names[i], names[0]
		}
	}
	n := 1
	if len(names) > 3 {
		n += r.IntN(2)
	}
	n = min(n, len(names))
	return names[:n], names[n:]
}

// between does something to each direction, or pair, between two groups.
func (w *world) between(a, b []string, do func(x, y string) func()) (undo []func()) {
	for _, x := range a {
		for _, y := range b {
			undo = append(undo, do(x, y), do(y, x))
		}
	}
	return undo
}

// within is a random duration.
func within(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
