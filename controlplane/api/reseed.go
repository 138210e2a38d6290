package api

import (
	"context"
	"encoding/hex"
	"errors"

	"google.golang.org/grpc/codes"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Reseed is PeerService.Reseed. A server can do this for itself only, and what it
// gives up is its own: the certificate that it shows is that of the member which is
// lost, and that one is out when the answer goes. A caller that has not got the answer
// asks again as the new member.
func (s *Server) Reseed(ctx context.Context, req *ztv1.ReseedRequest) (*ztv1.ReseedResponse, error) {
	if id, err := hex.DecodeString(req.Server); err != nil || len(id) != 16 || req.Server == req.Lost {
		return nil, refuse(codes.InvalidArgument, "the id of the new member must be 32 hex digits, and not that of the lost one")
	}
	s.membership.Lock()
	defer s.membership.Unlock()
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	was, lost := st.Server(req.Lost)
	fresh, known := st.Server(req.Server)
	switch caller := callOf(ctx).principal.Name; {
	case caller == req.Server && known && !lost: // it asks again; the vote may be left
	case caller != req.Lost || !lost:
		return nil, refuse(codes.PermissionDenied, "a member gives up its own place only")
	case known && fresh.ClusterAddress != "":
		return nil, refuse(codes.AlreadyExists, "member %s is in use", req.Server)
	case req.Lost == s.cfg.ServerID:
		return nil, refuse(codes.FailedPrecondition, "server %s runs, and leads; stop it first", req.Lost)
	}
	others := false
	resp := &ztv1.ReseedResponse{}
	for _, m := range s.cfg.Cluster.Members() {
		if m.Id != req.Lost && m.Id != req.Server {
			others = others || m.Voter
			if m.ClusterAddress != "" {
				resp.Peers = append(resp.Peers, m.ClusterAddress)
			}
		}
	}
	if !others {
		return nil, refuse(codes.FailedPrecondition, "there is no other voting server that could seed it")
	}
	// The new record first, so that a caller which loses the answer is known; then the
	// vote, and last the record by which the caller is believed.
	if !known {
		if _, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{
			Id: req.Server, Version: was.GetVersion(), Format: was.GetFormat(), Replica: was.GetReplica(),
		}}}}); err != nil {
			return nil, err
		}
	}
	if err := s.cfg.Cluster.Remove(ctx, req.Lost); err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_DeleteServer{DeleteServer: &logv1.DeleteServer{Id: req.Lost}}}); err != nil && !errors.Is(err, state.ErrNotFound) {
		return nil, err
	}
	s.cfg.Logger.Warn("a member whose log was lost is replaced", "lost", req.Lost, "server", req.Server)
	return resp, nil
}
