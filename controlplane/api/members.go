package api

import (
	"context"
	"errors"
	"net"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// maxLag is how many entries a server may lack and still be given a vote by hand.
const maxLag = 1000

// member is one of members; nil if it is not there.
func member(members []*ztv1.Member, id string) *ztv1.Member {
	i := slices.IndexFunc(members, func(m *ztv1.Member) bool { return m.Id == id })
	if i < 0 {
		return nil
	}
	return members[i]
}

// withoutVote says what it means for the others if a server has no vote any more; an
// empty text: they are a majority that can be reached.
func withoutVote(members []*ztv1.Member, id string) (refusal string, none bool) {
	voters, reachable := 0, 0
	for _, m := range members {
		if !m.Voter || m.Id == id {
			continue
		}
		voters++
		if m.Reachable {
			reachable++
		}
	}
	switch {
	case voters == 0:
		return "this is the last voting server; without it there is no cluster", true
	case 2*reachable <= voters:
		return "of the voters that would be left, no majority can be reached: nothing could be changed any more, " +
			"not even the members; bring the others back first", false
	}
	return "", false
}

// RemoveMember is AdminService.RemoveMember.
func (s *Server) RemoveMember(ctx context.Context, req *ztv1.RemoveMemberRequest) (*ztv1.RemoveMemberResponse, error) {
	// An announcement in between would bring the record back.
	s.membership.Lock()
	defer s.membership.Unlock()
	w := keyed(ctx, req, req.IdempotencyKey)
	members := s.cfg.Cluster.Members()
	m := member(members, req.Id)
	if done, err := s.replayed(ctx, w); err != nil {
		return nil, err
	} else if !done && m == nil {
		return nil, refuse(codes.NotFound, "no member %q", req.Id)
	}
	if m != nil && m.Voter {
		if text, none := withoutVote(members, req.Id); none || text != "" && !req.Force {
			return nil, refuse(codes.FailedPrecondition, "%s", text)
		}
	}
	return &ztv1.RemoveMemberResponse{}, s.removeMember(ctx, req.Id, w)
}

// RemoveDead removes a server that the autopilot has given up.
func (s *Server) RemoveDead(ctx context.Context, id string) error {
	s.membership.Lock()
	defer s.membership.Unlock()
	ctx = context.WithValue(ctx, callKey{}, call{
		principal: Principal{Role: RoleServer, Name: s.cfg.ServerID}, method: ztv1.AdminService_RemoveMember_FullMethodName,
	})
	return s.removeMember(ctx, id, once{})
}

// removeMember removes first the record, by which the others believe its
// certificate; then the vote. A crash in between leaves a member that may not speak.
func (s *Server) removeMember(ctx context.Context, id string, w once) error {
	_, err := s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_DeleteServer{DeleteServer: &logv1.DeleteServer{Id: id}}})
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	failpoint.Hit("api.member.forgotten")
	return s.cfg.Cluster.Remove(ctx, id)
}

// PromoteMember is AdminService.PromoteMember.
func (s *Server) PromoteMember(ctx context.Context, req *ztv1.PromoteMemberRequest) (*ztv1.PromoteMemberResponse, error) {
	s.membership.Lock()
	defer s.membership.Unlock()
	m := member(s.cfg.Cluster.Members(), req.Id)
	switch {
	case m == nil:
		return nil, refuse(codes.NotFound, "no member %q", req.Id)
	case m.Voter && !m.Replica:
		return &ztv1.PromoteMemberResponse{}, nil
	case req.Force:
	case !m.Reachable:
		return nil, refuse(codes.FailedPrecondition, "this server cannot be reached: a vote that nobody casts only makes a majority harder; start it first")
	case m.Lag == nil || *m.Lag > maxLag:
		return nil, refuse(codes.FailedPrecondition, "this server has not caught up yet; it can be promoted when ztctl members shows a lag of at most %d", maxLag)
	}
	if err := s.setReplica(ctx, req.Id, false); err != nil {
		return nil, err
	}
	return &ztv1.PromoteMemberResponse{}, s.cfg.Cluster.Promote(ctx, req.Id)
}

// DemoteMember is AdminService.DemoteMember.
func (s *Server) DemoteMember(ctx context.Context, req *ztv1.DemoteMemberRequest) (*ztv1.DemoteMemberResponse, error) {
	s.membership.Lock()
	defer s.membership.Unlock()
	members := s.cfg.Cluster.Members()
	m := member(members, req.Id)
	switch {
	case m == nil:
		return nil, refuse(codes.NotFound, "no member %q", req.Id)
	case m.Leader:
		return nil, refuse(codes.FailedPrecondition, "this server leads; run ztctl members transfer first")
	case m.Voter:
		if text, none := withoutVote(members, req.Id); none || text != "" && !req.Force {
			return nil, refuse(codes.FailedPrecondition, "%s", text)
		}
	}
	if err := s.setReplica(ctx, req.Id, true); err != nil {
		return nil, err
	}
	return &ztv1.DemoteMemberResponse{}, s.cfg.Cluster.Demote(ctx, req.Id)
}

// setReplica records whether a server is to have a vote, so that the autopilot wants
// the same.
func (s *Server) setReplica(ctx context.Context, id string, replica bool) error {
	had, ok := s.cfg.Log.State().Server(id)
	if !ok {
		return refuse(codes.NotFound, "no member %q", id)
	}
	if had.Replica == replica {
		return nil
	}
	if err := s.cfg.Cluster.Readable(state.Replicas); err != nil {
		return err
	}
	now := proto.CloneOf(had)
	now.Replica = replica
	_, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: now}}})
	return err
}

// TransferLeadership is AdminService.TransferLeadership.
func (s *Server) TransferLeadership(ctx context.Context, req *ztv1.TransferLeadershipRequest) (*ztv1.TransferLeadershipResponse, error) {
	switch m := member(s.cfg.Cluster.Members(), req.Id); {
	case m == nil:
		return nil, refuse(codes.NotFound, "no member %q", req.Id)
	case !m.Voter:
		return nil, refuse(codes.FailedPrecondition, "this server has no vote, and cannot lead")
	case !m.Reachable:
		return nil, refuse(codes.FailedPrecondition, "this server cannot be reached")
	}
	return &ztv1.TransferLeadershipResponse{}, s.cfg.Cluster.Transfer(ctx, req.Id)
}

// ListMembers is AdminService.ListMembers.
func (s *Server) ListMembers(ctx context.Context, req *ztv1.ListMembersRequest) (*ztv1.ListMembersResponse, error) {
	_, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	return &ztv1.ListMembersResponse{Members: s.cfg.Cluster.Members(), Staleness: stale}, nil
}

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
	s.cfg.Cluster.Heard(a.Id, state.Reads(&logv1.Server{Format: a.Format}))
	now := &logv1.Server{
		Id: a.Id, AdminAddress: a.AdminAddress, NodeAddress: a.NodeAddress,
		ClusterAddress: a.ClusterAddress, Version: a.Version, Format: a.Format, Replica: had.Replica, Zone: a.Zone,
	}
	put := &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: now}}}
	if state.FormatOf(put) > s.cfg.Cluster.Lowest() {
		// As long as a member of an older version would not read it, it stays unsaid
		// in the log; the leader has heard it.
		now.Format, now.Zone = had.Format, had.Zone
	}
	if !proto.Equal(had, now) {
		if _, err := s.propose(ctx, put); err != nil {
			return err
		}
	}
	failpoint.Hit("api.announce.put")
	return s.cfg.Cluster.Add(ctx, a.Id, a.ClusterAddress)
}
