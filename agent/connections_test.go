package agent_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
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

// listener is a client that says nothing after its handshake, or its first word.
type listener struct {
	heard chan struct{} // holds one: something has come since
	ended chan struct{} // closed at the end
}

func listen(t *testing.T, address string, as *tls.Certificate, first string) *listener {
	t.Helper()
	d := &tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*as},
		InsecureSkipVerify: true, //nolint:gosec // who serves is another test's subject
	}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, first)
	check(t, err)
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
	served := ticker(t)
	docs := fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
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
spec: {serves: [{name: feed, port: 7000, protocol: tcp, target: %[1]q, serverFirst: true}, {name: quotes, port: 7001, protocol: tcp, target: %[1]q}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: feed, name: feed}
spec: {from: {workloads: [web, cart]}, to: {services: [prices], ports: [feed]}}
`, served)
	c.Apply(docs)
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
	var cut, kept []*listener
	c.Until("web is let in", func() bool {
		cut = []*listener{listen(t, at, web, "")}
		return cut[0].hears(t)
	})
	for range 5 {
		cut, kept = append(cut, listen(t, at, web, "")), append(kept, listen(t, at, cart, ""))
	}
	for _, l := range append(cut, kept...) {
		if !l.hears(t) {
			t.Fatal("a connection has ended")
		}
	}
	blocked := mesh.Settled(c.Mesh, "a Block", func() (*ztv1.BlockResponse, error) {
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
	t.Logf("6 silent connections cut %v after the Block was committed", time.Since(began).Round(time.Millisecond))
	c.tellsOfCuts(t, blocked.Revision, "spiffe://shop.example/ns/feed/sa/web feed 6")
	for i, l := range kept {
		if !l.hears(t) {
			t.Errorf("connection %d of another caller was cut", i)
		}
	}

	// The clock closes, and no revision.
	ends := time.Now().Add(4 * time.Second).Truncate(time.Second)
	timed := c.Submit(docs + fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: feed, name: for-now}
spec: {from: {workloads: [cart]}, to: {services: [prices], ports: [quotes]}, until: %s}
`, ends.UTC().Format(time.RFC3339)))
	quotes := net.JoinHostPort(cfg.Address, "7001")
	var brief []*listener
	c.Until("cart is let in", func() bool {
		brief = []*listener{listen(t, quotes, cart, "x")}
		return brief[0].hears(t)
	})
	brief = append(brief, listen(t, quotes, cart, "x"))
	if !brief[1].hears(t) {
		t.Fatal("a connection has ended")
	}
	for _, l := range brief {
		select {
		case <-l.ended:
		case <-time.After(mesh.Patience):
			t.Fatalf("a connection goes on whose grant has ended; log:\n%s", r.log.String())
		}
	}
	t.Logf("2 silent connections cut %v after their grant had ended", time.Since(ends).Round(time.Millisecond))
	c.tellsOfCuts(t, timed.Revision, "spiffe://shop.example/ns/feed/sa/cart quotes 2")
	r.stop()
}

// tellsOfCuts waits until the receipt of a revision tells of the connections that have
// ended: "CALLER PORT HOW-MANY".
func (c cluster) tellsOfCuts(t *testing.T, revision uint64, want string) {
	t.Helper()
	var last *ztv1.WatchReceiptResponse
	c.Until("the receipt tells of "+want, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
		defer cancel()
		watch, err := c.Admin().WatchReceipt(ctx, &ztv1.WatchReceiptRequest{Revision: revision})
		check(t, err)
		last, err = watch.Recv()
		check(t, err)
		var told []string
		for _, p := range last.Proxies {
			for _, cut := range p.Cuts {
				told = append(told, fmt.Sprint(cut.Caller, " ", cut.Port, " ", cut.Connections))
			}
		}
		return slices.Equal(told, []string{want})
	})
	t.Logf("receipt of revision %d, of %v: %v", revision, last.Committed.AsTime(), last)
}
