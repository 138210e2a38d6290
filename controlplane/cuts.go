package controlplane

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/decisions"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// What is kept of connections that were cut: a proxy that lies fills its own part.
const (
	maxCuts       = 10_000 // of callers, ports and instances
	maxCutsOf     = 256    // of one instance
	maxEpisodes   = 4
	cutsForgotten = time.Hour // what is older makes room
	sweepEvery    = time.Minute
)

// cutKey is one caller of one port of an instance.
type cutKey struct{ instance, caller, port string }

// cut notes a connection that a proxy has cut.
func (p *proxies) cut(instance string, c decisions.Cut) {
	if p.keepCut(cutKey{instance, c.Caller, c.Port}, c, p.now()) {
		p.moved.send()
	}
}

func (p *proxies) keepCut(k cutKey, c decisions.Cut, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.cuts[k]
	if old == nil && !p.roomForCut(k.instance, now) {
		return false
	}
	next := &ztv1.HeldCuts{Instance: k.instance, Caller: k.caller, Port: k.port}
	if old != nil {
		next = proto.CloneOf(old) // others read it
	}
	n := len(next.Episodes)
	if n == 0 || c.Opened.After(next.Episodes[n-1].Last.AsTime()) {
		if n == maxEpisodes {
			next.Episodes = next.Episodes[1:]
		}
		next.Episodes = append(next.Episodes, &ztv1.CutEpisode{Last: timestamppb.New(c.Closed)})
	}
	e := next.Episodes[len(next.Episodes)-1]
	e.Connections++
	e.Heard = timestamppb.New(now)
	if c.Closed.After(e.Last.AsTime()) {
		e.Last = timestamppb.New(c.Closed)
	}
	p.cuts[k] = next
	for t := range p.tellings {
		t.cuts[k] = struct{}{}
	}
	return true
}

// roomForCut says whether there is room for one more, and makes some at most once in
// a while. p.mu is held.
func (p *proxies) roomForCut(instance string, now time.Time) bool {
	if full := len(p.cuts) >= maxCuts || p.cutsOf[instance] >= maxCutsOf; full && now.Sub(p.swept) >= sweepEvery {
		p.swept = now
		for k, c := range p.cuts {
			if now.Sub(c.Episodes[len(c.Episodes)-1].Heard.AsTime()) > cutsForgotten {
				delete(p.cuts, k)
				if p.cutsOf[k.instance]--; p.cutsOf[k.instance] == 0 {
					delete(p.cutsOf, k.instance)
				}
			}
		}
	}
	if len(p.cuts) >= maxCuts || p.cutsOf[instance] >= maxCutsOf {
		return false
	}
	p.cutsOf[instance]++
	return true
}

// dropOldest leaves so many of them, those that were heard of last: who tells of them
// does not tell which it has forgotten.
func dropOldest(cuts map[cutKey]*ztv1.HeldCuts, keep int) {
	heard := func(k cutKey) time.Time {
		e := cuts[k].Episodes
		return e[len(e)-1].GetHeard().AsTime()
	}
	oldest := slices.SortedFunc(maps.Keys(cuts), func(a, b cutKey) int { return heard(a).Compare(heard(b)) })
	for _, k := range oldest[:max(0, len(oldest)-keep)] {
		delete(cuts, k)
	}
}

// Cuts is api.Proxies: of each server that was told of some, the first episode that
// was not over at a time.
func (p *proxies) Cuts(instance, caller, port string, since time.Time) (connections uint32, last time.Time) {
	k := cutKey{instance, caller, port}
	p.mu.Lock()
	local := p.cuts[k]
	p.mu.Unlock()
	for _, c := range append(p.cluster.cuts(k), local) {
		for _, e := range c.GetEpisodes() {
			if e.Heard.AsTime().Before(since) {
				continue
			}
			connections += e.Connections
			if at := e.Last.AsTime(); at.After(last) {
				last = at
			}
			break
		}
	}
	return connections, last
}

// cuts is what the peers were told of.
func (c *cluster) cuts(k cutKey) (out []*ztv1.HeldCuts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.peers {
		if h := p.cuts[k]; h != nil {
			out = append(out, h)
		}
	}
	return out
}
