package mesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// Server is one server of the control plane. Its addresses outlive a restart.
type Server struct {
	*controlplane.Server        // of the last start
	Dir                  string // its data directory

	m    *Mesh
	host string
	log  *slog.Logger
	conn *grpc.ClientConn // to the admin port; made at the first start

	cancel context.CancelFunc // nil while it does not run
	done   chan error         // receives what Run returned
}

// Start runs the server until the test ends or Stop is called. It returns when
// the server is ready.
func (s *Server) Start() {
	m := s.m
	m.t.Helper()
	cfg := controlplane.Default()
	port := net.JoinHostPort(s.host, "0") // any
	cfg.DataDir, cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = s.Dir, port, port, port, port
	cfg.Logger = s.log
	if m.c.Servers <= 1 {
		// Nobody can take its lead away, however busy the machine is. A cluster has the
		// timing of production.
		cfg.Timing = store.Timing{Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond, Lease: 100 * time.Millisecond}
	}
	// A server that joins votes soon.
	cfg.Autopilot = controlplane.Autopilot{Stable: 50 * time.Millisecond, Check: 100 * time.Millisecond}
	if m.c.Tune != nil {
		m.c.Tune(&cfg)
	}
	server, err := controlplane.New(cfg)
	m.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	s.Server, s.cancel, s.done = server, cancel, done
	m.t.Cleanup(func() {
		if s.Server == server {
			s.Stop()
		}
	})
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	select {
	case <-server.Ready():
	case err := <-done:
		s.cancel = nil
		m.t.Fatalf("server ended: %v", err)
	case <-deadline.C:
		m.t.Fatal("server is not ready")
	}
	if s.conn == nil {
		s.conn = m.Dial(s.Addresses().Admin, m.AdminPair())
	}
}

// Dial connects to a port of a server and shows pair; nil shows nothing. It finds
// a server again that was restarted, and leaves it to the server to say what
// message is too large.
func (m *Mesh) Dial(address string, pair *identity.KeyPair, more ...grpc.DialOption) *grpc.ClientConn {
	m.t.Helper()
	return m.dial(address, credentials.NewTLS(m.ClientTLS(pair)), more...)
}

func (m *Mesh) dial(address string, creds credentials.TransportCredentials, more ...grpc.DialOption) *grpc.ClientConn {
	m.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, append(more, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(128<<20), grpc.MaxCallRecvMsgSize(128<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}))...)
	m.check(err)
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// Stop ends the server and waits for it. Nothing is drained: streams and calls
// under way are cut.
func (s *Server) Stop() {
	s.m.t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	if err := <-s.done; err != nil {
		s.m.t.Errorf("server %s ended with: %v", s.ID(), err)
	}
}

// Ended waits for a server that ends by itself and returns what Run returned.
func (s *Server) Ended() error {
	s.m.t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	select {
	case err := <-s.done:
		s.cancel()
		s.cancel = nil
		return err
	case <-deadline.C:
		s.m.t.Fatalf("server %s goes on", s.ID())
		return nil
	}
}

// Admin is the API of this server. It may be used from several goroutines.
func (s *Server) Admin() ztv1.AdminServiceClient { return ztv1.NewAdminServiceClient(s.conn) }

// Dial connects to the node port from the address that an instance is at.
func (s *Server) Dial(from string, pair *identity.KeyPair) *grpc.ClientConn {
	s.m.t.Helper()
	return s.m.Dial(s.Addresses().Node, pair, localAddress(from))
}

func localAddress(ip string) grpc.DialOption {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", address)
	})
}

// Metric is the sum of the series whose name and labels begin with series, such
// as `zt_serve_pushes_total{type="listener"`, in one reading; those that begin
// with one of except are left out.
func (s *Server) Metric(series string, except ...string) float64 {
	s.m.t.Helper()
	req, err := http.NewRequestWithContext(s.m.context(), http.MethodGet, "http://"+s.Addresses().Local+"/metrics", nil)
	s.m.check(err)
	resp, err := http.DefaultClient.Do(req)
	s.m.check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	s.m.check(err)
	sum := 0.0
	for line := range strings.Lines(string(body)) {
		if slices.ContainsFunc(except, func(e string) bool { return strings.HasPrefix(line, e) }) {
			continue
		}
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && strings.HasPrefix(line, series) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line)[i+1:], 64)
			s.m.check(err)
			sum += v
		}
	}
	return sum
}

// String names the server in messages.
func (s *Server) String() string { return fmt.Sprintf("%s at %s", s.ID(), s.host) }

// Log is a log that is read while it is written.
type Log struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Keys are the key-encryption keys that this server has, in a file beside its data
// directory.
func (s *Server) Keys() identity.Keys {
	s.m.t.Helper()
	source, err := identity.ParseKeySource(controlplane.DefaultKEK(s.Dir))
	s.m.check(err)
	keys, err := source.Read(s.m.context())
	s.m.check(err)
	return keys
}

// Restore makes a server of a backup, in a new data directory, and starts it.
func (m *Mesh) Restore(backup string, keys identity.Keys) *Server {
	m.t.Helper()
	s := m.newServer()
	m.check(identity.SaveKeys(s.Dir+".kek", keys))
	_, err := controlplane.Restore(m.context(), controlplane.RestoreConfig{DataDir: s.Dir, From: backup, Logger: s.log})
	m.check(err)
	s.Start()
	return s
}

// Intermediate is what this server signs with, as it lies in its data directory.
func (s *Server) Intermediate() *identity.KeyPair {
	s.m.t.Helper()
	data, err := identity.OpenDataKeys(filepath.Join(s.Dir, "data-keys.sealed"), s.m.TrustDomain, s.ID(), s.Keys())
	s.m.check(err)
	pair, err := identity.LoadSealedKeyPair(filepath.Join(s.Dir, "intermediate.sealed"), data)
	s.m.check(err)
	return pair
}
