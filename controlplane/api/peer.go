package api

import (
	"context"
	"net"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Announce is PeerService.Announce: an enrolled server becomes a member, or
// tells its new addresses. A server that was removed stays out.
func (s *Server) Announce(ctx context.Context, req *ztv1.AnnounceRequest) (*ztv1.AnnounceResponse, error) {
	if req.GetServer().GetId() != callOf(ctx).principal.Name {
		return nil, refuse(codes.PermissionDenied, "a server announces itself only")
	}
	return &ztv1.AnnounceResponse{}, s.announce(ctx, req.GetServer())
}

// turnAway tells a server that is not of the cluster so. Only a leader that a quorum has
// confirmed can know: to another, it may have joined a moment ago.
func (s *Server) turnAway(ctx context.Context) error {
	c, err := s.external(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	defer cancel()
	if err := s.cfg.Log.Barrier(ctx); err != nil {
		return err
	}
	if _, is := s.cfg.Log.State().Server(c.principal.Name); is {
		return ErrNoLeader // it has come too early; this connection is of no use
	}
	return errTurnedAway
}

// AnnounceSelf is Announce of the leader by itself.
func (s *Server) AnnounceSelf(ctx context.Context, self *ztv1.Server) error {
	self = proto.CloneOf(self)
	self.Id = s.cfg.ServerID
	ctx = context.WithValue(ctx, callKey{}, call{
		principal: Principal{Role: RoleServer, Name: s.cfg.ServerID}, method: ztv1.PeerService_Announce_FullMethodName,
	})
	return s.announce(ctx, self)
}

func (s *Server) announce(ctx context.Context, a *ztv1.Server) error {
	for _, address := range []string{a.AdminAddress, a.NodeAddress, a.ClusterAddress} {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			return refuse(codes.InvalidArgument, "address %q is not host:port", address)
		}
	}
	s.membership.Lock()
	defer s.membership.Unlock()
	had, enrolled := s.cfg.Log.State().Server(a.Id)
	if !enrolled {
		return refuse(codes.PermissionDenied, "this server is not, or no longer, of the cluster; join again with a new token and a new data directory")
	}
	now := &logv1.Server{
		Id: a.Id, AdminAddress: a.AdminAddress, NodeAddress: a.NodeAddress,
		ClusterAddress: a.ClusterAddress, Version: a.Version,
	}
	if !proto.Equal(had, now) {
		if _, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: now}}}); err != nil {
			return err
		}
	}
	failpoint.Hit("api.announce.put")
	return s.cfg.Cluster.Add(ctx, a.Id, a.ClusterAddress)
}

// WatchProxies is PeerService.WatchProxies.
func (s *Server) WatchProxies(_ *ztv1.WatchProxiesRequest, stream ztv1.PeerService_WatchProxiesServer) error {
	return s.cfg.Proxies.Watch(stream.Context(), func() error {
		revision, proxies := s.cfg.Proxies.Local()
		return stream.Send(&ztv1.WatchProxiesResponse{Revision: revision, Proxies: proxies, DiskFull: s.cfg.Log.Full()})
	})
}

// ListDifferences is PeerService.ListDifferences.
func (s *Server) ListDifferences(context.Context, *ztv1.ListDifferencesRequest) (*ztv1.ListDifferencesResponse, error) {
	differences, dropped := s.cfg.Differences.Local()
	return &ztv1.ListDifferencesResponse{Differences: differences, Dropped: dropped}, nil
}
