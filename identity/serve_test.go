package identity_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/ztmesh/ztmesh/identity"
)

// The configs under the servers that carry them: gRPC sees who calls, with and
// without a certificate, and by a pin; net/http speaks both of its protocols.
func TestConfigsUnderGRPC(t *testing.T) {
	c := newCluster(t, trustDomain)
	var caller string
	see := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		p, _ := peer.FromContext(ctx)
		principal, ok, err := identity.PeerPrincipal(p.AuthInfo.(credentials.TLSInfo).State, trustDomain)
		if caller = "nobody"; ok {
			caller = principal.String()
		}
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
	config := must(t)(identity.ServerConfig(c.trust(c.server(t, serverA))))
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)), grpc.UnaryInterceptor(see))
	healthpb.RegisterHealthServer(server, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()

	pinned := must(t)(identity.PinnedClientConfig(identity.PinOf(c.root.Certificate()), c.clock, nil))
	for want, client := range map[string]credentials.TransportCredentials{
		"node/" + instance: credentials.NewTLS(must(t)(identity.ClientConfig(c.trust(c.node(t, instance))))),
		"admin/ada":        credentials.NewTLS(must(t)(identity.ClientConfig(c.trust(c.admin(t, "ada"))))),
		"nobody":           credentials.NewTLS(pinned),
	} {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(client))
		if err != nil {
			t.Fatal(err)
		}
		_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil || caller != want {
			t.Errorf("got %s, %v, want %s", caller, err, want)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	server.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConfigsUnderHTTP(t *testing.T) {
	c := newCluster(t, trustDomain)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig: must(t)(identity.ServerConfig(c.trust(c.server(t, serverA)))),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _, err := identity.PeerPrincipal(*r.TLS, trustDomain)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Caller", p.String())
		}),
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	for protocol, want := range map[string]string{"h2": "HTTP/2.0", "http/1.1": "HTTP/1.1"} {
		config := must(t)(identity.ClientConfig(c.trust(c.admin(t, "ada"))))
		config.NextProtos = []string{protocol}
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "h2"}
		resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		if resp.Proto != want || resp.Header.Get("Caller") != "admin/ada" {
			t.Errorf("%s: %s, caller %q", protocol, resp.Proto, resp.Header.Get("Caller"))
		}
		transport.CloseIdleConnections()
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != http.ErrServerClosed {
		t.Error(err)
	}
}
