package api

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// GetStatus is AdminService.GetStatus.
func (s *Server) GetStatus(ctx context.Context, req *ztv1.GetStatusRequest) (*ztv1.GetStatusResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	return &ztv1.GetStatusResponse{
		Revision: st.Revision(), Servers: s.cfg.Cluster.Members(), Proxies: s.proxies(st), Staleness: stale,
	}, nil
}

// proxies is every enrolled instance, connected or not, sorted by workload and id.
func (s *Server) proxies(st *state.State) (out []*ztv1.Proxy) {
	for i := range st.Instances() {
		p := &ztv1.Proxy{}
		if h, revision := s.cfg.Proxies.Of(i.Id); h != nil {
			p = Absolute(h, revision)
		}
		p.Instance, p.Workload, p.Address, p.Withdrawn, p.Secrets = i.Id, i.Workload, i.Address, i.Withdrawn, "ads"
		p.Zone, p.Weight = i.Zone, cmp.Or(i.Weight, 100)
		if i.Agent {
			p.Secrets = "agent"
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *ztv1.Proxy) int {
		return cmp.Or(strings.Compare(a.Workload, b.Workload), strings.Compare(a.Instance, b.Instance))
	})
	return out
}

// Absolute is a held proxy as of the newest revision of the server that holds it.
func Absolute(h *ztv1.HeldProxy, revision uint64) *ztv1.Proxy {
	p := proto.CloneOf(h.Proxy)
	p.SentRevision, p.AckedRevision, p.EnforcedRevision = upTo(h.Sent, revision), upTo(h.Acked, revision), upTo(h.Enforced, revision)
	return p
}

// upTo is the newest revision that something holds for.
func upTo(p *ztv1.Progress, newest uint64) uint64 {
	if p.GetCurrent() {
		return newest
	}
	return p.GetRevision()
}

// GetServerInfo is AdminService.GetServerInfo.
func (s *Server) GetServerInfo(ctx context.Context, _ *ztv1.GetServerInfoRequest) (*ztv1.GetServerInfoResponse, error) {
	st := s.cfg.Log.State()
	info := &ztv1.GetServerInfoResponse{
		Version: s.cfg.Version, Server: s.cfg.ServerID, TrustDomain: st.TrustDomain(), Revision: st.Revision(),
		You: adminInfo(callOf(ctx).admin),
	}
	for _, m := range s.cfg.Cluster.Members() {
		if m.Leader {
			info.Leader = m.Id
		}
	}
	return info, nil
}

func adminInfo(a *logv1.Admin) *ztv1.AdminInfo {
	return &ztv1.AdminInfo{Name: a.GetName(), Role: a.GetRole(), Namespaces: a.GetNamespaces()}
}
