package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// clock is the clock of the servers of a mesh; Envoys have that of the machine.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func (c *clock) tune(cfg *controlplane.Config) { cfg.Now = c.now }

// ask sends one request on a new connection.
func ask(in *mesh.Instance, as *caller) mesh.Answer {
	return in.Raw(8080, as.svid, mesh.Request("GET", ledger, "/"))
}

func cut(t *testing.T, what string, o *open) {
	t.Helper()
	for name, err := range o.use() {
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %s is not cut: %v", what, name, err)
		}
	}
	select {
	case <-o.silent:
	case <-time.After(mesh.Patience):
		t.Errorf("%s: a connection that only answers pings is not cut", what)
	}
}

func untouched(t *testing.T, what string, o *open) {
	t.Helper()
	for name, err := range o.use() {
		if err != nil {
			t.Errorf("%s: %s of another caller: %v", what, name, err)
		}
	}
	select {
	case err := <-o.silent:
		t.Errorf("%s: a silent connection of another caller: %v", what, err)
	default:
	}
}

// TestBlock: a Block cuts what its caller has open, at once, and then answers by
// its name; nobody else is touched; what lifts it, by hand or by time, gives the
// caller back what it was granted.
func TestBlock(t *testing.T) {
	clk := &clock{}
	m := mesh.New(t, mesh.Config{Tune: clk.tune})
	m.Apply(fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp()) +
		grantTo("cart", "http", "") + grantTo("cart", "raw", "") + grantTo("web", "http", "") + grantTo("web", "raw", ""))
	in := m.Run("bank/ledger").Acked()
	web, cart := newCaller(m, "bank/web"), newCaller(m, "bank/cart")
	revoked, kept := openAll(t, in, web.svid), openAll(t, in, cart.svid)

	block := func(until *timestamppb.Timestamp) uint64 {
		t.Helper()
		resp := mesh.Settled(m, "a Block", func() (*ztv1.BlockResponse, error) {
			return m.Admin().Block(t.Context(), &ztv1.BlockRequest{
				Namespace: "bank", Name: "stop-web", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "it is compromised", Until: until},
			})
		})
		m.Until("the ledger has ACKed", func() bool { return m.Proxy(in.ID).AckedRevision >= resp.Revision })
		return resp.Revision
	}
	began := time.Now()
	block(nil)
	cut(t, "blocked", revoked)
	t.Logf("cut within %v of the call", time.Since(began))
	untouched(t, "blocked", kept)
	if a := ask(in, web); a.Status != 0 || a.Refused {
		t.Errorf("just blocked, a new connection: %+v", a)
	}
	denied := func(when string) {
		t.Helper()
		m.Until(when+", a new connection is answered by name", func() bool {
			a := ask(in, web)
			if a.Status != 0 && (a.Status != 403 || !strings.Contains(a.Reason, "block:bank/stop-web")) {
				t.Fatalf("%s: %+v", when, a)
			}
			return a.Status == 403
		})
		if a := echo(t, in, 9000, web.svid); a.Status != 0 || a.Refused {
			t.Errorf("%s, a new tcp connection: %+v", when, a)
		}
	}
	clk.advance(time.Minute)
	denied("blocked a minute ago")
	untouched(t, "blocked a minute ago", kept)

	allowed := func(when string) {
		t.Helper()
		m.Until(when+", web may call again", func() bool {
			return ask(in, web).Status == 200 && echo(t, in, 9000, web.svid).Status == 200
		})
		untouched(t, when, kept)
	}
	mesh.Settled(m, "an end of the Block", func() (*ztv1.UnblockResponse, error) {
		return m.Admin().Unblock(t.Context(), &ztv1.UnblockRequest{Namespace: "bank", Name: "stop-web"})
	})
	allowed("unblocked")

	// By time: the document stays, and its server lifts it.
	revoked = openAll(t, in, web.svid)
	block(timestamppb.New(clk.now().Add(time.Hour).Truncate(time.Second)))
	cut(t, "blocked again", revoked)
	clk.advance(59 * time.Minute)
	denied("before it ends")
	clk.advance(time.Minute)
	allowed("ended")
	if _, err := m.Admin().GetDocument(t.Context(), &ztv1.GetDocumentRequest{Kind: "Block", Namespace: "bank", Name: "stop-web"}); err != nil {
		t.Errorf("the Block that has ended: %v", err)
	}
}

// TestUntil: when a grant ends, what its caller has open is cut.
func TestUntil(t *testing.T) {
	clk := &clock{}
	m := mesh.New(t, mesh.Config{Tune: clk.tune})
	base := fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp()) + grantTo("cart", "http", "") + grantTo("cart", "raw", "")
	until := func(port string) string {
		return strings.Replace(grantTo("web", port, ""), "}}\n", fmt.Sprintf("}, until: %q}\n", clk.now().Add(time.Hour).UTC().Format(time.RFC3339)), 1)
	}
	m.Apply(base + until("http") + until("raw"))
	in := m.Run("bank/ledger").Acked()
	web, cart := newCaller(m, "bank/web"), newCaller(m, "bank/cart")
	ends, kept := openAll(t, in, web.svid), openAll(t, in, cart.svid)
	before := listeners(t, in)
	clk.advance(58 * time.Minute)
	untouched(t, "before it ends", ends)
	clk.advance(2 * time.Minute)
	m.Until("gates are closed", func() bool { return len(closedGates(t, in)) == 2 })
	cut(t, "ended", ends)
	untouched(t, "ended", kept)
	if a := ask(in, web); a.Status != 0 || a.Refused {
		t.Errorf("ended, a new connection: %+v", a)
	}
	if after := listeners(t, in); after != before {
		t.Errorf("listeners have changed:\n%s\nbefore:\n%s", after, before)
	}
}

// greeter is an application that speaks first.
func greeter(t *testing.T) (target string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 ready\n")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// TestServerFirstBlock: of a server that speaks first, who is blocked or was never
// granted anything hears no byte; the control plane says who may, at every change.
func TestServerFirstBlock(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: cart}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: mail}
spec: {serves: [{name: smtp, port: 2525, protocol: tcp, target: %q, serverFirst: true}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: bank, name: web-mails}
spec: {from: {workloads: [web]}, to: {services: [mail]}}
`, greeter(t)))
	in := m.Run("bank/mail").Acked()
	web, cart := newCaller(m, "bank/web"), newCaller(m, "bank/cart")
	hears := func(as *caller) string {
		c, err := in.Dial(2525, as.svid)
		if err != nil {
			return ""
		}
		defer c.Close()
		b, _ := io.ReadAll(c) // what came before the end, however it ended
		return string(b)
	}
	m.Until("web is greeted", func() bool { return hears(web) == "220 ready\n" })
	if got := hears(cart); got != "" {
		t.Errorf("who is granted nothing hears %q", got)
	}
	resp := mesh.Settled(m, "a Block", func() (*ztv1.BlockResponse, error) {
		return m.Admin().Block(t.Context(), &ztv1.BlockRequest{Namespace: "bank", Name: "stop", Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "test"}})
	})
	m.Until("mail has ACKed", func() bool { return m.Proxy(in.ID).AckedRevision >= resp.Revision })
	if got := hears(web); got != "" {
		t.Errorf("who is blocked hears %q", got)
	}
	mesh.Settled(m, "an end of the Block", func() (*ztv1.UnblockResponse, error) {
		return m.Admin().Unblock(t.Context(), &ztv1.UnblockRequest{Namespace: "bank", Name: "stop"})
	})
	m.Until("web is greeted again", func() bool { return hears(web) == "220 ready\n" })
}
