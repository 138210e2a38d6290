package agent_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// ticker runs an application that speaks first, and goes on: it never reads.
func ticker(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
					case <-t.Context().Done():
						return
					}
					if _, err := c.Write([]byte(".")); err != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

// listener is a client that says nothing after its handshake.
type listener struct {
	heard chan struct{} // holds one: something has come since
	ended chan struct{} // closed at the end
}

func listen(t *testing.T, address string, as *tls.Certificate) *listener {
	t.Helper()
	d := &tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*as},
		InsecureSkipVerify: true, //nolint:gosec // who serves is another test's subject
	}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	l := &listener{heard: make(chan struct{}, 1), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		for {
			if _, err := c.Read(make([]byte, 64)); err != nil {
				return
			}
			select {
			case l.heard <- struct{}{}:
			default:
			}
		}
	}()
	return l
}

// hears waits for the next that comes; false if the connection is over.
func (l *listener) hears(t *testing.T) bool {
	t.Helper()
	select {
	case <-l.heard: // may be of before
	default:
	}
	select {
	case <-l.heard:
		return true
	case <-l.ended:
		return false
	case <-time.After(mesh.Patience):
		t.Fatal("nothing comes, and nothing ends")
		return false
	}
}

// TestSilentConnections: connections of which the client only listens are cut when
// their caller may not connect any more, and no others.
func TestSilentConnections(t *testing.T) {
	c := newCluster(t, "1h")
	c.Apply(fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: feed, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: feed, name: cart}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: feed, name: prices}
spec: {serves: [{name: feed, port: 7000, protocol: tcp, target: %q, serverFirst: true}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: feed, name: feed}
spec: {from: {workloads: [web, cart]}, to: {services: [prices]}}
`, ticker(t)))
	cfg := withEnvoy(t, c.config(t, "feed/prices"))
	r := start(t, cfg)
	r.serving(t)
	at := net.JoinHostPort(cfg.Address, "7000")
	c.Until("it listens", func() bool {
		conn, err := net.Dial("tcp", at)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	web, cart := c.EnrolAgent("feed/web").SVID, c.EnrolAgent("feed/cart").SVID
	c.Until("web is let in", func() bool { return listen(t, at, web).hears(t) })
	var cut, kept []*listener
	for range 5 {
		cut, kept = append(cut, listen(t, at, web)), append(kept, listen(t, at, cart))
	}
	for _, l := range append(cut, kept...) {
		if !l.hears(t) {
			t.Fatal("a connection has ended")
		}
	}
	mesh.Settled(c.Mesh, "a Block", func() (*ztv1.BlockResponse, error) {
		return c.Admin().Block(t.Context(), &ztv1.BlockRequest{Namespace: "feed", Name: "stop", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "test"}})
	})
	began := time.Now()
	for i, l := range cut {
		select {
		case <-l.ended:
		case <-time.After(mesh.Patience):
			t.Fatalf("silent connection %d of who is blocked goes on; log:\n%s", i, r.log.String())
		}
	}
	t.Logf("5 silent connections cut %v after the Block was committed", time.Since(began).Round(time.Millisecond))
	for i, l := range kept {
		if !l.hears(t) {
			t.Errorf("connection %d of another caller was cut", i)
		}
	}
	r.stop()
}
