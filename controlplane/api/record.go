package api

import (
	"context"
	"fmt"
	"strings"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// recordAccess puts a call on record that has no entry of its own, before it is
// carried out. Where it cannot be recorded, it is refused. A server that does not
// lead asks the leader.
func (s *Server) recordAccess(ctx context.Context, req any) error {
	e := &logv1.Access{}
	if named, ok := req.(interface{ GetId() string }); ok {
		e.Kind, e.Name = "Server", named.GetId()
	}
	if key, ok := req.(interface{ GetKeyId() string }); ok {
		e.Kind, e.Name = "Key", key.GetKeyId()
	}
	if s.cfg.Log.IsLeader() {
		_, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_Access{Access: e}})
		return err
	}
	conn, err := s.cfg.Cluster.LeaderConn()
	if err != nil {
		return err
	}
	c := callOf(ctx)
	_, err = ztv1.NewPeerServiceClient(conn).RecordAccess(ctx, &ztv1.RecordAccessRequest{
		Who: c.principal.String(), From: c.address, Method: c.method, Kind: e.Kind, Name: e.Name,
	})
	if err != nil {
		return fmt.Errorf("%w: the leader: %w", ErrNotRecorded, err)
	}
	return nil
}

// RecordAccess is PeerService.RecordAccess. What a server says of its callers is
// believed, as for calls that it forwards.
func (s *Server) RecordAccess(ctx context.Context, req *ztv1.RecordAccessRequest) (*ztv1.RecordAccessResponse, error) {
	ctx = context.WithValue(ctx, callKey{}, call{principal: principalOf(req.Who), address: req.From, method: req.Method})
	_, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_Access{Access: &logv1.Access{Kind: req.Kind, Name: req.Name}}})
	return &ztv1.RecordAccessResponse{}, err
}

// principalOf reads what Principal.String has written.
func principalOf(s string) Principal {
	role, name, _ := strings.Cut(s, "/")
	if role == "nobody" {
		return Principal{}
	}
	return Principal{Role: Role(role), Name: name}
}
