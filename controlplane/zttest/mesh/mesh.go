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
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// Patience bounds every wait for what should come within a second or two.
const Patience = 30 * time.Second

// Config is what a mesh begins with. The zero value is one server.
type Config struct {
	TrustDomain string // default "shop.example"
	Servers     int    // default 1
	Liveness    controlplane.Liveness
}

// Mesh is a cluster of servers and what is enrolled with it.
type Mesh struct {
	TrustDomain string
	Servers     []*Server

	t     testing.TB
	admin identity.Context // the first admin's
}

// New starts the servers and returns when they are one cluster.
func New(t testing.TB, c Config) *Mesh {
	t.Helper()
	if c.TrustDomain == "" {
		c.TrustDomain = "shop.example"
	}
	m := &Mesh{TrustDomain: c.TrustDomain, t: t}
	first := m.newServer(c)
	credential, err := controlplane.Init(t.Context(), controlplane.InitConfig{
		DataDir: first.dir, TrustDomain: c.TrustDomain, Logger: slog.New(slog.DiscardHandler),
	})
	m.check(err)
	contexts, err := identity.LoadContexts(credential)
	m.check(err)
	m.admin, _ = contexts.Find("")
	first.Start()
	for len(m.Servers) < c.Servers {
		m.join(m.newServer(c), first)
		m.Together()
	}
	return m
}

// Together returns when all servers run and each of them hears all others, so
// that it can speak for every proxy.
func (m *Mesh) Together() {
	m.t.Helper()
	m.Until("all servers are one cluster", func() bool {
		return !slices.ContainsFunc(m.Servers, func(s *Server) bool {
			resp, err := s.Admin().ListMembers(m.context(), &ztv1.ListMembersRequest{})
			return err != nil || len(resp.Members) != len(m.Servers) || slices.ContainsFunc(resp.Members, func(e *ztv1.Member) bool {
				return !e.Voter || !e.Reachable || e.NodeAddress == ""
			})
		})
	})
}

func (m *Mesh) join(s, by *Server) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.context(), Patience)
	defer cancel()
	m.Until("a server may join", func() bool {
		resp, err := by.Admin().CreateToken(ctx, &ztv1.CreateTokenRequest{Server: true})
		if err == nil {
			err = controlplane.Join(ctx, controlplane.JoinConfig{
				DataDir: s.dir, Server: by.Addresses().Node, Token: resp.Token, Logger: slog.New(slog.DiscardHandler),
			})
		}
		if !Unsettled(err) {
			m.check(err)
		}
		return err == nil
	})
	s.Start()
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

// Unsettled tells whether an error leaves open what became of a call: it is to
// be asked again, with the same key.
func Unsettled(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// settled makes a call again until its outcome is known, and good.
func settled[T any](m *Mesh, what string, call func() (T, error)) T {
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
	resp, err := m.Admin().GetStatus(m.context(), &ztv1.GetStatusRequest{})
	m.check(err)
	return resp.Proxies
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

// Until asks ok again and again until it says yes.
func (m *Mesh) Until(what string, ok func() bool) {
	m.t.Helper()
	deadline, tick := time.NewTimer(Patience), time.NewTicker(10*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			m.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// Loopback is a loopback address that belongs to this test until it ends: it
// holds one port of it, outside of the range that systems hand out.
func (m *Mesh) Loopback() string {
	m.t.Helper()
	for range 100 {
		n := rand.Uint32()
		address := fmt.Sprintf("127.%d.%d.%d", 1+n%254, n>>8&0xff, 1+n>>16%254)
		claim, err := net.Listen("tcp", net.JoinHostPort(address, "64999"))
		if err == nil {
			m.t.Cleanup(func() { claim.Close() })
			return address
		}
	}
	m.t.Fatal("no loopback address is free")
	return ""
}

// Roots are the trust anchors of the cluster.
func (m *Mesh) Roots() []*x509.Certificate {
	m.t.Helper()
	roots, err := identity.ParsePEM([]byte(m.admin.Roots))
	m.check(err)
	return roots
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
	return config
}

// context ends after the test has ended, so that cleanups may use it.
func (m *Mesh) context() context.Context { return context.WithoutCancel(m.t.Context()) }

func (m *Mesh) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *Mesh) newServer(c Config) *Server {
	m.t.Helper()
	s := &Server{
		m: m, host: m.Loopback(), liveness: c.Liveness,
		dir: filepath.Join(m.t.TempDir(), fmt.Sprintf("server-%d", len(m.Servers))),
	}
	if c.Servers <= 1 {
		// Nobody can take its lead away, however busy the machine is. A cluster has the
		// timing of production.
		s.timing = store.Timing{Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond, Lease: 100 * time.Millisecond}
	}
	m.Servers = append(m.Servers, s)
	return s
}
