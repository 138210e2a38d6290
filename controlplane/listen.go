package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/identity"
)

// handshakeTimeout bounds how long a connection may stay silent before it has
// said who it is.
const handshakeTimeout = 10 * time.Second

// listen takes a port. A port 0 becomes the one that was taken last time, if it
// is free, so that addresses which others know outlive a restart.
func listen(name, address, last string) (net.Listener, error) {
	if host, port, err := net.SplitHostPort(address); err == nil && port == "0" {
		if lastHost, _, err := net.SplitHostPort(last); err == nil && lastHost == host {
			if l, err := net.Listen("tcp", last); err == nil {
				return l, nil
			}
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s port: %w", name, err)
	}
	return l, nil
}

// clusterPort divides the connections of the cluster port by the protocol that
// the TLS handshake agreed on: Raft's own, or gRPC.
type clusterPort struct {
	raft, grpc *branch
	listener   net.Listener
	tls        *tls.Config
	// member says whether a server, known by its certificate, is of the cluster.
	member func(id string) bool
	td     string
	log    *slog.Logger
	wg     sync.WaitGroup // of handshakes under way
}

func newClusterPort(l net.Listener, cfg *tls.Config, td string, log *slog.Logger) *clusterPort {
	return &clusterPort{
		raft: newBranch(l.Addr()), grpc: newBranch(l.Addr()),
		listener: l, tls: cfg, td: td, log: log,
		member: func(string) bool { return true },
	}
}

// Run accepts until ctx ends or the listener fails.
func (p *clusterPort) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.listener.Close() })
	defer stop()
	defer p.wg.Wait()
	defer p.raft.Close()
	defer p.grpc.Close()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("cluster port: %w", err)
		}
		p.wg.Go(func() { p.hand(ctx, conn) })
	}
}

// hand finds out who is there and passes the connection on, or closes it.
func (p *clusterPort) hand(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(raw, p.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		p.log.Debug("cluster handshake refused", "from", raw.RemoteAddr().String(), "error", err)
		raw.Close()
		return
	}
	state := conn.ConnectionState()
	who, ok, err := identity.PeerPrincipal(state, p.td)
	if err != nil || !ok || who.Role != identity.Server || !p.member(who.Name) {
		p.log.Warn("cluster connection refused", "from", raw.RemoteAddr().String(), "who", who.String())
		conn.Close()
		return
	}
	to := p.grpc
	if state.NegotiatedProtocol == identity.ALPNRaft {
		to = p.raft
	}
	to.put(conn)
}

// branch is a net.Listener fed with connections that were accepted elsewhere.
type branch struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{} // closed by Close
}

func newBranch(addr net.Addr) *branch {
	return &branch{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (b *branch) put(c net.Conn) {
	select {
	case b.conns <- c:
	case <-b.done:
		c.Close()
	}
}

func (b *branch) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.done:
		return nil, net.ErrClosed
	}
}

func (b *branch) Close() error {
	b.once.Do(func() { close(b.done) })
	return nil
}

func (b *branch) Addr() net.Addr { return b.addr }

// handshaken are the gRPC credentials of connections whose TLS handshake
// clusterPort has done.
type handshaken struct {
	credentials.TransportCredentials
}

func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, errors.New("not a TLS connection")
	}
	return c, credentials.TLSInfo{
		State:          t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }
