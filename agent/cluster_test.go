package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/agent"
	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/xds"
)

const td = "shop.example"

// patience is how long a test waits for what should come within a second or two.
const patience = 30 * time.Second

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

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// shortDir is a directory whose path leaves room for the names of sockets.
func shortDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "zt")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(d)) })
	return d
}

// loopback is a loopback address that no other test is likely to use.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 2+rand.IntN(250))
}

// cluster is a control plane of one real server.
type cluster struct {
	dir   string
	node  string // its node port
	admin ztv1.AdminServiceClient
	port  int // of orders
	stop  func()
}

// newCluster starts a control plane with two workloads, web and orders, of which
// web may call orders.
func newCluster(t *testing.T, svidTTL string) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), port: freePort(t)}
	_, err := controlplane.Init(t.Context(), controlplane.InitConfig{DataDir: c.dir, TrustDomain: td, Logger: slog.New(slog.DiscardHandler)})
	check(t, err)
	c.start(t)
	ask(t, c.admin.Apply, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "shop.yaml", Content: fmt.Appendf(nil, spec, svidTTL, c.port)}}})
	return c
}

// ask calls a method of the admin API, again while there is no leader.
func ask[Req, Resp any](t *testing.T, method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (resp Resp) {
	t.Helper()
	var err error
	eventually(t, "a leader answers", func() bool {
		resp, err = method(t.Context(), req)
		return status.Code(err) != codes.Unavailable
	})
	check(t, err)
	return resp
}

const spec = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: shop.example, svidTTL: %s}
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
  serves: [{name: http, port: %d, protocol: http}]
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec:
  from: {workloads: [web]}
  to: {services: [orders], methods: [GET]}
`

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs the server; stop ends it. It may be started again.
func (c *cluster) start(t *testing.T) {
	t.Helper()
	cfg := controlplane.Default()
	cfg.DataDir = c.dir
	cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Timing = store.Timing{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 50 * time.Millisecond}
	s, err := controlplane.New(cfg)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	t.Cleanup(c.stop)
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("the server ended: %v", err)
	}
	c.node = s.Addresses().Node
	c.dialAdmin(t, s.Addresses().Admin)
}

func (c *cluster) dialAdmin(t *testing.T, addr string) {
	t.Helper()
	contexts := must(identity.LoadContexts(filepath.Join(c.dir, "admin.yaml")))(t)
	x, ok := contexts.Find("")
	if !ok {
		t.Fatal("no admin context")
	}
	roots := must(identity.ParsePEM([]byte(x.Roots)))(t)
	pair := must(identity.ParseKeyPair([]byte(string(x.Key) + x.Certificate)))(t)
	config := must(identity.ClientConfig(identity.Trust{
		TrustDomain: td, Now: time.Now,
		Roots:       func() []*x509.Certificate { return roots },
		Certificate: func() (*tls.Certificate, error) { return pair.TLS(), nil },
	}))(t)
	conn := must(grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config))))(t)
	t.Cleanup(func() { conn.Close() })
	c.admin = ztv1.NewAdminServiceClient(conn)
}

// token makes a token and writes it to path, or to a file of its own.
func (c *cluster) token(t *testing.T, workload, path string) string {
	t.Helper()
	resp := ask(t, c.admin.CreateToken, &ztv1.CreateTokenRequest{Workload: workload, Ttl: durationpb.New(time.Hour)})
	if path == "" {
		path = filepath.Join(t.TempDir(), "token")
	}
	check(t, os.WriteFile(path, []byte(resp.Token+"\n"), 0o600))
	return path
}

// instances are the enrolled instances of a workload.
func (c *cluster) instances(t *testing.T, workload string) []*ztv1.Proxy {
	t.Helper()
	resp := ask(t, c.admin.GetStatus, &ztv1.GetStatusRequest{})
	return slices.DeleteFunc(resp.Proxies, func(p *ztv1.Proxy) bool { return p.Workload != workload })
}

// config is that of a first start.
func (c *cluster) config(t *testing.T, workload string) agent.Config {
	t.Helper()
	return agent.Config{
		DataDir: filepath.Join(shortDir(t), "state"), Workload: workload, Servers: []string{c.node},
		TokenFile: c.token(t, workload, ""), Address: loopback(), EgressAddress: loopback(),
	}
}

// withEnvoy has the agent run a real Envoy.
func withEnvoy(t *testing.T, cfg agent.Config) agent.Config {
	t.Helper()
	cfg.Envoy = agent.Envoy{Path: must(envoy.Find())(t), Concurrency: 1}
	return cfg
}

// journal is a log, line by line, as it is written.
type journal struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// line is what the tests read of a log line.
type line struct {
	Msg string
	PID int
}

// lines are those with this message.
func (j *journal) lines(msg string) []line {
	var out []line
	for s := range strings.Lines(j.String()) {
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
	log   *journal
	ended chan struct{} // closed when Run has returned
	err   error         // of Run; read it after ended
	stop  func()
}

// start runs an agent until the test ends.
func start(t *testing.T, cfg agent.Config) *running {
	t.Helper()
	r := &running{cfg: cfg, log: &journal{}, ended: make(chan struct{})}
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
	eventually(t, "the agent serves", func() bool {
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
	case <-time.After(patience):
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
	eventually(t, "Envoy is started", func() bool { return len(r.log.lines("envoy started")) >= n })
	return r.log.lines("envoy started")[n-1].PID
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// secrets asks the agent for everything it serves: name → version.
func (r *running) secrets(t *testing.T) map[string]string {
	t.Helper()
	instance := r.serving(t).Instance
	conn := must(grpc.NewClient("unix://"+filepath.Join(r.cfg.DataDir, "sds.sock"), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := must(adsclient.OpenSecrets(ctx, conn, instance))(t)
	want := []string{xds.SVIDSecret, xds.BundleSecret, xds.NodeSecret, xds.ControlBundleSecret}
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
