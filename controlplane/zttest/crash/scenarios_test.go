//go:build system

package crash_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// scenarios are how a process comes to each failpoint. A failpoint without one fails
// the suite.
var scenarios = map[string]func(*run, string){
	"controlplane.init.keys": (*run).initialises, "controlplane.init.committed": (*run).initialises,
	"controlplane.join.enrolled": (*run).joins, "controlplane.join.saved": (*run).joins,
	"identity.file.written": (*run).starts, "identity.file.placed": (*run).starts,

	"store.open.locked": (*run).starts, "store.open.restored": (*run).starts,
	"controlplane.start.identified": (*run).starts, "controlplane.start.opened": (*run).starts,
	"controlplane.announce.asked": (*run).starts, "controlplane.announce.done": (*run).starts,

	"api.apply.planned": (*run).leads, "api.apply.committed": (*run).leads,
	"api.forward.answered": (*run).follows,
	"store.propose.handed": (*run).leads, "store.propose.committed": (*run).leads,
	"store.log.append": (*run).serves, "store.log.appended": (*run).serves,
	"store.replicate.answered": (*run).leads,
	"store.fsm.apply":          (*run).serves, "store.fsm.applied": (*run).serves,
	"store.served.raise": (*run).serves, "store.served.raised": (*run).serves,
	"store.barrier.confirmed": (*run).leads,

	"store.snapshot.begun": (*run).serves, "store.snapshot.half": (*run).serves,
	"store.snapshot.written": (*run).serves, "store.snapshot.placed": (*run).serves,
	"store.log.cut": (*run).serves, "store.log.uncut": (*run).serves,
	"store.snapshot.received": (*run).isSeeded, "store.snapshot.installed": (*run).isSeeded,

	"store.term.keep": (*run).isElected, "store.term.kept": (*run).isElected,
	"store.leader.begin": (*run).isElected, "store.leader.begun": (*run).isElected,
	"store.leader.ended": (*run).isDeposed,

	"api.announce.put": (*run).grows, "store.member.add": (*run).grows, "store.member.added": (*run).grows,
	"api.member.forgotten": (*run).shrinks, "store.member.remove": (*run).shrinks, "store.member.removed": (*run).shrinks,

	"identity.journal.write": (*run).leads, "identity.journal.written": (*run).leads, "identity.journal.synced": (*run).leads,
	"identity.sign.signed": (*run).leads,
	"api.token.created":    (*run).leads, "api.enrol.redeemed": (*run).leads, "api.enrol.issued": (*run).leads,
	"api.join.redeemed": (*run).admits, "api.join.issued": (*run).admits,
	"api.renew.issued": (*run).serves, "api.deregister.done": (*run).leads, "api.admin.added": (*run).leads,
	"agent.enrol.ask": (*run).enrols, "agent.enrol.answered": (*run).enrols, "agent.state.half": (*run).enrols,
	"agent.enrol.saved": (*run).enrols, "agent.renew.answered": (*run).renews, "agent.deregister.agreed": (*run).leaves,

	"controlplane.recover.built": (*run).recovers, "controlplane.recover.decided": (*run).recovers,
	"controlplane.successor.aside": (*run).recovers, "controlplane.successor.moved": (*run).recovers, "controlplane.successor.named": (*run).recovers,

	"controlplane.key.taken": (*run).rotates, "api.key.handed": (*run).rotates, "api.key.rotated": (*run).rotates,
	"controlplane.key.reseal": (*run).rotates, "controlplane.key.resealed": (*run).rotates, "controlplane.key.settled": (*run).rotates,
	"controlplane.key.pruned": (*run).rotates, "controlplane.key.forgotten": (*run).rotates,

	"store.stop.handover": (*run).hands, "store.stop.shutdown": (*run).stops, "store.stop.released": (*run).stops,
}

// often are failpoints that are passed many times a second: the kill need not come at
// the first time.
var often = map[string]int{
	"api.apply.planned": 10, "api.apply.committed": 10, "api.forward.answered": 10, "store.propose.handed": 20,
	"store.propose.committed": 20, "store.log.append": 20, "store.log.appended": 20, "store.replicate.answered": 40,
	"store.fsm.apply": 20, "store.fsm.applied": 20, "store.barrier.confirmed": 20,
	"identity.journal.write": 4, "identity.journal.written": 4, "identity.journal.synced": 4, "identity.sign.signed": 4,
	"identity.file.written": 3, "identity.file.placed": 3, "store.term.keep": 3, "store.term.kept": 3,
}

// armed is what arms a failpoint: sometimes not the first time that it is passed.
func (r *run) armed(point string) string {
	return fmt.Sprintf("%s:%d", point, 1+r.Rand.IntN(max(1, often[point])))
}

// underLoad arms a running server, which then comes to the failpoint by what the
// clients do. In every fifth cycle a second server dies beside it, and in half of those
// the third one, too: then nothing is left but what is on their disks.
func (r *run) underLoad(point string, victim int) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.Servers[victim]
	before := said(s.Log(), point)
	r.arm(s, r.armed(point))
	var second <-chan time.Time
	other := r.Servers[(victim+1+r.Rand.IntN(2))%3]
	if r.Rand.IntN(5) == 0 {
		second = time.After(time.Duration(r.Rand.IntN(100)) * time.Millisecond)
	}
	give := time.NewTimer(reach)
	defer give.Stop()
	for waiting := true; waiting; {
		select {
		case <-second:
			other.Kill()
			second = nil
			switch r.Rand.IntN(4) {
			case 0: // it comes back at once; else not until the end of the cycle
				r.Check(other.Start(r.Site))
			case 1, 2:
				for _, s := range r.Servers {
					s.Kill()
				}
			}
		case <-s.Exited():
			waiting = second != nil
		case <-give.C:
			waiting = false
		}
	}
	r.dies(s.Process, point, before, 0)
	if r.running() > 1 {
		r.MoreWrites(2) // the others go on
	}
	r.restore()
	r.settle(l)
}

func (r *run) running() int {
	n := 0
	for _, s := range r.Servers {
		if s.Running() {
			n++
		}
	}
	return n
}

func (r *run) arm(s *fleet.Server, what string) {
	r.T.Helper()
	ctx := r.Context()
	r.Check(s.Post(ctx, "/debug/failpoint?arm="+what))
}

func (r *run) leads(point string)   { r.underLoad(point, r.Leads()) }
func (r *run) follows(point string) { r.underLoad(point, r.follower()) }
func (r *run) serves(point string)  { r.underLoad(point, r.Rand.IntN(3)) }

// starts kills a server anywhere, and it dies again on its way up.
func (r *run) starts(point string) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.Servers[r.Rand.IntN(3)]
	s.Kill()
	before := said(s.Log(), point)
	r.Check(s.Start(r.Site, "ZT_FAILPOINT="+r.armed(point)))
	r.dies(s.Process, point, before, reach)
	r.restore()
	r.settle(l)
}

// isElected kills the leader: one of the others dies as it becomes, or makes, the next.
func (r *run) isElected(point string) {
	r.T.Helper()
	l := r.StartLoad()
	leader := r.Leads()
	followers := []*fleet.Server{r.Servers[(leader+1)%3], r.Servers[(leader+2)%3]}
	before := said(followers[0].Log(), point) + said(followers[1].Log(), point)
	for _, s := range followers {
		r.arm(s, r.armed(point))
	}
	r.Servers[leader].Kill()
	give := time.NewTimer(reach)
	defer give.Stop()
	select {
	case <-followers[0].Exited():
	case <-followers[1].Exited():
	case <-give.C:
	}
	if n := said(followers[0].Log(), point) + said(followers[1].Log(), point) - before; n > 0 {
		r.reached[point] += n
	} else {
		r.missed[point]++
	}
	r.restore()
	r.settle(l)
}

// isDeposed: a leader dies as it hears that it leads no more, since it hands over or
// since it was stopped for longer than the others wait.
func (r *run) isDeposed(point string) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.Servers[r.Leads()]
	before := said(s.Log(), point)
	r.arm(s, point)
	if r.Rand.IntN(2) == 0 {
		r.Check(syscall.Kill(s.PID(), syscall.SIGTERM))
	} else {
		r.Check(syscall.Kill(s.PID(), syscall.SIGSTOP))
		r.MoreWrites(2) // there is another
		r.Check(syscall.Kill(s.PID(), syscall.SIGCONT))
	}
	r.dies(s.Process, point, before, reach)
	r.restore()
	r.settle(l)
}

// isSeeded keeps a follower away until its peers have no log for it any more, and it
// dies over the snapshot that it is sent.
func (r *run) isSeeded(point string) {
	r.T.Helper()
	l := r.StartLoad()
	leader := r.Servers[r.Leads()]
	away := r.Servers[r.follower()]
	away.Kill()
	r.awaitCut(leader)
	before := said(away.Log(), point)
	r.Check(away.Start(r.Site, "ZT_FAILPOINT="+point))
	r.dies(away.Process, point, before, reach)
	r.restore()
	r.settle(l)
}

// awaitCut waits until a server has cut entries from its log that it has now.
func (r *run) awaitCut(s *fleet.Server) {
	r.T.Helper()
	ctx := r.Context()
	cuts := func() int {
		var passed map[string]int
		body, err := s.Get(ctx, "/debug/failpoint")
		r.Check(err)
		r.Check(json.Unmarshal([]byte(body), &passed))
		return passed["store.log.uncut"]
	}
	// The first may cut what the one who is away has.
	before := cuts()
	r.Until("a cut", func(ctx context.Context) error {
		if n := cuts(); n < before+2 {
			return fmt.Errorf("%d of 2", n-before)
		}
		return nil
	})
}

// stops ends a server in good order, and it dies on its way down.
func (r *run) stops(point string) { r.stopping(point, r.Rand.IntN(3)) }

// hands is stops of the leader.
func (r *run) hands(point string) { r.stopping(point, r.Leads()) }

func (r *run) stopping(point string, victim int) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.Servers[victim]
	before := said(s.Log(), point)
	r.arm(s, point)
	r.Check(syscall.Kill(s.PID(), syscall.SIGTERM))
	r.dies(s.Process, point, before, reach)
	r.MoreWrites(2)
	r.restore()
	r.settle(l)
}

// initialises: what an interrupted init has left is refused, by init and by run, with
// what to do; and then done again.
func (r *run) initialises(point string) {
	r.T.Helper()
	ctx := r.Context()
	r.joined++
	name := fmt.Sprintf("init-%d", r.joined)
	args := []string{"init", "--trust-domain", "other.example", "--data-dir", name}
	p := r.dying("ztd", name, point, args...)
	r.dies(p, point, 0, reach)
	if out, err := r.Command(ctx, "ztd", args...); err == nil || !strings.Contains(err.Error(), "interrupted") {
		r.T.Errorf("init after one that was interrupted at %s: %s, %v", point, out, err)
	}
	if out, err := r.Command(ctx, "ztd", "run", "--data-dir", name); err == nil || !strings.Contains(err.Error(), "is not the data directory of a server") {
		r.T.Errorf("run after an init that was interrupted at %s: %s, %v", point, out, err)
	}
	r.Check(os.RemoveAll(filepath.Join(r.Dir, name)))
	_, err := r.Command(ctx, "ztd", args...)
	r.Check(err)
	r.Check(os.RemoveAll(filepath.Join(r.Dir, name)))
}

// recovers: of a cluster beside this one, one server of two is lost, and the recovery
// of the other dies. Before it is decided, nothing has changed; after that, nobody
// serves from the folder until it is ended, and then it is whole.
func (r *run) recovers(point string) {
	r.T.Helper()
	ctx := r.Context()
	r.joined++
	c := &fleet.Cluster{Site: r.Site}
	at := func(n int) *fleet.Server {
		s := r.newServer(fmt.Sprintf("recover-%d-%d", r.joined, n), 10+n)
		s.Flags = []string{"--election-timeout", "200ms"}
		return s
	}
	r.Check(c.Begin(ctx, "other.example", []*fleet.Server{at(0), at(1)}))
	defer func() {
		for _, s := range c.Servers {
			if s.Running() {
				s.Kill()
			}
		}
	}()
	survivor, lost := c.Servers[0], c.Servers[1]
	_, err := c.API(0).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "w", Content: []byte(
		"apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: load, name: agent}\nspec: {}\n")}}})
	r.Check(err)
	lost.Kill()
	survivor.Kill()
	args := []string{"recover", "--yes", "--lost", c.IDs[1], "--data-dir", survivor.Name}
	p := r.dying("ztd", survivor.Name, point, args...)
	r.dies(p, point, 0, 4*reach)
	id, err := c.ID(survivor)
	r.Check(err)
	if point == "controlplane.recover.built" {
		if id != c.IDs[0] {
			r.T.Errorf("killed at %s, and it is another server", point)
		}
	} else if out, err := r.Command(ctx, "ztd", "run", "--data-dir", survivor.Name); err == nil || !strings.Contains(err.Error(), "a recover of "+survivor.Name+" was interrupted") {
		r.T.Errorf("run after a recovery that was interrupted at %s: %s, %v", point, out, err)
	}
	_, err = r.Command(ctx, "ztd", args...)
	r.Check(err)
	if c.IDs[0], err = c.ID(survivor); err != nil || c.IDs[0] == id && id != "" && point == "controlplane.recover.built" {
		r.T.Errorf("recovered after %s: it is %s as before, %v", point, id, err)
	}
	r.Check(survivor.Start(r.Site))
	r.Check(survivor.Ready(ctx))
	c.Servers, c.IDs, c.Ports = c.Servers[:1], c.IDs[:1], c.Ports[:1]
	r.Check(c.Together(ctx))
	_, err = c.Token(ctx, "load/agent")
	r.Check(err)
}

// dying starts a program that is to end at a failpoint.
func (r *run) dying(program, name, point string, args ...string) *zttest.Process {
	r.T.Helper()
	p, err := zttest.Start(zttest.Command{
		Name: name, Path: r.Program(program), Args: args, Dir: r.Dir,
		Env: append(r.Env[:len(r.Env):len(r.Env)], "ZT_FAILPOINT="+point), Log: r.Log(name),
	})
	r.Check(err)
	return p
}

// newcomer is a fourth server that has not joined.
func (r *run) newcomer() *fleet.Server {
	r.joined++
	return r.newServer(fmt.Sprintf("new-%d", r.joined), 4)
}

// joins: a server dies while it joins. Its token is used up, and the folder is no
// server's; with a new token it joins.
func (r *run) joins(point string) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.newcomer()
	args := r.joinArgs(s, r.token(""))
	p := r.dying("ztd", s.Name, point, args...)
	r.dies(p, point, 0, reach)
	ctx := r.Context()
	if said(p.Log(), point) > 0 { // else it has found no leader
		r.Check(fleet.Until(ctx, "a clear answer", func(ctx context.Context) error {
			_, err := r.Command(ctx, "ztd", args...)
			if err == nil {
				r.T.Errorf("a server token was used twice, after a join that died at %s", point)
			} else if !strings.Contains(err.Error(), "token refused") {
				return err
			}
			return nil
		}))
	}
	r.comeAndGo(s)
	r.settle(l)
}

func (r *run) joinArgs(s *fleet.Server, token string) []string {
	r.T.Helper()
	args, err := r.JoinArgs(s, token, r.Rand.IntN(3))
	r.Check(err)
	return args
}

func (r *run) idOf(s *fleet.Server) string {
	r.T.Helper()
	id, err := r.ID(s)
	r.Check(err)
	return id
}

// admits: the leader dies while a server joins.
func (r *run) admits(point string) {
	r.T.Helper()
	l := r.StartLoad()
	leader := r.Servers[r.Leads()]
	s := r.newcomer()
	args := r.joinArgs(s, r.token(""))
	before := said(leader.Log(), point)
	r.arm(leader, point)
	ctx := r.Context()
	_, err := r.Command(ctx, "ztd", args...)
	r.dies(leader.Process, point, before, reach)
	if err == nil && said(leader.Log(), point) > before {
		r.T.Errorf("a join by a leader that died at %s succeeded", point)
	}
	r.restore()
	r.comeAndGo(s)
	r.settle(l)
}

// comeAndGo joins a server with a new token, waits until it votes, and removes it. What
// was left of earlier tries is removed with it.
func (r *run) comeAndGo(s *fleet.Server) {
	r.T.Helper()
	ctx := r.Context()
	r.Check(r.Join(ctx, s))
	r.Check(s.Start(r.Site))
	defer s.Kill()
	r.Check(s.Ready(ctx))
	id := r.idOf(s)
	r.Until("the newcomer votes", func(ctx context.Context) error { return r.votes(ctx, s, id, true) })
	r.remove(id)
	r.gone(s, id)
}

// votes wants a server to be, or not to be, of the group as another knows it.
func (r *run) votes(ctx context.Context, by *fleet.Server, id string, want bool) error {
	of, err := by.Group(ctx)
	if err != nil {
		return err
	}
	if _, is := of[id]; is != want {
		return fmt.Errorf("%s is of the group: %v, as %s knows it", id, is, by.Name)
	}
	return nil
}

// remove takes a server out, and asks again until that is clear.
func (r *run) remove(id string) {
	r.T.Helper()
	r.Until("a removal", func(ctx context.Context) error {
		_, err := r.API(r.Rand.IntN(3)).RemoveMember(ctx, &ztv1.RemoveMemberRequest{Id: id})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
}

// gone wants a removed server to have ended by itself, and nobody to count on its vote;
// and removes what failed joins have left of records.
func (r *run) gone(s *fleet.Server, id string) {
	r.T.Helper()
	for _, by := range r.Servers {
		r.Until("the vote is gone", func(ctx context.Context) error { return r.votes(ctx, by, id, false) })
	}
	give := time.NewTimer(patience)
	defer give.Stop()
	select {
	case <-s.Exited():
	case <-give.C:
		r.T.Errorf("%s was removed and goes on", s.Name)
		s.Kill()
	}
	// It may have led, and signed.
	journal := filepath.Join(r.Dir, "log", s.Name+".issuance")
	r.Check(os.Rename(filepath.Join(s.Dir(r.Site), "issuance.log"), journal))
	r.past = append(r.past, journal)
	r.Check(os.RemoveAll(s.Dir(r.Site)))
	var all *ztv1.ListMembersResponse
	r.Until("the members", func(ctx context.Context) (err error) {
		all, err = r.API(r.Leads()).ListMembers(ctx, &ztv1.ListMembersRequest{})
		return err
	})
	for _, m := range all.Members {
		if m.ClusterAddress == "" {
			r.remove(m.Id) // it has joined and was never started
		}
	}
}

// grows: the leader dies while it makes a newcomer a voter; the newcomer asks the next.
func (r *run) grows(point string) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.newcomer()
	ctx := r.Context()
	r.Check(r.Join(ctx, s))
	leader := r.Servers[r.Leads()]
	before := said(leader.Log(), point)
	r.arm(leader, point)
	r.Check(s.Start(r.Site))
	defer s.Kill()
	r.dies(leader.Process, point, before, reach)
	r.restore()
	r.Check(s.Ready(ctx))
	id := r.idOf(s)
	r.Until("the newcomer votes", func(ctx context.Context) error { return r.votes(ctx, s, id, true) })
	r.remove(id)
	r.gone(s, id)
	r.settle(l)
}

// shrinks: the leader dies while it removes a server; asked again, the next leader
// ends what was begun.
func (r *run) shrinks(point string) {
	r.T.Helper()
	l := r.StartLoad()
	s := r.newcomer()
	ctx := r.Context()
	r.Check(r.Join(ctx, s))
	r.Check(s.Start(r.Site))
	defer s.Kill()
	r.Check(s.Ready(ctx))
	id := r.idOf(s)
	r.Until("the newcomer votes", func(ctx context.Context) error { return r.votes(ctx, s, id, true) })
	leader := r.Servers[r.Leads()]
	before := said(leader.Log(), point)
	r.arm(leader, point)
	call, stop := context.WithTimeout(ctx, reach)
	defer stop()
	_, err := r.API(r.Leads()).RemoveMember(call, &ztv1.RemoveMemberRequest{Id: id})
	r.dies(leader.Process, point, before, reach)
	if err == nil && said(leader.Log(), point) > before {
		r.T.Errorf("a removal by a leader that died at %s succeeded", point)
	}
	r.restore()
	r.remove(id)
	r.gone(s, id)
	r.settle(l)
}

// agentFlags run an agent without an Envoy.
func (r *run) agentFlags(name, token string) []string {
	r.T.Helper()
	file, err := r.TokenFile(name, token)
	r.Check(err)
	return append(r.AtAll(), "--no-envoy", "--workload", ledger.Workload, "--token-file", file)
}

// enrols: an agent dies while it enrols; started again, with the same token, it is the
// same instance.
func (r *run) enrols(point string) {
	r.T.Helper()
	l := r.StartLoad()
	name := r.nextAgent()
	token := r.token(ledger.Workload)
	p := r.dyingAgent(name, token, point)
	r.dies(p, point, 0, reach)
	r.Agent(name, r.agentFlags(name, token)...).Stop(patience)
	r.deregister(name)
	r.settle(l)
}

func (r *run) nextAgent() string {
	r.joined++
	return fmt.Sprintf("agent-%d", r.joined)
}

// dyingAgent starts an agent that is to end at a failpoint.
func (r *run) dyingAgent(name, token, point string) *zttest.Process {
	r.T.Helper()
	return r.dying("ztagent", name, point, append([]string{"run", "--data-dir", name}, r.agentFlags(name, token)...)...)
}

func (r *run) deregister(name string) {
	r.T.Helper()
	r.Until("an agent deregisters", func(ctx context.Context) error {
		_, err := r.Command(ctx, "ztagent", "deregister", "--data-dir", name)
		return err
	})
	r.Check(os.RemoveAll(filepath.Join(r.Dir, name)))
}

// leaves: an agent dies when the cluster has forgotten its instance; asked again, it
// forgets it, too.
func (r *run) leaves(point string) {
	r.T.Helper()
	l := r.StartLoad()
	name := r.nextAgent()
	r.Agent(name, r.agentFlags(name, r.token(ledger.Workload))...).Stop(patience)
	p := r.dying("ztagent", name, point, "deregister", "--data-dir", name)
	r.dies(p, point, 0, reach)
	r.deregister(name)
	r.settle(l)
}

// renewal is an agent that dies when it renews, half a minute after it has enrolled;
// the cycles go on meanwhile.
type renewal struct {
	*zttest.Process
	name, token string
}

// renews starts such an agent, if there is none.
func (r *run) renews(point string) {
	r.T.Helper()
	if r.renewal != nil {
		return
	}
	a := &renewal{name: r.nextAgent(), token: r.token(ledger.Workload)}
	a.Process = r.dyingAgent(a.name, a.token, point)
	r.renewal = a
}

// renewed waits for its end, and sees that it goes on with what it has.
func (r *run) renewed() {
	r.T.Helper()
	const point = "agent.renew.answered"
	a := r.renewal
	if a == nil {
		return
	}
	r.renewal = nil
	r.dies(a.Process, point, 0, 90*time.Second)
	r.Agent(a.name, r.agentFlags(a.name, a.token)...).Stop(patience)
	r.deregister(a.name)
}
