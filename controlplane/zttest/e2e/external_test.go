package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// everywhere resolves every name to one address.
type everywhere string

func (e everywhere) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(string(e))}, nil
}

// outsider is a TLS server outside of the mesh that is called name, on an address;
// it answers with the host that it was asked for.
func outsider(t *testing.T, address, name string) (port string, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	check(t, err)
	srv := &http.Server{ReadHeaderTimeout: mesh.Patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Host, r.TLS.ServerName)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
	}()
	t.Cleanup(func() { srv.Close(); <-done })
	_, port, err = net.SplitHostPort(l.Addr().String())
	check(t, err)
	return port, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

const outsideOf = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: cart}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: bank, name: partner}
spec: {external: {hosts: [api.partner.example], port: %s, tls: {ca: %q}}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: bank, name: web-calls-partner}
spec: {from: {workloads: [web]}, to: {services: [partner], methods: [GET]}}
`

// TestExternal: a call to a host outside goes where its name leads, over TLS to
// whom it names, by who is granted it; never to an address of this machine, unless
// an Exception says so and as long as it does.
func TestExternal(t *testing.T) {
	clk := &clock{}
	m := mesh.New(t, mesh.Config{})
	address := m.Loopback()
	port, ca := outsider(t, address, "api.partner.example")
	m = mesh.New(t, mesh.Config{Tune: func(c *controlplane.Config) {
		clk.tune(c)
		c.Resolution = controlplane.Resolution{Resolver: everywhere(address), Interval: 100 * time.Millisecond}
	}})
	base := fmt.Sprintf(outsideOf, port, ca)
	m.Apply(base)
	web, cart := m.Run("bank/web").Acked(), m.Run("bank/cart").Acked()
	client := &http.Client{Timeout: mesh.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	call := func(in *mesh.Instance, method, host string) mesh.Answer {
		t.Helper()
		a, err := in.Call(client, method, host, "/")
		check(t, err)
		return a
	}
	const partner = "api.partner.example"
	m.Until("the loopback address is refused", func() bool {
		return m.Servers[0].Metric("zt_controlplane_refused_addresses_total") > 0
	})
	if a := call(web, "GET", partner); a.Status != 503 {
		t.Errorf("without an Exception: %+v", a)
	}
	exception := fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: bank, name: partner-is-here}
spec: {finding: reserved-address, subject: partner, peers: [127.0.0.0/8], owner: bank, reason: test, until: %q}
`, clk.now().Add(time.Hour).UTC().Format(time.RFC3339))
	m.Apply(base + exception)
	m.Until("the partner answers", func() bool { return call(web, "GET", partner).Status == 200 })
	if a := call(web, "GET", partner); a.Body != net.JoinHostPort(partner, port)+" "+partner {
		t.Errorf("the partner was asked as %q", a.Body)
	}
	if a := call(web, "DELETE", partner); a.Status != 403 {
		t.Errorf("a method that is not granted: %+v", a)
	}
	for _, host := range []string{"other.partner.example", "partner.example", address} {
		if a := call(web, "GET", host); a.Status != 403 {
			t.Errorf("to %s: %+v", host, a)
		}
	}
	if a := call(cart, "GET", partner); a.Status != 403 {
		t.Errorf("by who has no grant: %+v", a)
	}
	clusters, err := cart.Get(t.Context(), "/clusters")
	check(t, err)
	if strings.Contains(clusters, "ext/") {
		t.Errorf("who has no grant is told of the partner:\n%s", clusters)
	}
	clk.advance(time.Hour)
	m.Until("the Exception has ended", func() bool { return call(web, "GET", partner).Status == 503 })
}
