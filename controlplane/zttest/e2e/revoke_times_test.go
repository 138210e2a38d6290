package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// kinds is a workload with a port of each kind, and two callers of all of them.
const kinds = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: cut, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: cut, name: cart}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: cut, name: all}
spec:
  serves:
  - {name: http, port: 8080, protocol: http, target: %q, upgrades: [websocket]}
  - {name: grpc, port: 9090, protocol: grpc, target: %q}
  - {name: raw, port: 9000, protocol: tcp, target: %q}
`

// mayCall are the grants of one caller; rest is more of each.
func mayCall(caller, rest string) string {
	grant := func(name, to string) string {
		return fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: cut, name: %s-%s}
spec: {from: {workloads: [%s]}, to: {services: [all], %s}%s}
`, caller, name, caller, to, rest)
	}
	return grant("http", "ports: [http]") + grant("ws", "ports: [http], upgrades: [websocket]") +
		grant("grpc", "ports: [grpc]") + grant("raw", "ports: [raw]")
}

// upgraded is an application that takes upgrades and sends back what it gets; all else
// it answers.
func upgraded(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		return
	}
	_, _ = io.Copy(c, buffered)
}

// held are the connections of one caller, of every kind, each with what it is used by.
// use returns an error once the connection is over.
type held map[string]func() error

// hold opens one of each kind.
func hold(t *testing.T, in *mesh.Instance, as *tls.Certificate) held {
	t.Helper()
	const host = "all.cut.mesh"
	h := held{}
	c1, err := in.Dial(8080, as, "http/1.1")
	check(t, err)
	t.Cleanup(func() { c1.Close() })
	h["HTTP/1.1"] = func() error {
		a, err := mesh.Exchange(c1, mesh.Request("GET", host, "/"))
		return passed(a, err)
	}
	c2, err := in.DialHTTP2(8080, as)
	check(t, err)
	t.Cleanup(func() { c2.Close() })
	h["HTTP/2"] = func() error {
		a, err := c2.Exchange("GET", host, "/")
		return passed(a, err)
	}
	ws, err := in.Dial(8080, as, "http/1.1")
	check(t, err)
	t.Cleanup(func() { ws.Close() })
	_, err = io.WriteString(ws, "GET /live HTTP/1.1\r\nHost: "+host+"\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	check(t, err)
	answers := bufio.NewReader(ws)
	resp, err := http.ReadResponse(answers, nil)
	check(t, err)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("WebSocket: %d", resp.StatusCode)
	}
	h["WebSocket"] = func() error {
		if _, err := ws.Write([]byte("x\n")); err != nil {
			return err
		}
		_, err := answers.ReadString('\n')
		return err
	}
	raw, err := in.Dial(9000, as)
	check(t, err)
	t.Cleanup(func() { raw.Close() })
	echoed := bufio.NewReader(raw)
	h["tcp"] = func() error {
		if _, err := raw.Write([]byte("x\n")); err != nil {
			return err
		}
		_, err := echoed.ReadString('\n')
		return err
	}
	// A stream on which nothing is said: only HTTP/2's pings are answered.
	conn, err := grpc.NewClient("passthrough:///"+in.At(9090), grpc.WithAuthority("grpc.all.cut.mesh"), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*as},
		InsecureSkipVerify: true, //nolint:gosec // who serves is another test's subject
	})))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "app"})
	check(t, err)
	_, err = stream.Recv()
	check(t, err)
	over := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		over <- err
	}()
	h["gRPC stream, silent"] = func() error {
		select {
		case err := <-over:
			over <- err
			return err
		default:
			return nil
		}
	}
	for kind, use := range h {
		if err := use(); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	return h
}

// kept uses each of them until the returned function is called, which tells which were
// cut.
func (h held) kept(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for kind, use := range h {
		all.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				if err := use(); err != nil {
					t.Errorf("%s of another caller: %v", kind, err)
					return
				}
				<-tick.C
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// cut waits until each of them is over, and tells how long after began that was seen.
func (h held) cut(t *testing.T, cause string, began time.Time) {
	t.Helper()
	type end struct {
		kind string
		at   time.Time
	}
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	ends := make(chan end, len(h))
	for kind, use := range h {
		go func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil && use() == nil {
				<-tick.C
			}
			ends <- end{kind, time.Now()}
		}()
	}
	for range h {
		e := <-ends
		if ctx.Err() != nil {
			t.Fatalf("%s: %s goes on", cause, e.kind)
		}
		t.Logf("%s: %s cut after %v", cause, e.kind, e.at.Sub(began).Round(time.Millisecond))
	}
}

// TestRevocationTimes: a grant that is taken away or ends, a Block and a workload that is
// gone cut the open connections of that caller, of each kind, and nobody else's.
func TestRevocationTimes(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	base := fmt.Sprintf(kinds, m.NewHandler(upgraded), m.NewGRPCApp(), m.NewTCPApp())
	cart := mayCall("cart", "")
	granted := func(rest string) { m.Submit(base + cart + mayCall("web", rest)) }
	granted("")
	in := m.Run("cut/all").Acked()
	asWeb, asCart := m.EnrolAgent("cut/web").SVID, m.EnrolAgent("cut/cart").SVID
	stop := hold(t, in, asCart).kept(t)
	defer stop()
	opened := func() held {
		m.Until("web may call", func() bool { return in.Raw(8080, asWeb, mesh.Request("GET", "all.cut.mesh", "/")).Status == 200 })
		return hold(t, in, asWeb)
	}

	h := opened()
	m.Submit(base + cart)
	h.cut(t, "grant removed", time.Now())

	granted("")
	h = opened()
	block := mesh.Settled(m, "a Block", func() (*ztv1.BlockResponse, error) {
		return m.Admin().Block(t.Context(), &ztv1.BlockRequest{Namespace: "cut", Name: "stop", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "test"}})
	})
	h.cut(t, fmt.Sprintf("Block, revision %d", block.Revision), time.Now())
	mesh.Settled(m, "an end of the Block", func() (*ztv1.UnblockResponse, error) {
		return m.Admin().Unblock(t.Context(), &ztv1.UnblockRequest{Namespace: "cut", Name: "stop"})
	})

	ends := time.Now().Add(4 * time.Second).Truncate(time.Second)
	granted(", until: " + ends.UTC().Format(time.RFC3339))
	h = opened()
	h.cut(t, "grant ended", ends)

	granted("")
	h = opened()
	m.Submit(strings.Replace(base, "name: web}", "name: other}", 1) + cart)
	h.cut(t, "workload deleted", time.Now())
}
