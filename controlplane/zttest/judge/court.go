package judge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// Court is everything that judging needs but the Envoys.
type Court struct {
	t          testing.TB
	pki        *pki
	fleet      *serve.Fleet
	server     string // where the fleet is served
	app        *app
	authorizer *authorizer
	asks       atomic.Uint64 // questions asked

	mu       sync.Mutex // guards revision; held while the fleet is told
	revision uint64
}

// New makes a court for specs of one trust domain. It ends with the test.
func New(t testing.TB, trustDomain string) *Court {
	t.Helper()
	c := &Court{t: t, fleet: serve.New(serve.Config{Authorize: instance, Server: "court", Retain: true})}
	c.fleet.SetEndpoints(nil)
	var err error
	c.pki, err = newPKI(trustDomain)
	c.check(err)
	c.app, err = newApp(c.pki.server)
	c.check(err)
	t.Cleanup(c.app.close)
	c.authorizer, err = newAuthorizer()
	c.check(err)
	t.Cleanup(c.authorizer.close)
	c.serve()
	return c
}

func (c *Court) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// serve is the node port of a control plane.
func (c *Court) serve() {
	c.t.Helper()
	server, err := c.pki.authority.MakeServer()
	c.check(err)
	config, err := identity.ServerConfig(identity.Trust{
		TrustDomain: c.pki.trustDomain, Now: time.Now,
		Roots:       func() []*x509.Certificate { return []*x509.Certificate{c.pki.root.Certificate()} },
		Certificate: func() (*tls.Certificate, error) { return server.TLS(), nil },
	})
	c.check(err)
	config.NextProtos = []string{"h2"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.check(err)
	srv := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	c.fleet.Register(srv)
	alsv3.RegisterAccessLogServiceServer(srv, decisionLog{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	c.t.Cleanup(func() {
		c.fleet.Close()
		srv.Stop()
		<-done
	})
	c.server = l.Addr().String()
}

// instance is the rule of the product: …/node/INSTANCE in the certificate.
func instance(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", errors.New("no identity")
	}
	uri, err := identity.URI(info.State.PeerCertificates[0])
	return path.Base(uri), err
}

// decisionLog takes what proxies tell the control plane of decisions, and drops it.
type decisionLog struct {
	alsv3.UnimplementedAccessLogServiceServer
}

func (decisionLog) StreamAccessLogs(stream grpc.ClientStreamingServer[alsv3.StreamAccessLogsMessage, alsv3.StreamAccessLogsResponse]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return nil //nolint:nilerr // the proxy has ended
		}
	}
}

// tell gives an instance a configuration and returns when it has ACKed all of it.
func (c *Court) tell(id string, r *xds.Resources, secrets []*xds.Resource) error {
	c.mu.Lock()
	c.fleet.SetSecrets(id, secrets)
	c.fleet.SetGates(id, xds.Gates(nil))
	c.revision++
	revision := c.revision
	c.fleet.Set(revision, map[string]*xds.Resources{id: r})
	c.mu.Unlock()
	return await("the ACK of a proxy", func() (bool, error) {
		for _, s := range c.fleet.Status() {
			if s.Instance == id {
				if len(s.Nacks) > 0 {
					return false, fmt.Errorf("NACK: %+v", s.Nacks)
				}
				return s.AckedRevision >= revision, nil
			}
		}
		return false, nil
	})
}

// await asks ok again and again until it says yes or errs.
func await(what string, ok func() (bool, error)) error {
	deadline, tick := time.NewTimer(mesh.Patience), time.NewTicker(2*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return errors.New("waited in vain: " + what)
		}
	}
}
