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

	mu       sync.Mutex // guards what follows, and is never held while calling out
	revision uint64     // what holds for the newest holds for this one
	local    map[string]*ztv1.HeldProxy
	tellings map[*telling]struct{}
	agents   map[string]*agentCall // by instance: the newest
	cuts     map[cutKey]*ztv1.HeldCuts
	cutsOf   map[string]int // how many of these, by instance
	swept    time.Time      // when they were looked through
}

// telling is one server that is told what changes here.
type telling struct {
	// since it was told last; guarded by proxies.mu
	changed map[string]struct{}
	cuts    map[cutKey]struct{}
}

func newProxies(p *proxies) *proxies {
	p.local, p.tellings, p.agents = map[string]*ztv1.HeldProxy{}, map[*telling]struct{}{}, map[string]*agentCall{}
	p.cuts, p.cutsOf = map[cutKey]*ztv1.HeldCuts{}, map[string]int{}
	p.cluster.heard = p.wake
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

// take looks at the proxies that have changed, and at no others.
func (p *proxies) take() {
	revision, changed := p.fleet.TakeChanged()
	held := make(map[string]*ztv1.HeldProxy, len(changed))
	for _, i := range changed {
		if s, ok := p.fleet.StatusOf(i); ok {
			held[i] = p.heldProxy(s)
		}
	}
	p.mu.Lock()
	p.revision = revision
	for _, i := range changed {
		if h := held[i]; h != nil {
			p.local[i] = h
		} else {
			delete(p.local, i)
		}
		for t := range p.tellings {
			t.changed[i] = struct{}{}
		}
	}
	p.mu.Unlock()
	p.wake(changed)
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
	h, revision = p.local[instance], p.revision
	p.mu.Unlock()
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
	t := &telling{changed: map[string]struct{}{}, cuts: map[cutKey]struct{}{}}
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
		if m := p.news(t, last, deltas); m != nil {
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
func (p *proxies) news(t *telling, last *ztv1.WatchProxiesResponse, deltas bool) *ztv1.WatchProxiesResponse {
	m := &ztv1.WatchProxiesResponse{DiskFull: p.full(), Delta: deltas && last != nil}
	p.mu.Lock()
	defer p.mu.Unlock()
	m.Revision = p.revision
	if last != nil && len(t.changed)+len(t.cuts) == 0 && m.Revision == last.Revision && m.DiskFull == last.DiskFull {
		return nil
	}
	switch {
	case !deltas: // by a server of an older version
		for _, i := range slices.Sorted(maps.Keys(p.local)) {
			m.Proxies = append(m.Proxies, api.Absolute(p.local[i], p.revision))
		}
	case last == nil:
		for _, h := range p.local {
			m.Held = append(m.Held, h)
		}
		for _, c := range p.cuts {
			m.Cuts = append(m.Cuts, c)
		}
	default:
		for k := range t.cuts {
			if c := p.cuts[k]; c != nil {
				m.Cuts = append(m.Cuts, c)
			}
		}
		for i := range t.changed {
			if h := p.local[i]; h != nil {
				m.Held = append(m.Held, h)
			} else {
				m.Gone = append(m.Gone, i)
			}
		}
	}
	clear(t.changed)
	clear(t.cuts)
	return m
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
