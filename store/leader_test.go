package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a network in memory, for tests in a bubble of fake time.
func pipes() *network {
	listeners := map[string]*pipeListener{}
	var n *network
	n = newNetwork(func() (net.Listener, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		l := &pipeListener{name: fmt.Sprint("pipe", len(listeners)), conns: make(chan net.Conn), closed: make(chan struct{})}
		listeners[l.name] = l
		return l, nil
	}, func(ctx context.Context, to net.Addr) (net.Conn, error) {
		n.mu.Lock()
		l := listeners[to.String()]
		n.mu.Unlock()
		here, there := net.Pipe()
		select {
		case l.conns <- there:
			return here, nil
		case <-l.closed:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	return n
}

type pipeListener struct {
	name   string
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.closed)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return address(l.name) }

// bubble runs a test with three servers in fake time: minutes cost little.
func bubble(t *testing.T, run func(t *testing.T, c *testCluster, a *Store)) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, pipes())
		c.timing.Heartbeat, c.timing.Election, c.timing.Lease = time.Second, time.Second, 500*time.Millisecond
		c.timing.Commit = 50 * time.Millisecond
		run(t, c, c.begin("a", "b", "c"))
		c.close()
	})
}

// TestDeposedLeaderDoesNotRead: a leader that is cut off refuses linearizable
// reads, however soon after it was, while the others go on; it never answers from
// a state that lacks what they have acknowledged.
func TestDeposedLeaderDoesNotRead(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		mustPut(t, a, "g", "x")
		if err := a.Barrier(c.ctx()); err != nil {
			t.Fatalf("with all three: %v", err)
		}
		c.net.isolate("a", true)
		if err := a.Barrier(c.ctx()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("cut off: %v", err)
		}
		delete(c.servers, "a")
		next := c.leader()
		mustPut(t, next, "h", "x")
		if err := a.Barrier(c.ctx()); !errors.Is(err, ErrNotLeader) || a.IsLeader() {
			t.Errorf("deposed: %v", err)
		}
		if _, err := put(c.ctx(), a, "i", "x"); !errors.Is(err, ErrNotLeader) {
			t.Errorf("propose: %v", err)
		}
		c.net.isolate("a", false)
		c.servers["a"] = a
		waitIndex(t, a, next.State().Index())
		if since := time.Since(a.LastContact()); since > 2*time.Second {
			t.Errorf("a has heard its leader %v ago", since)
		}
	})
}

// TestNewLeaderHasAll: whoever is told that it leads has in its state all that was
// acknowledged before, and so has a read after Barrier.
func TestNewLeaderHasAll(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		leader := a
		for i := range 6 {
			name := fmt.Sprint("g", i)
			mustPut(t, leader, name, "x")
			if err := leader.TransferLeadership(c.ctx()); err != nil {
				t.Fatal(err)
			}
			was := leader.cfg.ID
			for leader = c.leader(); leader.cfg.ID == was; leader = c.leader() {
				time.Sleep(time.Millisecond) // of the bubble
			}
			if _, ok := documentAt(leader.State(), name); !ok {
				t.Errorf("%s leads and does not have what %s has acknowledged", leader.cfg.ID, was)
			}
			if err := leader.Barrier(c.ctx()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestIsolatedFollowerDisturbsNobody: minutes alone raises no term (pre-vote), and
// the leader still leads when the follower is back.
func TestIsolatedFollowerDisturbsNobody(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		term := a.raft.CurrentTerm()
		c.net.isolate("c", true)
		time.Sleep(5 * time.Minute) // of the bubble
		mustPut(t, a, "g", "x")
		if since := time.Since(c.servers["c"].LastContact()); since < 5*time.Minute {
			t.Errorf("c has heard its leader %v ago", since)
		}
		c.net.isolate("c", false)
		waitIndex(t, c.servers["c"], a.State().Index())
		time.Sleep(10 * time.Second)
		if !a.IsLeader() || a.raft.CurrentTerm() != term {
			t.Errorf("leads %v, term %d, was %d", a.IsLeader(), a.raft.CurrentTerm(), term)
		}
	})
}

func TestWatchLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		type told struct {
			leads bool
			term  uint64
		}
		var all []told
		ctx, cancel := context.WithCancel(c.ctx())
		done := make(chan error)
		go func() {
			done <- a.WatchLeader(ctx, func(leads bool, term uint64) error {
				all = append(all, told{leads, term})
				return nil
			})
		}()
		synctest.Wait()
		if err := a.TransferLeadership(c.ctx()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // of the bubble
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if len(all) != 2 || !all[0].leads || all[0].term == 0 || all[1] != (told{}) {
			t.Errorf("told %v", all)
		}
	})
}

func TestMembership(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		ctx := c.ctx()
		index := a.raft.LastIndex()
		if err := a.AddVoter(ctx, "b", "b"); err != nil || a.raft.LastIndex() != index {
			t.Errorf("add what is there: %v, and %d entries", err, a.raft.LastIndex()-index)
		}
		// b moves: it listens under another name from now on.
		c.net.mu.Lock()
		c.net.at["b2"] = c.net.at["b"]
		delete(c.net.at, "b")
		c.net.mu.Unlock()
		if err := a.AddVoter(ctx, "b", "b2"); err != nil {
			t.Fatal(err)
		}
		mustPut(t, a, "f", "x")
		c.net.isolate("b", true) // ends the connections by the old name
		c.net.isolate("b", false)
		mustPut(t, a, "g", "x")
		waitIndex(t, c.servers["b"], a.State().Index())

		if err := a.RemoveServer(ctx, "c"); err != nil {
			t.Fatal(err)
		}
		want := []Member{{ID: "a", Address: "a", Voter: true, Leader: true}, {ID: "b", Address: "b2", Voter: true}}
		if got := a.Members(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("members %v, want %v", got, want)
		}
		if err := a.RemoveServer(ctx, "nobody"); err != nil {
			t.Errorf("remove nobody: %v", err)
		}
		// The leader removes itself, and the last one leads.
		if err := a.RemoveServer(ctx, "a"); err != nil {
			t.Errorf("remove the leader: %v", err)
		}
		if err := a.Wait(ctx); !errors.Is(err, ErrRemoved) {
			t.Errorf("wait: %v", err)
		}
		b := c.servers["b"]
		waitLeads(t, b)
		mustPut(t, b, "h", "x")
	})
}

// TestSlowLink: an entry that takes a link much longer than a call may take gets
// there all the same, since it moves.
func TestSlowLink(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		c.kill("c")
		dial := c.net.dial
		c.net.dial = func(ctx context.Context, to net.Addr) (net.Conn, error) {
			conn, err := dial(ctx, to)
			return &slowConn{conn}, err
		}
		c.net.isolate("b", true) // its connections are slow from now on
		c.net.isolate("b", false)
		start := time.Now()
		mustPut(t, a, "big", strings.Repeat("x", 32*chunk))
		if took := time.Since(start); took < 3*rpcTimeout || took > 4*rpcTimeout {
			t.Errorf("took %v, once through the link takes 32 s", took)
		}
	})
}

// slowConn takes a second for each chunk.
type slowConn struct{ net.Conn }

func (c *slowConn) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / chunk) // of the bubble
	return c.Conn.Write(p)
}

// TestCloseHandsOver: with the leader closed in order, the others need no election
// timeout.
func TestCloseHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, c *testCluster, a *Store) {
		delete(c.servers, "a")
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		mustPut(t, c.leader(), "g", "x")
		if took := time.Since(start); took >= c.timing.Heartbeat {
			t.Errorf("took %v", took)
		}
	})
}
