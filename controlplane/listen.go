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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/identity"
)

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
// the TLS handshake agreed on: Raft's own, or gRPC. It keeps those of members
// only, also after they were accepted.
type clusterPort struct {
	raft, grpc *branch
	// gone gets the gRPC connections of those who are not of the cluster: they are to be
	// told.
	gone     *branch
	listener net.Listener
	tls      *tls.Config
	td       string
	// member says whether a server, known by its certificate, is of the cluster.
	member func(id string) bool
	// refused is told of each connection that is refused for who the other side is.
	refused   func(who, port string, from net.Addr, code codes.Code, reason string)
	handshake time.Duration
	log       *slog.Logger
	wg        sync.WaitGroup // of handshakes under way

	mu   sync.Mutex             // guards open
	open map[*peerConn]struct{} // passed on, and not closed yet
}

// peerConn is a connection whose other end is known.
type peerConn struct {
	*tls.Conn
	server string // its id
	// stranger: it was no member when it came. Guarded by port.mu, and not written later.
	stranger bool
	port     *clusterPort
}

func (c *peerConn) Close() error {
	c.port.mu.Lock()
	delete(c.port.open, c)
	c.port.mu.Unlock()
	return c.Conn.Close()
}

// Run accepts until ctx ends or the listener fails.
func (p *clusterPort) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.listener.Close() })
	defer stop()
	defer p.wg.Wait()
	defer p.raft.Close()
	defer p.grpc.Close()
	defer p.gone.Close()
	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	for {
		conn, err := p.listener.Accept()
		switch {
		case err == nil:
			pause = minPause
			p.wg.Go(func() { p.hand(ctx, conn) })
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("cluster port: %w", err)
		default: // out of file descriptors, or the peer has gone already
			p.log.Warn("cluster connection not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// hand finds out who is there and passes the connection on, or closes it.
func (p *clusterPort) hand(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, p.handshake)
	defer cancel()
	conn := &peerConn{Conn: tls.Server(raw, p.tls), port: p}
	if err := conn.HandshakeContext(ctx); err != nil {
		p.log.Debug("cluster handshake refused", "from", raw.RemoteAddr().String(), "error", err)
		if tellsWho(err) {
			p.refused("nobody", "cluster port", raw.RemoteAddr(), codes.Unauthenticated, err.Error())
		}
		raw.Close()
		return
	}
	state := conn.ConnectionState()
	who, ok, err := identity.PeerPrincipal(state, p.td)
	if err != nil || !ok || who.Role != identity.Server {
		p.log.Warn("cluster connection refused", "from", raw.RemoteAddr().String(), "who", who.String())
		p.refused(p.named(who), "cluster port", raw.RemoteAddr(), codes.PermissionDenied, "not a server's certificate")
		conn.Close()
		return
	}
	conn.server = who.Name
	p.mu.Lock()
	conn.stranger = !p.member(who.Name)
	p.open[conn] = struct{}{} // from now on cut sees it
	p.mu.Unlock()
	isRaft := state.NegotiatedProtocol == identity.ALPNRaft
	switch {
	case conn.stranger && isRaft:
		p.log.Warn("cluster connection refused", "from", raw.RemoteAddr().String(), "who", who.String())
		p.refused(p.named(who), "cluster port", raw.RemoteAddr(), codes.PermissionDenied, "not of this cluster")
		conn.Close()
	case conn.stranger:
		p.gone.put(conn)
	case isRaft:
		p.raft.put(conn)
	default:
		p.grpc.put(conn)
	}
}

// named is who the other side is, by its certificate.
func (p *clusterPort) named(who identity.Principal) string {
	if who.Name == "" {
		return "nobody"
	}
	return "spiffe://control." + p.td + "/" + who.String()
}

// cut closes the connections of servers that are not members any more, and of those
// that have become one since: who has just joined may be known here later than it
// calls, and is to call again.
func (p *clusterPort) cut() {
	p.mu.Lock()
	var stale []*peerConn
	for c := range p.open {
		if p.member(c.server) == c.stranger {
			stale = append(stale, c)
		}
	}
	p.mu.Unlock()
	for _, c := range stale {
		if !c.stranger {
			p.log.Info("connection of a removed server cut", "server", c.server)
		}
		c.NetConn().Close() // without a word: it may not be listening
	}
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
	t, ok := c.(*peerConn)
	if !ok {
		return nil, nil, errors.New("not a connection of the cluster port")
	}
	return c, credentials.TLSInfo{
		State:          t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }
