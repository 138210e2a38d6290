package judge

import (
	"context"
	"net"
	"sync"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// authorizer is the external authorizer of every workload. What it says is agreed
// on before a question is asked.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	address string
	server  *grpc.Server
	done    chan struct{}

	mu     sync.Mutex      // guards what follows
	denies map[string]bool // by question
	asked  map[string]bool
}

func newAuthorizer() (*authorizer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &authorizer{
		address: l.Addr().String(), server: grpc.NewServer(), done: make(chan struct{}),
		denies: map[string]bool{}, asked: map[string]bool{},
	}
	authv3.RegisterAuthorizationServer(a.server, a)
	go func() {
		defer close(a.done)
		_ = a.server.Serve(l)
	}()
	return a, nil
}

func (a *authorizer) close() {
	a.server.Stop()
	<-a.done
}

// Check is what proxies ask.
func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	ask := r.GetAttributes().GetRequest().GetHttp().GetHeaders()[askHeader]
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[ask] = true
	code := codes.OK
	if a.denies[ask] {
		code = codes.PermissionDenied
	}
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(code)}}, nil //nolint:gosec // codes are small
}

func (a *authorizer) deny(ask string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.denies[ask] = true
}

// take tells whether the authorizer was asked about a question.
func (a *authorizer) take(ask string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.asked[ask]
	delete(a.asked, ask)
	delete(a.denies, ask)
	return was
}
