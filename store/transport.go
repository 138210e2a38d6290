package store

import (
	"context"
	"net"
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

func newTransport(cfg Config, logger hclog.Logger) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &streams{Listener: cfg.Listener, address: address(cfg.Address), dial: cfg.Dial},
		MaxPool: maxPool,
		Timeout: rpcTimeout,
		Logger:  logger,
	})
}
