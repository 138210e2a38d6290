package api

import (
	"google.golang.org/grpc/codes"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Confirm is NodeService.Confirm. An agent is heard about the instance of its own
// certificate alone.
func (s *Server) Confirm(stream ztv1.NodeService_ConfirmServer) error {
	a := &agentStream{s: s, stream: stream, instance: callOf(stream.Context()).principal.Name}
	return s.cfg.Proxies.Confirm(stream.Context(), a.instance, a)
}

// agentStream is Agent.
type agentStream struct {
	s        *Server
	stream   ztv1.NodeService_ConfirmServer
	instance string
}

func (a *agentStream) Allowed() error {
	i, ok := a.s.cfg.Log.State().Instance(a.instance)
	switch {
	case !ok:
		return refuse(codes.PermissionDenied, "not enrolled")
	case !i.Agent:
		return refuse(codes.FailedPrecondition, "this instance was enrolled without an agent")
	}
	return nil
}

func (a *agentStream) Ask(m *ztv1.ConfirmResponse) error { return a.stream.Send(m) }

func (a *agentStream) Answer() (*ztv1.ConfirmRequest, error) { return a.stream.Recv() }
