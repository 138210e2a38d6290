package controlplane

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/api"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// tellPause is how long what has changed is gathered before the other servers are told
// again.
const tellPause = 20 * time.Millisecond

// proxies is api.Proxies: the connected proxies, here and elsewhere.
type proxies struct {
	self    string
	fleet   *serve.Fleet
	cluster *cluster
	moved   *broadcast  // what is told of a proxy may have changed, here or elsewhere
	full    func() bool // the disk of this server
	newest  func() *ztv1.StateHash
	now     func() time.Time

	mu       sync.Mutex        // guards what follows, and is never held while calling out
	revision uint64            // what holds for the newest holds for this one
	local    map[string]*local // by instance, of those with a stream here
	tellings map[*telling]struct{}
	agents   map[string]*agentCall // by instance: the newest
	cuts     map[cutKey]*ztv1.HeldCuts
	cutsOf   map[string]int      // how many of these, by instance
	swept    time.Time           // when they were looked through
	came     map[string]struct{} // instances, since somebody has asked; nil: nobody wants to know

	arrivals chan struct{} // holds one: came is not empty
}

// local is a proxy with a stream here. What is said of it is put into words when somebody
// asks: in a change to all it changes more often than that.
type local struct {
	changes uint64
	held    *ztv1.HeldProxy // as of that many changes; nil: nobody has asked
}

// telling is one server that is told what changes here.
type telling struct {
	deltas bool // it takes them
	// since it was told last; guarded by proxies.mu
	changed map[string]struct{}
	cuts    map[cutKey]struct{}
}

func newProxies(p *proxies) *proxies {
	p.local, p.tellings, p.agents = map[string]*local{}, map[*telling]struct{}{}, map[string]*agentCall{}
	p.cuts, p.cutsOf = map[cutKey]*ztv1.HeldCuts{}, map[string]int{}
	p.arrivals = make(chan struct{}, 1)
	p.cluster.heard = func(changed, came []string) {
		p.arrive(came)
		p.wake(changed)
	}
	return p
}

// Run passes on what the fleet tells its one reader.
func (p *proxies) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.fleet.Changed():
			p.take()
			p.moved.send()
		}
	}
}

// take notes which proxies have changed, and looks at no others.
func (p *proxies) take() {
	revision, changed := p.fleet.TakeChanged()
	var gone, came []string
	connected := make([]bool, len(changed))
	for n, i := range changed {
		connected[n] = p.fleet.Streaming(i)
	}
	p.mu.Lock()
	p.revision = revision
	for n, i := range changed {
		switch l := p.local[i]; {
		case !connected[n]:
			gone = append(gone, i)
		case l == nil:
			p.local[i] = &local{}
			came = append(came, i)
		default:
			l.changes++
			l.held = nil
		}
		for t := range p.tellings {
			t.changed[i] = struct{}{}
		}
	}
	for _, i := range gone {
		delete(p.local, i)
	}
	p.mu.Unlock()
	p.arrive(came)
	p.wake(changed)
}

// held is what is said of a proxy with a stream here; nil: it has none. It may be newer
// than p.revision, and never older.
func (p *proxies) held(instance string) *ztv1.HeldProxy {
	p.mu.Lock()
	l := p.local[instance]
	if l == nil || l.held != nil {
		defer p.mu.Unlock()
		if l == nil {
			return nil
		}
		return l.held
	}
	changes := l.changes
	p.mu.Unlock()
	s, ok := p.fleet.StatusOf(instance)
	if !ok {
		return nil // it has gone just now
	}
	h := p.heldProxy(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.changes == changes {
		l.held = h
	}
	return h
}

// expect has those noted that come, here or elsewhere. The channel receives when there are
// some.
func (p *proxies) expect() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = map[string]struct{}{}
	return p.arrivals
}

func (p *proxies) expectNoMore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = nil
}

// arrived are those that have come since it was asked last.
func (p *proxies) arrived() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	came := slices.Collect(maps.Keys(p.came))
	clear(p.came)
	return came
}

func (p *proxies) arrive(instances []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.came == nil || len(instances) == 0 {
		return
	}
	for _, i := range instances {
		p.came[i] = struct{}{}
	}
	select {
	case p.arrivals <- struct{}{}:
	default:
	}
}

func (p *proxies) heldProxy(s serve.ProxyStatus) *ztv1.HeldProxy {
	proxy := &ztv1.Proxy{
		Instance: s.Instance, Connected: true, Server: p.self, ConnectedSince: timestamppb.New(s.Since), Agent: s.Agent, Differs: s.Differs,
	}
	if !s.AckedAt.IsZero() {
		proxy.AckedAt = timestamppb.New(s.AckedAt)
	}
	for _, n := range s.Nacks {
		proxy.Nacks = append(proxy.Nacks, &ztv1.Nack{
			TypeUrl: n.TypeURL, Resource: n.Resource, Version: n.Version, Message: n.Message, When: timestamppb.New(n.When),
		})
	}
	return &ztv1.HeldProxy{Proxy: proxy, Sent: progressOf(s.Sent), Acked: progressOf(s.Acked), Enforced: progressOf(s.Enforced)}
}

func progressOf(s serve.Progress) *ztv1.Progress {
	out := &ztv1.Progress{Current: s.Current, Revision: s.Revision, Forgotten: s.Forgotten}
	for _, span := range s.Spans {
		out.Spans = append(out.Spans, &ztv1.ProgressSpan{From: timestamppb.New(span.From), Until: span.Until})
	}
	return out
}

// Of is api.Proxies. After a failover two servers may speak of one proxy: the newer
// stream counts.
func (p *proxies) Of(instance string) (h *ztv1.HeldProxy, revision uint64) {
	p.mu.Lock()
	revision = p.revision // before the look: what holds for a newer one holds for it
	p.mu.Unlock()
	h = p.held(instance)
	if o, r := p.cluster.held(instance); o != nil && (h == nil || newer(o, h)) {
		h, revision = o, r
	}
	return h, revision
}

func newer(a, b *ztv1.HeldProxy) bool {
	return a.Proxy.GetConnectedSince().AsTime().After(b.Proxy.GetConnectedSince().AsTime())
}

// Unreachable is api.Proxies.
func (p *proxies) Unreachable() []string { return p.cluster.unreachable() }

// Changed is api.Proxies.
func (p *proxies) Changed() <-chan struct{} { return p.moved.next() }

// connected are the instances that some server holds.
func (p *proxies) connected() map[string]bool {
	out := p.cluster.connected()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.local {
		out[i] = true
	}
	return out
}

// Tell is api.Proxies.
func (p *proxies) Tell(ctx context.Context, deltas bool, f func(*ztv1.WatchProxiesResponse) error) error {
	t := &telling{deltas: deltas, changed: map[string]struct{}{}, cuts: map[cutKey]struct{}{}}
	p.mu.Lock()
	p.tellings[t] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.tellings, t)
		p.mu.Unlock()
	}()
	var last *ztv1.WatchProxiesResponse
	for {
		next := p.moved.next() // before the look, so that nothing is missed
		if m := p.news(t, last); m != nil {
			m.State, m.HashKind = p.newest(), state.HashKind
			if err := f(m); err != nil {
				return err
			}
			last = m
			if err := await(ctx, time.After(tellPause)); err != nil {
				return err
			}
		}
		if err := await(ctx, next); err != nil {
			return err
		}
	}
}

// news is what a server is to be told after the message last (nil: nothing yet); nil:
// nothing.
func (p *proxies) news(t *telling, last *ztv1.WatchProxiesResponse) *ztv1.WatchProxiesResponse {
	m := &ztv1.WatchProxiesResponse{DiskFull: p.full(), Delta: t.deltas && last != nil}
	of, some := p.newsOf(t, last, m)
	if !some {
		return nil
	}
	for _, i := range of {
		switch h := p.held(i); {
		case h == nil && m.Delta:
			m.Gone = append(m.Gone, i)
		case h == nil:
		case !t.deltas: // by a server of an older version
			m.Proxies = append(m.Proxies, api.Absolute(h, m.Revision))
		default:
			m.Held = append(m.Held, h)
		}
	}
	return m
}

// newsOf fills in all of a message but what it says of proxies, and returns of which it is to
// say something; false: of nothing at all.
func (p *proxies) newsOf(t *telling, last, m *ztv1.WatchProxiesResponse) (of []string, some bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.Revision = p.revision
	if last != nil && len(t.changed)+len(t.cuts) == 0 && m.Revision == last.Revision && m.DiskFull == last.DiskFull {
		return nil, false
	}
	if m.Delta {
		of = slices.Collect(maps.Keys(t.changed))
		for k := range t.cuts {
			if c := p.cuts[k]; c != nil {
				m.Cuts = append(m.Cuts, c)
			}
		}
	} else {
		of = slices.Sorted(maps.Keys(p.local))
		if t.deltas {
			for _, c := range p.cuts {
				m.Cuts = append(m.Cuts, c)
			}
		}
	}
	clear(t.changed)
	clear(t.cuts)
	return of, true
}

// await waits for a channel, or for the end of ctx, whose error it then returns.
func await[T any](ctx context.Context, ch <-chan T) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ch:
		return nil
	}
}
