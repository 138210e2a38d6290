package api

import (
	"context"

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

func (a *agentStream) Ask(ctx context.Context, m *ztv1.ConfirmResponse) error {
	_, err := unless(ctx, func() (*ztv1.ConfirmRequest, error) { return nil, a.stream.Send(m) })
	return err
}

func (a *agentStream) Answer(ctx context.Context) (*ztv1.ConfirmRequest, error) {
	return unless(ctx, a.stream.Recv)
}

// unless is f unless ctx ends before: a peer that neither reads nor says anything holds
// nothing up. What f still waits for then ends with the stream, when its call returns.
func unless[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
