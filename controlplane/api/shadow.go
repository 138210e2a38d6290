package api

import (
	"context"

	"google.golang.org/grpc/codes"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// GetShadow is AdminService.GetShadow.
func (s *Server) GetShadow(ctx context.Context, req *ztv1.GetShadowRequest) (*ztv1.GetShadowResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	asked := func(namespace string) bool { return req.Namespace == "" || req.Namespace == namespace }
	resp := &ztv1.GetShadowResponse{Staleness: stale}
	for p := range st.Proposals() {
		if asked(p.Namespace) {
			resp.Proposals = append(resp.Proposals, &ztv1.Proposal{Namespace: p.Namespace, Who: p.Who, When: p.When, Message: p.Message})
		}
	}
	differences, dropped, unreachable := s.cfg.Differences.All(ctx)
	for _, d := range differences {
		if asked(namespaceOf(d.Service)) {
			resp.Differences = append(resp.Differences, d)
		}
	}
	resp.Dropped, resp.Unreachable = dropped, unreachable
	return resp, nil
}

// EndShadow is AdminService.EndShadow.
func (s *Server) EndShadow(ctx context.Context, req *ztv1.EndShadowRequest) (*ztv1.EndShadowResponse, error) {
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := s.may(ctx, st, req.Namespace); err != nil {
		return nil, err
	}
	w := keyed(ctx, req, req.IdempotencyKey)
	if done, err := s.replayed(ctx, w); done || err != nil {
		return &ztv1.EndShadowResponse{}, err
	}
	if _, ok := st.Proposal(req.Namespace); !ok {
		return nil, refuse(codes.NotFound, "nothing is proposed for namespace %q", req.Namespace)
	}
	_, err = s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_Propose{Propose: &logv1.Propose{
		Namespaces: []string{req.Namespace}, End: true,
	}}})
	return &ztv1.EndShadowResponse{}, err
}
