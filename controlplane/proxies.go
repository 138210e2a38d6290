package controlplane

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// proxies is api.Proxies: the connected proxies, here and elsewhere.
type proxies struct {
	self    string
	fleet   *serve.Fleet
	cluster *cluster
	moved   *broadcast // Local or All may have changed
}

// Run passes on what the fleet tells its one reader.
func (p *proxies) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.fleet.Changed():
			p.moved.send()
		}
	}
}

func (p *proxies) Local() (uint64, []*ztv1.Proxy) {
	revision := p.fleet.Revision()
	var out []*ztv1.Proxy
	for _, s := range p.fleet.Status() {
		proxy := &ztv1.Proxy{
			Instance: s.Instance, Connected: true, Server: p.self, ConnectedSince: timestamppb.New(s.Since),
			SentRevision: s.SentRevision, AckedRevision: s.AckedRevision,
		}
		if !s.AckedAt.IsZero() {
			proxy.AckedAt = timestamppb.New(s.AckedAt)
		}
		for _, n := range s.Nacks {
			proxy.Nacks = append(proxy.Nacks, &ztv1.Nack{
				TypeUrl: n.TypeURL, Resource: n.Resource, Version: n.Version, Message: n.Message, When: timestamppb.New(n.When),
			})
		}
		out = append(out, proxy)
	}
	return revision, out
}

func (p *proxies) All() (all []*ztv1.Proxy, unreachable []string) {
	_, local := p.Local()
	others, unreachable := p.cluster.others()
	return append(local, others...), unreachable
}

func (p *proxies) Watch(ctx context.Context, f func() error) error {
	for {
		next := p.moved.next() // before f reads, so that nothing is missed
		if err := f(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}
