package controlplane_test

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
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

const (
	patience    = 30 * time.Second
	trustDomain = "shop.example"
)

// shop is two workloads and who may call whom.
const shop = `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET]}}
`

// workload is a document that makes a namespace differ.
func workload(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: %s}\nspec: {}\n", namespace, name)
}

// cluster is real servers in this process. Everything ends with the test.
type cluster struct {
	t       testing.TB
	servers []*server
	first   identity.Context // the first admin's
	log     *logBuffer
	tune    func(*controlplane.Config) // of each server, before it starts; nil for as it is
}

// server is one server. Its ports outlive a restart.
type server struct {
	*controlplane.Server
	dir    string
	cancel context.CancelFunc // nil while it does not run
	done   chan error
}

func newCluster(t testing.TB, servers int, tune func(*controlplane.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, log: &logBuffer{}, tune: tune}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the servers:\n%s", c.log)
		}
	})
	first := &server{dir: filepath.Join(t.TempDir(), "server")}
	path, err := controlplane.Init(t.Context(), controlplane.InitConfig{DataDir: first.dir, TrustDomain: trustDomain, Logger: c.logger()})
	c.check(err)
	contexts, err := identity.LoadContexts(path)
	c.check(err)
	c.first, _ = contexts.Find("")
	c.servers = []*server{first}
	c.start(first)
	for len(c.servers) < servers {
		c.join()
	}
	return c
}

func (c *cluster) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// join adds a server and waits until it votes.
func (c *cluster) join() *server {
	c.t.Helper()
	s := &server{dir: filepath.Join(c.t.TempDir(), "server")}
	c.check(controlplane.Join(c.ctx(), controlplane.JoinConfig{
		DataDir: s.dir, Server: c.servers[0].Addresses().Node, Token: c.token(""), Logger: c.logger(),
	}))
	c.servers = append(c.servers, s)
	c.start(s)
	c.until("the new server votes", func() bool {
		resp, err := c.admin().ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
		if err != nil {
			return false
		}
		ready := 0
		for _, m := range resp.Members {
			if m.Voter && m.Reachable {
				ready++
			}
		}
		return ready == len(c.servers)
	})
	return s
}

func (c *cluster) start(s *server) {
	c.t.Helper()
	cfg := controlplane.Default()
	cfg.DataDir, cfg.Logger = s.dir, c.logger()
	cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Timing = store.Timing{Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond, Lease: 100 * time.Millisecond}
	if c.tune != nil {
		c.tune(&cfg)
	}
	var err error
	s.Server, err = controlplane.New(cfg)
	c.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	go func(done chan error) { done <- s.Run(ctx) }(s.done)
	c.t.Cleanup(func() { c.stop(s) })
	select {
	case <-s.Ready():
	case err := <-s.done:
		s.cancel = nil
		c.t.Fatalf("server ended: %v", err)
	case <-c.ctx().Done():
		c.t.Fatal("server is not ready")
	}
}

func (c *cluster) stop(s *server) {
	c.t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	if err := <-s.done; err != nil {
		c.t.Errorf("server ended with: %v", err)
	}
}

// leader is the server that leads, and one that does not.
func (c *cluster) leader() (leader, follower *server) {
	c.t.Helper()
	c.until("a leader", func() bool {
		info, err := c.admin().GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
		if err != nil {
			return false
		}
		leader, follower = nil, nil
		for _, s := range c.servers {
			if s.ID() == info.Leader {
				leader = s
			} else {
				follower = s
			}
		}
		return leader != nil
	})
	return leader, follower
}

// ctx ends with the test, or when patience does.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), patience)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(patience)
	defer end.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			c.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// pair is the first admin's.
func (c *cluster) pair() *identity.KeyPair {
	c.t.Helper()
	p, err := identity.ParseKeyPair([]byte(string(c.first.Key) + c.first.Certificate))
	c.check(err)
	return p
}

func (c *cluster) roots() []*x509.Certificate {
	c.t.Helper()
	roots, err := identity.ParsePEM([]byte(c.first.Roots))
	c.check(err)
	return roots
}

// tls shows a pair, or nothing, and believes servers of the cluster.
func (c *cluster) tls(pair *identity.KeyPair) *tls.Config {
	c.t.Helper()
	roots := c.roots()
	trust := identity.Trust{TrustDomain: trustDomain, Now: time.Now, Roots: func() []*x509.Certificate { return roots }}
	if pair != nil {
		trust.Certificate = func() (*tls.Certificate, error) { return pair.TLS(), nil }
	}
	cfg, err := identity.ClientConfig(trust)
	c.check(err)
	return cfg
}

func (c *cluster) dial(address string, pair *identity.KeyPair) *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(c.tls(pair))),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(128<<20), grpc.MaxCallRecvMsgSize(128<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second}, MinConnectTimeout: 5 * time.Second}))
	c.check(err)
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

func (c *cluster) as(s *server, pair *identity.KeyPair) ztv1.AdminServiceClient {
	c.t.Helper()
	return ztv1.NewAdminServiceClient(c.dial(s.Addresses().Admin, pair))
}

// admin is the first admin at the first server.
func (c *cluster) admin() ztv1.AdminServiceClient {
	c.t.Helper()
	return c.as(c.servers[0], c.pair())
}

func (c *cluster) newKey() (identity.PrivateKey, []byte) {
	c.t.Helper()
	key, err := identity.NewKey()
	c.check(err)
	csr, err := identity.NewCSR(key)
	c.check(err)
	return key, csr
}

func (c *cluster) keyPair(key identity.PrivateKey, der [][]byte) *identity.KeyPair {
	c.t.Helper()
	chain, err := identity.ParseDER(der)
	c.check(err)
	pair, err := identity.NewKeyPair(key, chain)
	c.check(err)
	return pair
}

// addAdmin makes an admin with a certificate.
func (c *cluster) addAdmin(name, role string, namespaces ...string) *identity.KeyPair {
	c.t.Helper()
	key, csr := c.newKey()
	var resp *ztv1.AddAdminResponse
	c.settled(func() (err error) {
		resp, err = c.admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: name, Role: role, Namespaces: namespaces, Csr: csr})
		return err
	})
	return c.keyPair(key, resp.Chain)
}

func (c *cluster) removeAdmin(name string) {
	c.t.Helper()
	c.settled(func() error {
		_, err := c.admin().RemoveAdmin(c.ctx(), &ztv1.RemoveAdminRequest{Name: name})
		return err
	})
}

func (c *cluster) token(workload string) string {
	c.t.Helper()
	var resp *ztv1.CreateTokenResponse
	c.settled(func() (err error) {
		resp, err = c.admin().CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Workload: workload, Server: workload == ""})
		return err
	})
	return resp.Token
}

func newID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

// enrolment is a request that would succeed with a valid token.
func (c *cluster) enrolment(token, workload string) (identity.PrivateKey, *ztv1.EnrolRequest) {
	c.t.Helper()
	key, csr := c.newKey()
	return key, &ztv1.EnrolRequest{Token: token, Workload: workload, Instance: newID(), NodeCsr: csr}
}

// node is the node service, as nobody or as an instance.
func (c *cluster) node(s *server, pair *identity.KeyPair) ztv1.NodeServiceClient {
	c.t.Helper()
	return ztv1.NewNodeServiceClient(c.dial(s.Addresses().Node, pair))
}

// enrol makes an instance and returns what it shows.
func (c *cluster) enrol(workload string) (id string, pair *identity.KeyPair) {
	c.t.Helper()
	key, req := c.enrolment(c.token(workload), workload)
	var resp *ztv1.EnrolResponse
	c.settled(func() (err error) {
		resp, err = c.node(c.servers[0], nil).Enrol(c.ctx(), req)
		return err
	})
	return resp.Instance, c.keyPair(key, resp.Certificates.NodeChain)
}

// identityOf is what a server shows to others.
func (c *cluster) identityOf(s *server) *identity.KeyPair {
	c.t.Helper()
	by, err := identity.LoadKeyPair(filepath.Join(s.dir, "intermediate.pem"))
	c.check(err)
	a, err := identity.NewAuthority(c.roots()[0], by, s.ID(), identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	pair, err := a.MakeServer()
	c.check(err)
	return pair
}

// apply makes a spec the truth.
func (c *cluster) apply(yaml string) *ztv1.ApplyResponse {
	c.t.Helper()
	var resp *ztv1.ApplyResponse
	c.settled(func() (err error) {
		resp, err = c.admin().Apply(c.ctx(), applyRequest(yaml))
		return err
	})
	return resp
}

func applyRequest(yaml string) *ztv1.ApplyRequest {
	return &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(yaml)}}}
}

// revision is the newest.
func (c *cluster) revision() uint64 {
	c.t.Helper()
	resp, err := c.admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	c.check(err)
	return resp.Revision
}

// rest calls the REST API and returns the code and the decoded answer.
func (c *cluster) rest(pair *identity.KeyPair, method, path, body string, header ...string) (int, map[string]any) {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.http1(pair), DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(c.ctx(), method, "https://"+c.servers[0].Addresses().Admin+path, strings.NewReader(body))
	c.check(err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	c.check(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	c.check(err)
	var out map[string]any
	if err := json.Unmarshal(bytes.SplitN(raw, []byte("\n"), 2)[0], &out); err != nil {
		c.t.Fatalf("%s %s: %s: %q is not JSON", method, path, resp.Status, raw)
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		c.t.Errorf("%s %s: answered as %q", method, path, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, out
}

func (c *cluster) http1(pair *identity.KeyPair) *tls.Config {
	c.t.Helper()
	cfg := c.tls(pair)
	cfg.NextProtos = []string{"http/1.1"}
	return cfg
}

// metric is the sum of the series that begin so.
func (c *cluster) metric(s *server, series string) float64 {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.ctx(), http.MethodGet, "http://"+s.Addresses().Local+"/metrics", nil)
	c.check(err)
	resp, err := http.DefaultClient.Do(req)
	c.check(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	c.check(err)
	sum := 0.0
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, series) {
			v, err := strconv.ParseFloat(value, 64)
			c.check(err)
			sum += v
		}
	}
	return sum
}

// settled calls again while there is no leader: nothing has changed then.
func (c *cluster) settled(call func() error) {
	c.t.Helper()
	var err error
	c.until("a leader", func() bool {
		err = call()
		return status.Code(err) != codes.Unavailable
	})
	if err != nil {
		c.t.Fatalf("%v %v", err, status.Convert(err).Details())
	}
}

// refused wants an error of a code and returns its message.
func (c *cluster) refused(want codes.Code, err error) string {
	c.t.Helper()
	if status.Code(err) != want {
		c.t.Fatalf("got %v, want %v", err, want)
	}
	return status.Convert(err).Message()
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
