package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// patience bounds every wait of a test; none needs more than a second or two.
const patience = 60 * time.Second

// fast is for several servers, on a machine that has other things to do.
var fast = Timing{
	Heartbeat: time.Second, Election: time.Second, Lease: 900 * time.Millisecond, Commit: 5 * time.Millisecond,
	SnapshotInterval: time.Hour, SnapshotEntries: 1 << 30, TrailingEntries: 8,
}

// network is how the servers of a test reach one another: by name, whatever the
// address of the day, unless they are cut off.
type network struct {
	listen func() (net.Listener, error)
	dial   func(ctx context.Context, to net.Addr) (net.Conn, error)

	mu    sync.Mutex // guards what follows
	at    map[string]net.Addr
	cut   map[string]bool
	conns map[string]map[net.Conn]bool // by each of their two ends
}

func loopback() *network {
	return newNetwork(func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		func(ctx context.Context, to net.Addr) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		})
}

func newNetwork(listen func() (net.Listener, error), dial func(context.Context, net.Addr) (net.Conn, error)) *network {
	return &network{listen: listen, dial: dial, at: map[string]net.Addr{}, cut: map[string]bool{}, conns: map[string]map[net.Conn]bool{}}
}

func (n *network) dialFrom(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		n.mu.Lock()
		at, cut := n.at[to], n.cut[from] || n.cut[to]
		n.mu.Unlock()
		if at == nil || cut {
			return nil, fmt.Errorf("no route from %s to %s", from, to)
		}
		c, err := n.dial(ctx, at)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[from] || n.cut[to] { // meanwhile
			return nil, errors.Join(fmt.Errorf("no route from %s to %s", from, to), c.Close())
		}
		for _, end := range []string{from, to} {
			if n.conns[end] == nil {
				n.conns[end] = map[net.Conn]bool{}
			}
			n.conns[end][c] = true
		}
		return c, nil
	}
}

// isolate cuts a server off, with the connections that it has, or lets it back.
func (n *network) isolate(name string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[name] = cut
	for c := range n.conns[name] {
		_ = c.Close() // A connection that is closed already is cut, too.
	}
	n.conns[name] = nil
}

// testCluster is a number of servers, some of which run.
type testCluster struct {
	t       testing.TB
	net     *network
	dir     string
	timing  Timing
	now     func() time.Time
	servers map[string]*Store
	ciphers map[string]Cipher // each server has its own, for ever
}

func newTestCluster(t testing.TB, n *network) *testCluster {
	c := &testCluster{
		t: t, net: n, dir: t.TempDir(), timing: fast, now: time.Now,
		servers: map[string]*Store{}, ciphers: map[string]Cipher{},
	}
	t.Cleanup(c.close)
	return c
}

// newCipher is the one of production.
func newCipher(t testing.TB) Cipher {
	t.Helper()
	keys, err := identity.NewDataKeys("", "shop.example", "", identity.NewKEK())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (c *testCluster) close() {
	for name := range c.servers {
		c.kill(name)
	}
}

func (c *testCluster) config(name string) Config {
	c.t.Helper()
	l, err := c.net.listen()
	if err != nil {
		c.t.Fatal(err)
	}
	c.net.mu.Lock()
	c.net.at[name] = l.Addr()
	c.net.mu.Unlock()
	if c.ciphers[name] == nil {
		c.ciphers[name] = newCipher(c.t)
	}
	return Config{
		ID: name, Dir: filepath.Join(c.dir, name), Cipher: c.ciphers[name], Bootstrap: name == "a", Address: name, Listener: l,
		Dial: c.net.dialFrom(name), Logger: slog.New(slog.DiscardHandler), Now: c.now, Timing: c.timing,
	}
}

// start opens a server, again or for the first time.
func (c *testCluster) start(name string) *Store {
	c.t.Helper()
	s, err := Open(c.config(name))
	if err != nil {
		c.t.Fatal(err)
	}
	c.servers[name] = s
	return s
}

// kill stops a server without a word to the others.
func (c *testCluster) kill(name string) {
	c.t.Helper()
	s := c.servers[name]
	delete(c.servers, name)
	c.net.isolate(name, true)
	if err := s.stop(); err != nil {
		c.t.Errorf("stop %s: %v", name, err)
	}
	c.net.isolate(name, false)
}

// begin starts the named servers as one initialised cluster, led by the first.
func (c *testCluster) begin(names ...string) *Store {
	c.t.Helper()
	ctx := c.ctx()
	if len(names) == 1 { // which needs nobody's vote
		c.timing.Heartbeat, c.timing.Election, c.timing.Lease = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	}
	first := c.start(names[0])
	waitLeads(c.t, first)
	if _, err := first.Propose(ctx, initEntry()); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range names[1:] {
		c.start(name)
		if err := first.AddVoter(ctx, name, name); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, name := range names[1:] { // until each knows all of the others
		waitApplied(c.t, c.servers[name], first.raft.LastIndex())
	}
	return first
}

func (c *testCluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c.t.Cleanup(cancel)
	return ctx
}

// leader waits until one of the servers that run leads, and returns it.
func (c *testCluster) leader() *Store {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	found := make(chan *Store, len(c.servers))
	var wg sync.WaitGroup
	for _, s := range c.servers {
		wg.Go(func() {
			err := s.WatchLeader(ctx, func(leads bool, _ uint64) error {
				if leads {
					return errDone
				}
				return nil
			})
			if errors.Is(err, errDone) {
				found <- s
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	select {
	case s := <-found:
		return s
	case <-ctx.Done():
		c.t.Fatal("nobody leads")
		return nil
	}
}

var errDone = errors.New("done")

func waitLeads(t testing.TB, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := s.WatchLeader(ctx, func(leads bool, _ uint64) error {
		if leads {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) {
		t.Fatalf("%s does not lead: %v", s.cfg.ID, err)
	}
}

// waitIndex waits until the state of a server is at an index.
func waitIndex(t testing.TB, s *Store, index uint64) {
	t.Helper()
	wait(t, s, func(uint64) bool { return s.State().Index() >= index })
}

// waitApplied waits until a server has applied an entry, of any type.
func waitApplied(t testing.TB, s *Store, index uint64) {
	t.Helper()
	wait(t, s, func(applied uint64) bool { return applied >= index })
}

func wait(t testing.TB, s *Store, until func(applied uint64) bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		applied, advanced := s.fsm.progress()
		if until(applied) {
			return
		}
		select {
		case <-advanced:
		case <-timeout:
			t.Fatalf("%s stays at %d", s.cfg.ID, applied)
		}
	}
}

// waitDocuments waits until a server has so many documents more.
func waitDocuments(t testing.TB, s *Store, more int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	want := s.State().NumDocuments() + more
	err := s.Watch(ctx, func(now *state.State, _ state.Changes) error {
		if now.NumDocuments() >= want {
			return errDone
		}
		return nil
	})
	if !errors.Is(err, errDone) {
		t.Fatalf("%s has %d documents, not %d: %v", s.cfg.ID, s.State().NumDocuments(), want, err)
	}
}

func initEntry() *logv1.Entry {
	return &logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c1", Admin: &logv1.Admin{Name: "root", Role: "admin"},
	}}}
}

// putEntry puts one document, validated at a revision. Its name is its key.
func putEntry(at uint64, name, content string) *logv1.Entry {
	return &logv1.Entry{
		IdempotencyKey: name, OperationHash: []byte(name),
		Op: &logv1.Entry_Apply{Apply: &logv1.Apply{ValidatedAt: at, Puts: []*logv1.Put{
			{Key: &logv1.Key{Kind: "Grant", Namespace: "shop", Name: name}, Document: []byte(content)},
		}}},
	}
}

// put proposes a document, validating again as often as others come first.
func put(ctx context.Context, s *Store, name, content string) (state.Result, error) {
	for {
		r, err := s.Propose(ctx, putEntry(s.State().Revision(), name, content))
		if err != nil || !errors.Is(r.Err, state.ErrRevalidate) {
			return r, err
		}
	}
}

func mustPut(t testing.TB, s *Store, name, content string) state.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := put(ctx, s, name, content)
	if err != nil || r.Err != nil {
		t.Fatalf("put %s: %v, %v", name, err, r.Err)
	}
	return r
}

func documentAt(s *state.State, name string) (state.Document, bool) {
	return s.Document(state.Key{Kind: "Grant", Namespace: "shop", Name: name})
}
