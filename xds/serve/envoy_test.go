package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/xds"
)

// mesh is two servers that tell one real Envoy, without an agent, the same.
type mesh struct {
	t        *testing.T
	servers  [2]*server
	instance xds.Instance
	envoy    *envoy.Process
	ctx      context.Context
	more     []xds.Inbound // that web has beside its one port
}

// web is the configuration of the Envoy: one port that api may call, and calls
// to orders. policy names the grant, destinations how many orders there are.
func (m *mesh) web(grant string, destinations int) *xds.Resources {
	m.t.Helper()
	const td = "spiffe://test/ns/shop/sa/"
	c := &xds.Config{
		TrustDomain: "test", Workload: "shop/web", ID: td + "web", MaxConnectionAge: time.Minute,
		Inbound: []xds.Inbound{{
			Name: "http", Port: 8443, Target: "127.0.0.1:1", Protocol: xds.HTTP, Hosts: []string{"web.shop.mesh"},
			Gate:  []xds.GateEntry{{ID: td + "api", Key: "zt.0123456789abcdef"}},
			Rules: []xds.Rule{{Grant: grant, Callers: xds.Callers{IDs: []string{td + "api"}}}},
		}},
	}
	c.Inbound = append(c.Inbound, m.more...)
	for i := range destinations {
		c.Destinations = append(c.Destinations, xds.Destination{
			Service: fmt.Sprintf("shop/orders%d", i), Port: "http", ID: fmt.Sprintf("%sorders%d", td, i),
			Protocol: xds.HTTP, Host: fmt.Sprintf("orders%d.shop.mesh", i), Number: 8443,
		})
	}
	r, err := xds.Build(c, m.instance)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// set sets a revision everywhere; what is not connected passes over it.
func (m *mesh) set(revision uint64, r *xds.Resources) {
	for _, s := range m.servers {
		s.Set(revision, map[string]*xds.Resources{m.instance.ID: r})
	}
}

// home returns the server that holds the stream, and the other one.
func (m *mesh) home() (home, other *server) {
	if len(m.servers[0].Connected()) > 0 {
		return m.servers[0], m.servers[1]
	}
	return m.servers[1], m.servers[0]
}

// acked waits for a status that fits, at the server that holds the stream.
func (m *mesh) acked(revision uint64) {
	m.t.Helper()
	var last []ProxyStatus
	if err := m.envoy.Await(m.ctx, func() bool {
		home, _ := m.home()
		last = home.Status()
		return len(last) == 1 && last[0].AckedRevision == revision && len(last[0].Nacks) == 0
	}); err != nil {
		m.t.Fatalf("revision %d: %v; status %+v", revision, err, last)
	}
}

func (m *mesh) stat(name string) uint64 {
	m.t.Helper()
	n, err := m.envoy.Stat(m.ctx, name)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

func pemOf(t *testing.T, cert tls.Certificate) (chain, key []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// newMesh starts the servers and the Envoy, which is told first.
func newMesh(t *testing.T, first func(*mesh) *xds.Resources) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	ca := newAuthority(t)
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	// An address of its own, so that no port of it is taken.
	address := fmt.Sprintf("127.%d.%d.%d", 100+rand.IntN(100), rand.IntN(256), 1+rand.IntN(254))
	m := &mesh{t: t, ctx: ctx, instance: xds.Instance{ID: "web-1", Address: address, Egress: address, Secrets: xds.FromADS}}
	svid := xds.SVID(pemOf(t, ca.issue(t, "spiffe://test/ns/shop/sa/web")))
	secrets := []*xds.Resource{svid, xds.Bundle(map[string][]byte{"test": roots})}
	built := first(m)
	var addresses []string
	for i := range m.servers {
		var s *server
		s = newServerOf(t, ca, func(c *Config) {
			c.Retry = Retry{First: 50 * time.Millisecond, Most: 200 * time.Millisecond}
			c.OnConnect = func(instance string) {
				s.SetSecrets(instance, secrets)
				s.SetGates(instance, xds.Gates(nil))
				s.Set(1, map[string]*xds.Resources{instance: built})
			}
		})
		m.servers[i] = s
		addresses = append(addresses, s.address)
	}
	dir := t.TempDir()
	chain, key := pemOf(t, ca.issue(t, "spiffe://control.test/node/web-1"))
	for name, r := range map[string]*xds.Resource{
		xds.NodeFile: xds.Node(chain, key), xds.ControlBundleFile: xds.ControlBundle("test", roots),
	} {
		content, err := xds.File(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	admin := filepath.Join(dir, "admin")
	boot, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: "test", Workload: "shop/web", Instance: m.instance, Servers: addresses,
		AdminSocket: admin, NodeDir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.envoy, err = envoy.Start(envoy.Config{Bootstrap: boot, Dir: dir, Admin: admin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.envoy.Stop(5 * time.Second); err != nil {
			t.Errorf("%v\n%s", err, m.envoy.Log())
		}
	})
	return m
}

// The whole life of a proxy, with the real one: first fetch, policy, a NACK and
// its repair, clusters that come, change and go, rotation, gates, and failover
// without being told anything twice.
func TestRealEnvoy(t *testing.T) {
	m := newMesh(t, func(m *mesh) *xds.Resources { return m.web("shop/first", 1) })
	if err := m.envoy.Ready(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.acked(1)
	listeners := m.stat("listener_manager.listener_create_success")

	m.set(2, m.web("shop/second", 1))
	m.acked(2)
	if modified := m.stat("listener_manager.listener_modified"); modified != 0 {
		t.Errorf("a policy changed %d listeners", modified)
	}

	m.nack(3)

	// More destinations: clusters, endpoints and routes. The ACK shows that the
	// clusters are warm, so nothing waited for the 15 s of a missing answer.
	m.set(4, m.web("shop/second", 3))
	m.acked(4)
	changed := m.web("shop/second", 3)
	m.changeCluster(changed, "svc/shop/orders1/http")
	m.set(5, changed)
	m.acked(5)
	if modified := m.stat("cluster_manager.cluster_modified"); modified != 1 {
		t.Errorf("%d clusters modified, want 1", modified)
	}
	m.set(6, m.web("shop/second", 0))
	m.acked(6)
	if removed := m.stat("cluster_manager.cluster_removed"); removed != 3 {
		t.Errorf("%d clusters removed, want 3", removed)
	}

	home, other := m.home()
	home.SetGates("web-1", xds.Gates([]string{"zt.0123456789abcdef"}))
	home.Set(7, nil)
	m.acked(7)

	home.SetGates("web-1", xds.Gates(nil))
	m.set(8, m.web("shop/first", 1))
	m.acked(8)
	m.failover(home, other)
	if created := m.stat("listener_manager.listener_create_success"); created != listeners {
		t.Errorf("%d listeners made in all, %d by the first fetch", created, listeners)
	}
}

// nack sends a policy that no Envoy can take beside nothing else, and repairs
// it.
func (m *mesh) nack(revision uint64) {
	m.t.Helper()
	bad := *m.web("shop/second", 1)
	var name string
	for n, r := range bad[xds.ExtensionType] {
		if strings.HasPrefix(n, "policy/") {
			name = n
			broken := *r
			broken.Version = "broken"
			broken.Body = &anypb.Any{TypeUrl: r.Body.GetTypeUrl(), Value: []byte{0xff}}
			bad[xds.ExtensionType][n] = &broken
		}
	}
	m.set(revision, &bad)
	home, _ := m.home()
	var nacks []Nack
	if err := m.envoy.Await(m.ctx, func() bool {
		nacks = home.Status()[0].Nacks
		return len(nacks) > 0
	}); err != nil {
		m.t.Fatal(err)
	}
	if n := nacks[0]; len(nacks) != 1 || n.Resource != name || n.Version != "broken" || n.Message == "" || n.TypeURL != xds.ExtensionType {
		m.t.Errorf("%+v", nacks)
	}
	if got := home.Status()[0]; got.AckedRevision != revision-1 || got.SentRevision != revision {
		m.t.Errorf("%+v", got)
	}
	m.set(revision, m.web("shop/second", 1))
	m.acked(revision)
}

// changeCluster gives a cluster other bytes.
func (m *mesh) changeCluster(r *xds.Resources, name string) {
	m.t.Helper()
	var c clusterv3.Cluster
	if err := r.Get(xds.ClusterType, name).Body.UnmarshalTo(&c); err != nil {
		m.t.Fatal(err)
	}
	c.ConnectTimeout = durationpb.New(7 * time.Second)
	body, err := anypb.New(&c)
	if err != nil {
		m.t.Fatal(err)
	}
	(*r)[xds.ClusterType][name] = &xds.Resource{Type: xds.ClusterType, Name: name, Version: "changed", Body: body}
}

// failover ends the server that has the stream and looks at what the other one
// has to say: nothing.
func (m *mesh) failover(home, other *server) {
	m.t.Helper()
	home.stop()
	if err := m.envoy.Await(m.ctx, func() bool { return len(other.Connected()) == 1 }); err != nil {
		m.t.Fatal(err)
	}
	m.acked(8)
	if n := other.count("zt_serve_pushes_total", ""); n != 0 {
		m.t.Errorf("%v pushes after the failover, want none", n)
	}
}
