package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/ztmesh/ztmesh/controlplane/api"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// cluster is the other servers: connections to them, what they say of the
// proxies that they hold, and the membership.
type cluster struct {
	self  string
	store *store.Store
	tls   *tls.Config // towards the cluster port of others
	log   *slog.Logger
	now   func() time.Time
	every time.Duration // how often each peer is asked where it stands
	moved *broadcast    // whenever what a peer says, or this server says to them, has changed
	full  atomic.Bool   // the disk here, as the others are told
	// heard is told of which instances a peer has said something, and of which for the first
	// time. It is set before Run.
	heard func(changed, came []string)

	mu    sync.Mutex                  // guards what follows; never held while calling out
	conns map[string]*grpc.ClientConn // by address; nil once closed
	peers map[string]*peer            // by server id
	// differing are the servers whose state is another than it should be, or may be: see
	// watchHashes.
	differing map[string]bool
}

// peer is one other server.
type peer struct {
	address string
	stop    context.CancelFunc

	// guarded by cluster.mu
	reachable bool
	full      bool // its disk
	revision  uint64
	proxies   map[string]*ztv1.HeldProxy // by instance
	cuts      map[cutKey]*ztv1.HeldCuts
	said      *said           // the last report; nil: none yet. It is never changed
	state     *ztv1.StateHash // as it told when something had changed; nil: it has not
}

// newCluster makes what is set of c usable.
func newCluster(c *cluster) *cluster {
	c.moved = newBroadcast()
	c.conns, c.peers = map[string]*grpc.ClientConn{}, map[string]*peer{}
	return c
}

// Run follows the membership and listens to every other server, until ctx ends.
func (c *cluster) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.close()
	return c.store.Watch(ctx, func(st *state.State, changed state.Changes) error {
		if !changed.Servers && len(c.peers) > 0 {
			return nil
		}
		known := map[string]string{}
		for s := range st.Servers() {
			if s.Id != c.self && s.ClusterAddress != "" {
				known[s.Id] = s.ClusterAddress
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for id, p := range c.peers {
			if known[id] != p.address {
				p.stop()
				delete(c.peers, id)
			}
		}
		for id, address := range known {
			if c.peers[id] == nil {
				ctx, stop := context.WithCancel(ctx)
				p := &peer{address: address, stop: stop}
				c.peers[id] = p
				wg.Go(func() { c.listen(ctx, id, p) })
				wg.Go(func() { c.ask(ctx, id, p) })
			}
		}
		return nil
	})
}

// listen keeps what one peer says of its proxies up to date.
func (c *cluster) listen(ctx context.Context, id string, p *peer) {
	const pause = 500 * time.Millisecond
	for ctx.Err() == nil {
		err := c.follow(ctx, p)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		was := p.reachable
		p.reachable, p.proxies, p.state = false, nil, nil
		c.mu.Unlock()
		if was {
			c.log.Warn("server out of reach", "server", id, "address", p.address, "error", err)
			c.moved.send()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (c *cluster) follow(ctx context.Context, p *peer) error {
	conn, err := c.conn(p.address)
	if err != nil {
		return err
	}
	stream, err := ztv1.NewPeerServiceClient(conn).WatchProxies(ctx, &ztv1.WatchProxiesRequest{Deltas: true})
	if err != nil {
		return err
	}
	for {
		said, err := stream.Recv()
		if err != nil {
			return err
		}
		c.mu.Lock()
		p.reachable, p.revision, p.full = true, said.Revision, said.DiskFull
		if said.HashKind == state.HashKind {
			p.state = said.State
		}
		changed, came := p.take(said)
		c.mu.Unlock()
		c.heard(changed, came)
		c.moved.send()
	}
}

// conn is the one connection to an address; made when it is first needed.
func (c *cluster) conn(address string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		return nil, errors.New("this server is stopping")
	}
	if conn := c.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(c.tls)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 2 * time.Second, Timeout: 2 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		return nil, err
	}
	c.conns[address] = conn
	return conn, nil
}

func (c *cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	c.conns = nil
}

// LeaderConn is api.Cluster.
func (c *cluster) LeaderConn() (grpc.ClientConnInterface, error) {
	id, address := c.store.Leader()
	if id == "" || id == c.self {
		return nil, api.ErrNoLeader
	}
	return c.conn(address)
}

// Add is api.Cluster: without a vote, unless it has one.
func (c *cluster) Add(ctx context.Context, id, address string) error {
	return storeError(c.store.AddNonvoter(ctx, id, address))
}

// Promote is api.Cluster.
func (c *cluster) Promote(ctx context.Context, id string) error {
	m, ok := c.store.Member(id)
	if !ok {
		return fmt.Errorf("promote %s: %w", id, store.ErrNoMember)
	}
	return storeError(c.store.AddVoter(ctx, id, m.Address))
}

// Demote is api.Cluster.
func (c *cluster) Demote(ctx context.Context, id string) error {
	return storeError(c.store.DemoteVoter(ctx, id))
}

// Remove is api.Cluster.
func (c *cluster) Remove(ctx context.Context, id string) error {
	return storeError(c.store.RemoveServer(ctx, id))
}

// Transfer is api.Cluster.
func (c *cluster) Transfer(ctx context.Context, id string) error {
	return storeError(c.store.TransferLeadershipTo(ctx, id))
}

// Heard is api.Cluster.
func (c *cluster) Heard(id string, format uint32) { c.store.Heard(id, format) }

// Lowest is api.Cluster.
func (c *cluster) Lowest() uint32 { return c.store.Lowest() }

// Readable is api.Cluster.
func (c *cluster) Readable(f state.Feature) error { return c.store.Readable(f) }

// take notes what a peer says of its proxies, and returns of which, and which of these it
// had not. cluster.mu is held.
func (p *peer) take(said *ztv1.WatchProxiesResponse) (changed, came []string) {
	has := func(i string, h *ztv1.HeldProxy) {
		if p.proxies[i] == nil {
			came = append(came, i)
		}
		p.proxies[i] = h
		changed = append(changed, i)
	}
	if !said.Delta || p.proxies == nil {
		p.proxies, p.cuts = make(map[string]*ztv1.HeldProxy, len(said.Held)), map[cutKey]*ztv1.HeldCuts{}
	}
	for _, c := range said.Cuts {
		if len(c.GetEpisodes()) > 0 {
			p.cuts[cutKey{c.Instance, c.Caller, c.Port}] = c
		}
	}
	if len(p.cuts) > maxCuts {
		dropOldest(p.cuts, maxCuts*3/4)
	}
	for _, x := range said.Proxies { // of an older version: as of its newest revision
		has(x.Instance, &ztv1.HeldProxy{
			Proxy: x, Sent: &ztv1.Progress{Revision: x.SentRevision}, Acked: &ztv1.Progress{Revision: x.AckedRevision},
		})
	}
	for _, h := range said.Held {
		if i := h.GetProxy().GetInstance(); i != "" {
			has(i, h)
		}
	}
	for _, i := range said.Gone {
		delete(p.proxies, i)
	}
	return append(changed, said.Gone...), came
}

func (c *cluster) setDiffering(ids map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.differing = ids
}

// held is the proxy of an instance by the peer that has its newest stream, and that
// peer's revision; nil: none that can be reached.
func (c *cluster) held(instance string) (h *ztv1.HeldProxy, revision uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.peers {
		if o := p.proxies[instance]; o != nil && (h == nil || newer(o, h)) {
			h, revision = o, p.revision
		}
	}
	return h, revision
}

// connected are the instances that the peers hold.
func (c *cluster) connected() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]bool{}
	for _, p := range c.peers {
		for i := range p.proxies {
			out[i] = true
		}
	}
	return out
}

// unreachable are the ids of the peers that are out of reach, sorted.
func (c *cluster) unreachable() (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.peers {
		if !p.reachable {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// addresses are the cluster ports of the other servers, by id.
func (c *cluster) addresses() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]string, len(c.peers))
	for id, p := range c.peers {
		out[id] = p.address
	}
	return out
}

// broadcast tells any number of waiters that something has changed; who is busy
// hears of many changes once.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// next is closed by the next send.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
