package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ztmesh/ztmesh/agent"
	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

const td = "shop.example"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// cluster is a control plane of one real server.
type cluster struct{ *mesh.Mesh }

// newCluster starts a control plane with two workloads, web and orders, of which
// web may call orders.
func newCluster(t *testing.T, svidTTL string) cluster {
	t.Helper()
	c := cluster{mesh.New(t, mesh.Config{})}
	c.Apply(fmt.Sprintf(spec, svidTTL))
	return c
}

const spec = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: shop.example, svidTTL: 24h}
---
# The segment's word counts, not the mesh's.
apiVersion: ztmesh.dev/v1alpha1
kind: Segment
metadata: {namespace: mesh, name: shop}
spec: {namespaces: [shop], svidTTL: %s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec:
  serves: [{name: http, port: 8080, protocol: http}]
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec:
  from: {workloads: [web]}
  to: {services: [orders], methods: [GET]}
`

// node is the server's node port.
func (c cluster) node() string { return c.Servers[0].Addresses().Node }

// tokenFile makes a token and writes it to path, or to a file of its own.
func (c cluster) tokenFile(t *testing.T, workload, path string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "token")
	}
	check(t, os.WriteFile(path, []byte(c.Token(workload)+"\n"), 0o600))
	return path
}

// instances are the enrolled instances of a workload.
func (c cluster) instances(workload string) []*ztv1.Proxy {
	return slices.DeleteFunc(c.Status(), func(p *ztv1.Proxy) bool { return p.Workload != workload })
}

// config is that of a first start.
func (c cluster) config(t *testing.T, workload string) agent.Config {
	t.Helper()
	return agent.Config{
		DataDir: filepath.Join(mesh.ShortDir(t), "state"), Workload: workload, Servers: []string{c.node()},
		TokenFile: c.tokenFile(t, workload, ""), Address: c.Loopback(), EgressAddress: c.Loopback(),
	}
}

// withEnvoy has the agent run a real Envoy.
func withEnvoy(t *testing.T, cfg agent.Config) agent.Config {
	t.Helper()
	cfg.Envoy = agent.Envoy{Path: must(envoy.Find())(t), Concurrency: 1}
	return cfg
}

// line is what the tests read of a log line.
type line struct {
	Msg string
	PID int
}

// lines are those of the log with this message.
func (r *running) lines(msg string) []line {
	var out []line
	for s := range strings.Lines(r.log.String()) {
		var l line
		if json.Unmarshal([]byte(s), &l) == nil && l.Msg == msg {
			out = append(out, l)
		}
	}
	return out
}

// running is an agent that runs.
type running struct {
	cfg   agent.Config
	log   *mesh.Log
	ended chan struct{} // closed when Run has returned
	err   error         // of Run; read it after ended
	stop  func()
}

// start runs an agent until the test ends.
func start(t *testing.T, cfg agent.Config) *running {
	t.Helper()
	r := &running{cfg: cfg, log: &mesh.Log{}, ended: make(chan struct{})}
	cfg.Logger = slog.New(slog.NewJSONHandler(r.log, nil))
	cfg.Envoy.Output = r.log
	a := must(agent.New(cfg))(t)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		r.err = a.Run(ctx)
	}()
	r.stop = func() { cancel(); <-r.ended }
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("log of %s:\n%s", cfg.Workload, r.log)
		}
	})
	return r
}

// serving waits until the agent serves.
func (r *running) serving(t *testing.T) *agent.Status {
	t.Helper()
	var s *agent.Status
	mesh.Until(t, "the agent serves", func() bool {
		select {
		case <-r.ended:
			t.Fatalf("the agent ended: %v", r.err)
		default:
		}
		var err error
		s, err = agent.ReadStatus(r.cfg.DataDir, time.Now())
		return err == nil && s.Running
	})
	return s
}

// fails waits for an agent that ends by itself, and returns its error.
func (r *running) fails(t *testing.T) error {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(mesh.Patience):
		t.Fatal("the agent goes on")
	}
	if r.err == nil {
		t.Fatal("the agent ended without an error")
	}
	return r.err
}

// envoyPID waits until n Envoys have been started and returns the last one's id.
func (r *running) envoyPID(t *testing.T, n int) int {
	t.Helper()
	mesh.Until(t, "Envoy is started", func() bool { return len(r.lines("envoy started")) >= n })
	return r.lines("envoy started")[n-1].PID
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// secrets asks the agent for everything it serves: name → version.
func (r *running) secrets(t *testing.T) map[string]string {
	t.Helper()
	instance := r.serving(t).Instance
	conn := must(grpc.NewClient("unix://"+filepath.Join(r.cfg.DataDir, "sds.sock"), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	client := must(adsclient.OpenSecrets(ctx, conn, instance))(t)
	want := []string{xds.SVIDSecret, xds.NodeSecret, xds.ControlBundleSecret}
	check(t, client.Subscribe(xds.SecretType, want...))
	for len(client.Versions(xds.SecretType)) < len(want) {
		check(t, client.Ack(must(client.Recv())(t)))
	}
	return client.Versions(xds.SecretType)
}

// dial shakes hands with an Envoy, as the workload whose agent's directory is
// named, and returns the certificate that it shows.
func dial(t *testing.T, dir, addr string) (*x509.Certificate, error) {
	t.Helper()
	pair := must(identity.LoadKeyPair(filepath.Join(dir, "svid.pem")))(t)
	roots := must(identity.ParsePEM(must(os.ReadFile(filepath.Join(dir, "roots.pem")))(t)))(t)
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", addr, &tls.Config{
		Certificates: []tls.Certificate{*pair.TLS()}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // VerifySVID below does it
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The handshake of TLS 1.3 ends here before the other side has judged us.
	check(t, conn.SetDeadline(time.Now().Add(time.Second)))
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
		return nil, err
	}
	chain := conn.ConnectionState().PeerCertificates
	if uri, err := identity.VerifySVID(chain, td, roots, time.Now()); err != nil || uri != "spiffe://shop.example/ns/shop/sa/orders" {
		t.Fatalf("the Envoy shows %q, %v", uri, err)
	}
	return chain[0], nil
}
