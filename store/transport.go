package store

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
)

const (
	// connections kept open to each peer beside those in use
	maxPool = 3
	// how long a call may make no progress; for snapshots raft scales it by their size
	rpcTimeout = 10 * time.Second
	// what counts as progress when writing
	chunk = 256 << 10
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
	c, err := s.dial(ctx, string(to))
	if err != nil {
		return nil, err
	}
	return &patientConn{Conn: c}, nil
}

// patientConn gives up when nothing has moved for as long as the deadline that was
// set was away, not when the deadline has come. Otherwise an entry that takes a slow
// link or peer longer than that would be sent again and again, for ever.
type patientConn struct {
	net.Conn
	reading, writing atomic.Int64 // nanoseconds without progress; 0: any
}

// SetDeadline is called by raft before each call.
func (c *patientConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is as SetDeadline.
func (c *patientConn) SetReadDeadline(t time.Time) error {
	c.reading.Store(away(t))
	return c.Conn.SetReadDeadline(t)
}

// SetWriteDeadline is as SetDeadline.
func (c *patientConn) SetWriteDeadline(t time.Time) error {
	c.writing.Store(away(t))
	return c.Conn.SetWriteDeadline(t)
}

func away(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return int64(time.Until(t))
}

func (c *patientConn) Read(p []byte) (int, error) {
	if d := c.reading.Load(); d > 0 {
		if err := c.Conn.SetReadDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *patientConn) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) || n == 0 {
		if d := c.writing.Load(); d > 0 {
			if err := c.Conn.SetWriteDeadline(time.Now().Add(time.Duration(d))); err != nil {
				return n, err
			}
		}
		m, err := c.Conn.Write(p[n:min(n+chunk, len(p))])
		n += m
		if err != nil || len(p) == 0 {
			return n, err
		}
	}
	return n, nil
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// transport is raft's own, with three differences.
//
// No heartbeat is handled once it is closed: raft handles heartbeats in the
// goroutine of their connection, also after it has shut down, and writes the terms
// that they bring to a log that is closed by then.
//
// And it remembers which followers have confirmed this server's leadership, by
// their answers to calls sent after a given moment. VerifyLeader of raft also
// counts the answer to a heartbeat that was sent before it was called, which may
// have lain in a buffer while this process was stopped and another was elected.
//
// And it notes the commit index that a leader tells, which may be far beyond the entries
// that come with it.
type transport struct {
	*raft.NetworkTransport
	mu     sync.RWMutex // held for reading while a heartbeat is handled
	closed bool         // guarded by mu

	sent      atomic.Uint64 // calls of AppendEntries so far
	confirmMu sync.Mutex    // guards what follows
	confirmed map[raft.ServerID]confirmation
	changed   chan struct{} // closed and replaced when confirmed changes
	followers map[raft.ServerID]Follower

	now func() time.Time

	// committed is the commit index of the first leader that has told one; 0: none has.
	committed atomic.Uint64
	calls     chan raft.RPC // to raft
	stop      chan struct{}
	handing   sync.WaitGroup // hand
}

// confirmation is a follower's latest answer that this server leads.
type confirmation struct{ term, sent uint64 }

// AppendEntries is called by raft for heartbeats and for entries, from one or two
// goroutines for each follower.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := t.sent.Add(1)
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	if err != nil || resp.Term != args.Term {
		return err
	}
	failpoint.Hit("store.replicate.answered")
	t.confirmMu.Lock()
	defer t.confirmMu.Unlock()
	t.followers[id] = Follower{Heard: t.now(), LastIndex: resp.LastLog}
	if was := t.confirmed[id]; args.Term > was.term || args.Term == was.term && sent > was.sent {
		t.confirmed[id] = confirmation{term: args.Term, sent: sent}
		close(t.changed)
		t.changed = make(chan struct{})
	}
	return nil
}

// confirmations returns how many of the servers have answered in term to a call
// that was sent after the given one, and a channel that is closed when one more may
// have.
func (t *transport) confirmations(servers []raft.ServerID, term, after uint64) (int, <-chan struct{}) {
	t.confirmMu.Lock()
	defer t.confirmMu.Unlock()
	n := 0
	for _, id := range servers {
		if c := t.confirmed[id]; c.term == term && c.sent > after {
			n++
		}
	}
	return n, t.changed
}

// AppendEntriesPipeline is called by raft for each follower that has caught up.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	p.forwarding.Go(p.forward)
	return p, nil
}

// pipeline is raft's own, without its deadlock. raft reads no answer after one that
// refuses or brings a newer term, and may send once more before it notices. In its
// own pipeline that call waits for the reader, for ever: the follower gets heartbeats
// and no entries, and a shutdown waits for the call. Here the pipeline is closed
// behind such an answer, which ends the call.
type pipeline struct {
	raft.AppendPipeline
	answers    chan raft.AppendFuture
	closed     chan struct{}
	once       sync.Once
	forwarding sync.WaitGroup
}

// Consumer is part of raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close is part of raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	p.forwarding.Wait()
	return p.AppendPipeline.Close()
}

func (p *pipeline) forward() {
	for {
		select {
		case answer := <-p.AppendPipeline.Consumer():
			select {
			case p.answers <- answer:
			case <-p.closed:
				return
			}
			if !answer.Response().Success || answer.Response().Term > answer.Request().Term {
				_ = p.AppendPipeline.Close() // It is closed again, and then tells.
				return
			}
		case <-p.closed:
			return
		}
	}
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

// Consumer is part of raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.calls }

// hand hands to raft what peers ask.
func (t *transport) hand() {
	for {
		select {
		case call := <-t.NetworkTransport.Consumer():
			if a, is := call.Command.(*raft.AppendEntriesRequest); is && t.committed.Load() == 0 {
				t.committed.Store(a.LeaderCommitIndex)
			}
			select {
			case t.calls <- call:
			case <-t.stop:
				return
			}
		case <-t.stop:
			return
		}
	}
}

// Close is called by raft when it has shut down. It waits for heartbeats that are
// being handled.
func (t *transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	t.mu.Unlock()
	if first {
		close(t.stop)
	}
	t.handing.Wait()
	return t.NetworkTransport.Close()
}

func newTransport(cfg Config, logger hclog.Logger) *transport {
	inner := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  &streams{Listener: cfg.Listener, address: address(cfg.Address), dial: cfg.Dial},
		MaxPool: maxPool,
		Timeout: rpcTimeout,
		Logger:  logger,
	})
	t := &transport{
		calls: make(chan raft.RPC), stop: make(chan struct{}),
		NetworkTransport: inner, confirmed: make(map[raft.ServerID]confirmation), changed: make(chan struct{}),
		followers: make(map[raft.ServerID]Follower), now: cfg.Now,
	}
	t.handing.Go(t.hand)
	return t
}
