package e2e_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// TestEntitled: what a proxy is told follows from its certificate, whatever it
// says and asks for.
func TestEntitled(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	server, web, other := m.Servers[0], m.Enrol("shop/web"), m.Enrol("shop/orders")
	conn := server.Dial(web.Address, web.Node)

	// Its own things, and nothing of others.
	c, err := adsclient.Open(ctx, conn, web.ID)
	check(t, err)
	mine := []string{xds.SVIDSecret, xds.BundleSecret}
	foreign := []string{xds.NodeSecret, xds.ControlBundleSecret, other.ID + "/" + xds.SVIDSecret, "zt/svid/shop/orders", "*"}
	check(t, c.Subscribe(xds.SecretType, append(mine, foreign...)...))
	check(t, c.Subscribe(xds.ExtensionType, xds.PolicyName("shop/orders", "http"), xds.GateName("shop/orders", "http")))
	secrets := map[string][]byte{}
	removed := map[string]bool{}
	for len(secrets) < len(mine) || len(removed) < len(foreign)-1+2 { // "*" is no name
		r, err := c.Recv()
		check(t, err)
		for _, x := range r.GetResources() {
			if r.GetTypeUrl() != xds.SecretType {
				t.Errorf("told of %s %s", r.GetTypeUrl(), x.GetName())
			}
			secrets[x.GetName()] = x.GetResource().GetValue()
		}
		for _, name := range r.GetRemovedResources() {
			removed[name] = true
		}
		check(t, c.Ack(r))
	}
	if len(secrets) != 2 || secrets[mine[0]] == nil || secrets[mine[1]] == nil {
		t.Errorf("got %d secrets", len(secrets))
	}
	if n := server.Metric("zt_serve_foreign_names_total"); n == 0 {
		t.Error("foreign names are not counted")
	}

	refused := func(what string, conn *grpc.ClientConn, node string) {
		t.Helper()
		c, err := adsclient.Open(ctx, conn, node)
		if err == nil {
			_ = c.Subscribe(xds.SecretType, mine...) // where the stream has ended, Recv says why
			_, err = c.Recv()
		}
		if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unauthenticated && code != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another's node id", conn, other.ID)
	refused("no certificate", server.Dial(web.Address, nil), web.ID)
	refused("a workload's certificate", server.Dial(web.Address, svid(t, m, "spiffe://shop.example/ns/shop/sa/web")), web.ID)
	refused("an instance that was never enrolled", server.Dial(web.Address, svid(t, m, identity.NodeID("shop.example", "ghost"))), "ghost")

	// Deregistered: the stream ends, and no new one begins.
	_, err = m.Admin().DeregisterInstance(ctx, &ztv1.DeregisterInstanceRequest{Instance: web.ID})
	check(t, err)
	for err == nil {
		_, err = c.Recv()
	}
	if code := status.Code(err); code != codes.PermissionDenied {
		t.Errorf("the stream of a deregistered instance ended with %v", err)
	}
	refused("a deregistered instance", conn, web.ID)
}

// svid is Certificate as a key pair.
func svid(t *testing.T, m *mesh.Mesh, uri string) *identity.KeyPair {
	t.Helper()
	c := m.Certificate(uri)
	chain := make([]*x509.Certificate, len(c.Certificate))
	for i, der := range c.Certificate {
		var err error
		chain[i], err = x509.ParseCertificate(der)
		check(t, err)
	}
	pair, err := identity.NewKeyPair(c.PrivateKey.(identity.PrivateKey), chain)
	check(t, err)
	return pair
}
