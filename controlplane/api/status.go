package api

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

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
	proxies, _ := s.proxies(st)
	return &ztv1.GetStatusResponse{
		Revision: st.Revision(), Servers: s.cfg.Cluster.Members(), Proxies: proxies, Staleness: stale,
	}, nil
}

// proxies is every enrolled instance, connected or not, sorted by workload and
// id, and the servers that did not tell what they hold.
func (s *Server) proxies(st *state.State) (out []*ztv1.Proxy, unreachable []string) {
	connected, unreachable := s.cfg.Proxies.All()
	held := make(map[string]*ztv1.Proxy, len(connected))
	for _, p := range connected {
		// After a failover two servers may speak of one proxy: the newer stream.
		if had := held[p.Instance]; had == nil || later(p.ConnectedSince, had.ConnectedSince) {
			held[p.Instance] = p
		}
	}
	for i := range st.Instances() {
		p := &ztv1.Proxy{Instance: i.Id, Workload: i.Workload, Address: i.Address, Withdrawn: i.Withdrawn, Secrets: "ads", Zone: i.Zone, Weight: cmp.Or(i.Weight, 100)}
		if i.Agent {
			p.Secrets = "agent"
		}
		if h := held[i.Id]; h != nil {
			p.Connected, p.Server, p.ConnectedSince = h.Connected, h.Server, h.ConnectedSince
			p.SentRevision, p.AckedRevision, p.AckedAt, p.Nacks = h.SentRevision, h.AckedRevision, h.AckedAt, h.Nacks
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *ztv1.Proxy) int {
		if c := strings.Compare(a.Workload, b.Workload); c != 0 {
			return c
		}
		return strings.Compare(a.Instance, b.Instance)
	})
	return out, unreachable
}

func later(a, b *timestamppb.Timestamp) bool {
	return a.AsTime().After(b.AsTime())
}

// WatchReceipt is AdminService.WatchReceipt. "Applied" means that every proxy
// which the revision affects has ACKed it or a later one; a proxy that is not
// connected, or whose server does not answer, is unconfirmed.
func (s *Server) WatchReceipt(req *ztv1.WatchReceiptRequest, stream ztv1.AdminService_WatchReceiptServer) error {
	ctx := stream.Context()
	// The revision may not have come to this server yet.
	if err := s.waitFor(ctx, req.Revision); err != nil {
		return err
	}
	affected, err := s.affected(s.cfg.Log.State(), req.Revision)
	if err != nil {
		return err
	}
	return ignoreDone(s.cfg.Proxies.Watch(ctx, func() error {
		receipt := s.receipt(req.Revision, affected)
		if err := stream.Send(receipt); err != nil {
			return err
		}
		if receipt.Complete {
			return errDone
		}
		return nil
	}))
}

func (s *Server) receipt(revision uint64, affected []*ztv1.InstanceRef) *ztv1.WatchReceiptResponse {
	st := s.cfg.Log.State()
	proxies, unreachable := s.proxies(st)
	byID := make(map[string]*ztv1.Proxy, len(proxies))
	for _, p := range proxies {
		byID[p.Instance] = p
	}
	out := &ztv1.WatchReceiptResponse{Revision: revision, Complete: true, Unreachable: unreachable}
	for _, i := range affected {
		p, enrolled := byID[i.Instance]
		if !enrolled {
			continue // deregistered meanwhile: it is no longer expected
		}
		r := &ztv1.ProxyReceipt{Instance: i.Instance, Workload: i.Workload, State: "unconfirmed"}
		switch {
		case p.Connected && p.AckedRevision >= revision:
			r.State, r.When = "acked", p.AckedAt
		case p.Connected && len(p.Nacks) > 0:
			r.State, r.Nacks = "nacked", p.Nacks
		case p.Connected && p.SentRevision >= revision:
			r.State = "sent"
		}
		out.Complete = out.Complete && r.State == "acked"
		out.Proxies = append(out.Proxies, r)
	}
	return out
}

// waitFor returns when this server's state has a revision.
func (s *Server) waitFor(ctx context.Context, revision uint64) error {
	return ignoreDone(s.cfg.Log.Watch(ctx, func(st *state.State, _ state.Changes) error {
		if st.Revision() >= revision {
			return errDone
		}
		return nil
	}))
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
