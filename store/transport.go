package store

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// connections kept open to each peer beside those in use
	maxPool = 3
	// for one call; for snapshots raft scales it by their size
	rpcTimeout = 10 * time.Second
)

// streams is a raft.StreamLayer over what the caller has handed in.
type streams struct {
	net.Listener
	address address
	dial    func(ctx context.Context, address string) (net.Conn, error)
}

// Addr is where peers reach this server, which is what they are told.
func (s *streams) Addr() net.Addr { return s.address }

// Dial is called by raft, from any goroutine.
func (s *streams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dial(ctx, string(to))
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// transport is raft's own, save that no heartbeat is handled once it is closed:
// raft handles heartbeats in the goroutine of their connection, also after it has
// shut down, and writes the terms that they bring to a log that is closed by then.
type transport struct {
	*raft.NetworkTransport
	mu     sync.RWMutex // held for reading while a heartbeat is handled
	closed bool         // guarded by mu
}

// SetHeartbeatHandler is called by raft when it starts.
func (t *transport) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.mu.RLock()
		defer t.mu.RUnlock()
		if t.closed {
			rpc.Respond(nil, raft.ErrTransportShutdown)
			return
		}
		handle(rpc)
	})
}

// Close is called by raft when it has shut down. It waits for heartbeats that are
// being handled.
func (t *transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	return t.NetworkTransport.Close()
}

func newTransport(cfg Config, logger hclog.Logger) *transport {
	return &transport{NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &streams{Listener: cfg.Listener, address: address(cfg.Address), dial: cfg.Dial},
		MaxPool: maxPool,
		Timeout: rpcTimeout,
		Logger:  logger,
	})}
}
