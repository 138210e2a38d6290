// Package mesh runs whole meshes for tests, in one process: real servers of the
// control plane, enrolled instances, real Envoys and small applications.
//
// It owns addresses, folders and lives: everything that it starts ends with the
// test, and what cannot be done fails the test. It knows no spec and judges
// nothing. Every address is a loopback address that no other test on this host
// uses, so that packages run beside each other and ports can be as in production.
//
// A Mesh and what belongs to it is used from the goroutine of its test, save
// what says otherwise.
package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Patience bounds every wait for what should come within a second or two.
const Patience = 30 * time.Second

// Config is what a mesh begins with. The zero value is one server.
type Config struct {
	TrustDomain string                     // default "shop.example"
	Servers     int                        // default 1
	Tune        func(*controlplane.Config) // changes how a server runs, at each start
	LogLevel    slog.Level                 // of Log
	Format      uint32                     // as in controlplane.InitConfig
	KEK         string                     // source of the keys of all servers; default: a file of each; Tune names it, too
}

// Mesh is a cluster of servers and what is enrolled with it.
type Mesh struct {
	TrustDomain string
	Servers     []*Server
	Log         *Log // of the servers; shown if the test fails

	t     testing.TB
	c     Config
	admin identity.Context // the first admin's
}

// New starts the servers and returns when they are one cluster.
func New(t testing.TB, c Config) *Mesh {
	t.Helper()
	if c.TrustDomain == "" {
		c.TrustDomain = "shop.example"
	}
	m := &Mesh{TrustDomain: c.TrustDomain, Log: &Log{}, t: t, c: c}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the servers:\n%s", m.Log)
		}
	})
	first := m.newServer()
	credential, err := controlplane.Init(t.Context(), controlplane.InitConfig{
		DataDir: first.Dir, TrustDomain: c.TrustDomain, Logger: first.log, Format: c.Format, KEK: c.KEK,
	})
	m.check(err)
	contexts, err := identity.LoadContexts(credential)
	m.check(err)
	m.admin, _ = contexts.Find("")
	first.Start()
	for len(m.Servers) < c.Servers {
		m.Join("")
	}
	return m
}

// Contexts writes a contexts file of the first admin's that names servers, for ztctl.
func (m *Mesh) Contexts(servers ...*Server) (path string) {
	m.t.Helper()
	x := m.admin
	x.Servers = nil
	for _, s := range servers {
		x.Servers = append(x.Servers, s.Addresses().Admin)
	}
	all := &identity.Contexts{}
	all.Put(x)
	path = filepath.Join(m.t.TempDir(), "contexts.yaml")
	m.check(identity.SaveContexts(path, all))
	return path
}

// Together returns when all servers run, have the vote that they are to have, and
// each of them hears all others, so that it can speak for every proxy.
func (m *Mesh) Together() {
	m.t.Helper()
	m.Until("all servers are one cluster", func() bool {
		return !slices.ContainsFunc(m.Servers, func(s *Server) bool {
			resp, err := s.Admin().ListMembers(m.context(), &ztv1.ListMembersRequest{Stale: true}) // as it sees them itself
			return err != nil || len(resp.Members) != len(m.Servers) || slices.ContainsFunc(resp.Members, func(e *ztv1.Member) bool {
				return e.Voter == e.Replica || !e.Reachable || e.NodeAddress == ""
			})
		})
	})
}

// Join adds a server by a token for servers, "" for a new one, and returns when
// all are one cluster.
func (m *Mesh) Join(token string) *Server {
	m.t.Helper()
	s := m.Add(controlplane.JoinConfig{Token: token})
	m.Together()
	return s
}

// Add is Join without the wait. What j leaves out is filled in.
func (m *Mesh) Add(j controlplane.JoinConfig) *Server {
	m.t.Helper()
	by, s := m.running()[0], m.newServer()
	j.DataDir, j.Server, j.Logger, j.KEK = s.Dir, by.Addresses().Node, s.log, m.c.KEK
	ctx, cancel := context.WithTimeout(m.context(), Patience)
	defer cancel()
	given := j.Token
	m.Until("a server may join", func() bool {
		if given == "" {
			j.Token = m.Token("")
		}
		err := controlplane.Join(ctx, j)
		if !Unsettled(err) {
			m.check(err)
		}
		return err == nil
	})
	s.Start()
	return s
}

// Leader waits for a server that leads and returns it.
func (m *Mesh) Leader() *Server {
	m.t.Helper()
	var leader *Server
	m.Until("a leader", func() bool {
		for _, s := range m.running() {
			info, err := s.Admin().GetServerInfo(m.context(), &ztv1.GetServerInfoRequest{})
			if err != nil {
				continue
			}
			for _, l := range m.running() {
				if l.ID() == info.Leader {
					leader = l
					return true
				}
			}
		}
		return false
	})
	return leader
}

// Others are the running servers beside one.
func (m *Mesh) Others(than *Server) []*Server {
	var out []*Server
	for _, s := range m.running() {
		if s != than {
			out = append(out, s)
		}
	}
	return out
}

func (m *Mesh) running() []*Server {
	var out []*Server
	for _, s := range m.Servers {
		if s.cancel != nil {
			out = append(out, s)
		}
	}
	return out
}

// Admin is the API of some running server.
func (m *Mesh) Admin() ztv1.AdminServiceClient {
	m.t.Helper()
	all := m.running()
	if len(all) == 0 {
		m.t.Fatal("no server runs")
	}
	return all[0].Admin()
}

// Apply makes the documents the whole truth for the namespaces that they name,
// and returns when every proxy that this affects has ACKed.
func (m *Mesh) Apply(yaml string) *ztv1.ApplyResponse {
	m.t.Helper()
	resp := m.Submit(yaml)
	m.Receipt(resp.Revision)
	return resp
}

// Submit is Apply without the wait for the proxies. While there is no leader it
// asks again.
func (m *Mesh) Submit(yaml string) *ztv1.ApplyResponse {
	m.t.Helper()
	req := &ztv1.ApplyRequest{
		Files:          []*ztv1.File{{Name: "spec.yaml", Content: []byte(yaml)}},
		IdempotencyKey: fmt.Sprintf("%016x", rand.Uint64()),
	}
	var resp *ztv1.ApplyResponse
	m.Until("an apply", func() bool {
		var err error
		resp, err = m.Admin().Apply(m.context(), req)
		if Unsettled(err) {
			return false
		}
		if err != nil {
			m.t.Fatalf("apply: %v\n%v", err, status.Convert(err).Details())
		}
		return true
	})
	return resp
}

// Unsettled tells whether a call is to be made again, with the same key: its error
// leaves open what became of it, or says that the server is busy.
func Unsettled(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.ResourceExhausted: // of a server that says when to ask again, only
		return slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool { _, ok := d.(*errdetails.RetryInfo); return ok })
	}
	return false
}

// Settled makes a call again until its outcome is known, and good.
func Settled[T any](m *Mesh, what string, call func() (T, error)) T {
	m.t.Helper()
	var out T
	m.Until(what, func() bool {
		var err error
		if out, err = call(); !Unsettled(err) {
			m.check(err)
		}
		return err == nil
	})
	return out
}

// Receipt returns when every proxy that a revision affects has ACKed it.
func (m *Mesh) Receipt(revision uint64) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.context(), Patience)
	defer cancel()
	watch, err := m.Admin().WatchReceipt(ctx, &ztv1.WatchReceiptRequest{Revision: revision})
	m.check(err)
	var last *ztv1.WatchReceiptResponse
	for last == nil || !last.Complete {
		next, err := watch.Recv()
		if err != nil {
			m.t.Fatalf("receipt of revision %d: %v; last %v", revision, err, last)
		}
		last = next
	}
}

// Status is every enrolled instance, as some running server sees it.
func (m *Mesh) Status() []*ztv1.Proxy {
	m.t.Helper()
	return Settled(m, "a status", func() (*ztv1.GetStatusResponse, error) {
		return m.Admin().GetStatus(m.context(), &ztv1.GetStatusRequest{})
	}).Proxies
}

// Proxy is the status of one instance; nil if it is not enrolled.
func (m *Mesh) Proxy(id string) *ztv1.Proxy {
	m.t.Helper()
	for _, p := range m.Status() {
		if p.Instance == id {
			return p
		}
	}
	return nil
}

// Until is the function of this name.
func (m *Mesh) Until(what string, ok func() bool) {
	m.t.Helper()
	Until(m.t, what, ok)
}

// Until asks ok again and again until it says yes.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(Patience), time.NewTicker(10*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Loopback is a loopback address that belongs to this test until it ends.
func (m *Mesh) Loopback() string {
	m.t.Helper()
	address, release, err := Claim()
	m.check(err)
	m.t.Cleanup(release)
	return address
}

// Claim is a loopback address that belongs to the caller until it is released: who
// claims it holds one port of it, outside of the range that systems hand out.
func Claim() (address string, release func(), err error) {
	for range 100 {
		n := rand.Uint32()
		address := fmt.Sprintf("127.%d.%d.%d", 1+n%254, n>>8&0xff, 1+n>>16%254)
		claim, err := net.Listen("tcp", net.JoinHostPort(address, "64999"))
		if err == nil {
			return address, func() { claim.Close() }, nil
		}
	}
	return "", nil, errors.New("no loopback address is free")
}

// ShortDir is a folder until the test ends. Its path is short: sockets allow 108
// bytes.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Roots are the trust anchors of the cluster.
func (m *Mesh) Roots() []*x509.Certificate {
	m.t.Helper()
	roots, err := identity.ParsePEM([]byte(m.admin.Roots))
	m.check(err)
	return roots
}

// AdminPair is what the first admin shows.
func (m *Mesh) AdminPair() *identity.KeyPair {
	m.t.Helper()
	pair, err := identity.ParseKeyPair([]byte(string(m.admin.Key) + m.admin.Certificate))
	m.check(err)
	return pair
}

// ClientTLS is how a client of the servers' ports shows pair; nil shows nothing.
func (m *Mesh) ClientTLS(pair *identity.KeyPair) *tls.Config {
	m.t.Helper()
	roots := m.Roots()
	trust := identity.Trust{TrustDomain: m.TrustDomain, Now: time.Now, Roots: func() []*x509.Certificate { return roots }}
	if pair != nil {
		trust.Certificate = func() (*tls.Certificate, error) { return pair.TLS(), nil }
	}
	config, err := identity.ClientConfig(trust)
	m.check(err)
	config.ServerName = m.epoch() // the cluster port hears no other; the other ports do not look
	return config
}

// epoch is that of the cluster, as the first server knows it.
func (m *Mesh) epoch() string {
	m.t.Helper()
	var s struct{ Epoch string }
	b, err := os.ReadFile(filepath.Join(m.Servers[0].Dir, "server.json"))
	m.check(err)
	m.check(json.Unmarshal(b, &s))
	return s.Epoch
}

// context ends after the test has ended, so that cleanups may use it.
func (m *Mesh) context() context.Context { return context.WithoutCancel(m.t.Context()) }

func (m *Mesh) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *Mesh) newServer() *Server {
	m.t.Helper()
	host := m.Loopback()
	s := &Server{
		Dir: filepath.Join(m.t.TempDir(), "server"), m: m, host: host,
		log: slog.New(slog.NewTextHandler(m.Log, &slog.HandlerOptions{Level: m.c.LogLevel})).With("host", host),
	}
	m.Servers = append(m.Servers, s)
	return s
}
