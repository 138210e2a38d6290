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
	*controlplane.Server // of the last start

	m         *Mesh
	dir, host string
	timing    store.Timing
	liveness  controlplane.Liveness
	conn      *grpc.ClientConn // to the admin port; made at the first start

	cancel context.CancelFunc // nil while it does not run
	done   chan error         // receives what Run returned
}

// Start runs the server until the test ends or Stop is called. It returns when
// the server is ready.
func (s *Server) Start() {
	m := s.m
	m.t.Helper()
	log := &lockedBuffer{}
	cfg := controlplane.Default()
	port := net.JoinHostPort(s.host, "0") // any
	cfg.DataDir, cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = s.dir, port, port, port, port
	cfg.Timing = s.timing
	cfg.Liveness = s.liveness
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
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
		if m.t.Failed() {
			m.t.Logf("log of server %s at %s:\n%s", server.ID(), s.host, log)
		}
	})
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	select {
	case <-server.Ready():
	case err := <-done:
		s.cancel = nil
		m.t.Fatalf("server ended: %v\n%s", err, log)
	case <-deadline.C:
		m.t.Fatalf("server is not ready\n%s", log)
	}
	if s.conn == nil {
		s.dialAdmin()
	}
}

func (s *Server) dialAdmin() {
	m := s.m
	m.t.Helper()
	pair, err := identity.ParseKeyPair([]byte(string(m.admin.Key) + m.admin.Certificate))
	m.check(err)
	s.conn, err = grpc.NewClient("passthrough:///"+s.Addresses().Admin,
		grpc.WithTransportCredentials(credentials.NewTLS(m.ClientTLS(pair))), fastReconnect())
	m.check(err)
	m.t.Cleanup(func() { s.conn.Close() })
}

// fastReconnect lets a client find a server that was restarted.
func fastReconnect() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond},
		MinConnectTimeout: 5 * time.Second,
	})
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

// Admin is the API of this server. It may be used from several goroutines.
func (s *Server) Admin() ztv1.AdminServiceClient { return ztv1.NewAdminServiceClient(s.conn) }

// Dial connects to the node port from the address that an instance is at.
func (s *Server) Dial(from string, pair *identity.KeyPair) *grpc.ClientConn {
	s.m.t.Helper()
	return s.m.dialNode(s.Addresses().Node, from, credentials.NewTLS(s.m.ClientTLS(pair)))
}

func (m *Mesh) dialNode(address, from string, creds credentials.TransportCredentials) *grpc.ClientConn {
	m.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), fastReconnect(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	m.check(err)
	m.t.Cleanup(func() { conn.Close() })
	return conn
}

// Metric is the sum of the series whose name and labels begin with series, such
// as `zt_serve_pushes_total{type="listener"`.
func (s *Server) Metric(series string) float64 {
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
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && strings.HasPrefix(line, series) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line)[i+1:], 64)
			s.m.check(err)
			sum += v
		}
	}
	return sum
}

// path of a file in the data directory.
func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// String names the server in messages.
func (s *Server) String() string { return fmt.Sprintf("%s at %s", s.ID(), s.host) }

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
