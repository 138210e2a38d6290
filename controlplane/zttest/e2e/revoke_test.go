package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// bank is a callee with an HTTP and a tcp port, and two callers of both. The
// grants of each are apart.
const bank = `apiVersion: ztmesh.dev/v1alpha1
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
metadata: {namespace: bank, name: ledger}
spec:
  serves:
  - {name: http, port: 8080, protocol: http, target: %q}
  - {name: raw, port: 9000, protocol: tcp, target: %q}
`

func grantTo(caller, port, rest string) string {
	return fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: bank, name: %s-%s}
spec: {from: {workloads: [%s]}, to: {services: [ledger], ports: [%s]%s}}
`, caller, port, caller, port, rest)
}

const ledger = "ledger.bank.mesh"

// open is what a caller holds open to the ledger.
type open struct {
	http1  net.Conn
	http2  *mesh.HTTP2
	silent chan error // what ended an HTTP/2 connection that only answers pings
	tcp    net.Conn
}

func openAll(t *testing.T, in *mesh.Instance, as *tls.Certificate) *open {
	t.Helper()
	o := &open{silent: make(chan error, 1)}
	var err error
	o.http1, err = in.Dial(8080, as, "http/1.1")
	check(t, err)
	t.Cleanup(func() { o.http1.Close() })
	o.http2, err = in.DialHTTP2(8080, as)
	check(t, err)
	t.Cleanup(func() { o.http2.Close() })
	o.tcp, err = in.Dial(9000, as)
	check(t, err)
	t.Cleanup(func() { o.tcp.Close() })
	silent, err := in.DialHTTP2(8080, as)
	check(t, err)
	_, err = silent.Exchange("GET", ledger, "/")
	check(t, err)
	done := make(chan struct{})
	go func() { defer close(done); o.silent <- silent.Listen() }()
	t.Cleanup(func() { silent.Close(); <-done })
	for name, err := range o.use() {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return o
}

// use sends something over each connection that the caller speaks on.
func (o *open) use() map[string]error {
	out := map[string]error{}
	a, err := mesh.Exchange(o.http1, mesh.Request("GET", ledger, "/"))
	out["HTTP/1.1"] = passed(a, err)
	a, err = o.http2.Exchange("GET", ledger, "/")
	out["HTTP/2"] = passed(a, err)
	_, err = io.WriteString(o.tcp, "x\n")
	if err == nil {
		_, err = bufio.NewReader(o.tcp).ReadString('\n')
	}
	out["tcp"] = err
	return out
}

func passed(a mesh.Answer, err error) error {
	if err == nil && a.Status != 200 {
		err = fmt.Errorf("%d %s", a.Status, a.Reason)
	}
	return err
}

// TestRevocation: without its last grant, a caller's open connections are cut and
// new ones refused, also after a restart of the server; nobody else's are.
func TestRevocation(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	base := fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp())
	cart := grantTo("cart", "http", "") + grantTo("cart", "raw", "")
	web := grantTo("web", "http", "") + grantTo("web", "raw", "")
	m.Apply(base + cart + web)
	in := m.Run("bank/ledger").Acked()
	asWeb, asCart := m.EnrolAgent("bank/web").SVID, m.EnrolAgent("bank/cart").SVID
	revoked, kept := openAll(t, in, asWeb), openAll(t, in, asCart)

	// Its Envoys, the callers', do not run: only the ledger ACKs.
	began := time.Now()
	resp := m.Submit(base + cart)
	m.Until("the ledger has ACKed", func() bool { return m.Proxy(in.ID).AckedRevision >= resp.Revision })
	for name, err := range revoked.use() {
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s is not cut: %v", name, err)
		}
	}
	t.Logf("connections that speak were cut within %v of the apply", time.Since(began))
	select {
	case err := <-revoked.silent:
		t.Logf("one that answers pings was cut within %v: %v", time.Since(began), err)
	case <-time.After(mesh.Patience):
		t.Error("a connection that only answers pings is not cut")
	}
	closed := func(when string) {
		t.Helper()
		if a := in.Raw(8080, asWeb, mesh.Request("GET", ledger, "/")); a.Status != 0 || a.Refused {
			t.Errorf("%s, a new connection: %+v", when, a)
		}
		if a := echo(t, in, 9000, asWeb); a.Status != 0 || a.Refused {
			t.Errorf("%s, a new tcp connection: %+v", when, a)
		}
	}
	others := func(when string) {
		t.Helper()
		for name, err := range kept.use() {
			if err != nil {
				t.Errorf("%s, %s of another caller: %v", when, name, err)
			}
		}
		select {
		case err := <-kept.silent:
			t.Errorf("%s, a silent connection of another caller: %v", when, err)
		default:
		}
	}
	closed("revoked")
	others("revoked")

	cutsInReceipt(t, m, in, resp.Revision)

	gates := closedGates(t, in)
	if len(gates) != 2 {
		t.Errorf("two gates should be closed: %q", gates)
	}
	m.Servers[0].Stop()
	m.Servers[0].Start()
	m.Until("the Envoy is back", func() bool {
		others("restarting") // which also answers the pings of the Envoy
		p := m.Proxy(in.ID)
		return p.Connected && p.AckedRevision >= resp.Revision
	})
	if after := closedGates(t, in); !slices.Equal(after, gates) {
		t.Errorf("the gates after a restart: %q, before: %q", after, gates)
	}
	closed("restarted")
	others("restarted")

	resp = m.Submit(base + cart + web)
	m.Until("web may call again", func() bool {
		return in.Raw(8080, asWeb, mesh.Request("GET", ledger, "/")).Status == 200
	})
	others("granted again")
}

// cutsInReceipt waits until the receipt of a revision tells of each connection that
// openAll has opened as web: three to one port, one to the other.
func cutsInReceipt(t *testing.T, m *mesh.Mesh, in *mesh.Instance, revision uint64) {
	t.Helper()
	var r *ztv1.WatchReceiptResponse
	m.Until("the receipt tells what was cut", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
		defer cancel()
		watch, err := m.Admin().WatchReceipt(ctx, &ztv1.WatchReceiptRequest{Revision: revision})
		check(t, err)
		r, err = watch.Recv()
		check(t, err)
		cut := map[string]uint32{}
		for _, p := range r.Proxies {
			for _, c := range p.Cuts {
				if p.Instance != in.ID || c.Caller != "spiffe://shop.example/ns/bank/sa/web" || c.LastAt.AsTime().Before(r.Committed.AsTime()) {
					t.Fatalf("cut: %v of %v", c, p)
				}
				cut[c.Port] = c.Connections
			}
		}
		return cut["http"] == 3 && cut["raw"] == 1
	})
	for _, p := range r.Proxies {
		for _, c := range p.Cuts {
			t.Logf("receipt: %d connections to %s cut, the last one %v after the commit", c.Connections, c.Port, c.LastAt.AsTime().Sub(r.Committed.AsTime()))
		}
	}
	if r.Closed != 2 || r.NoneOpenAfter.AsTime().Before(time.Now()) {
		t.Errorf("%d pairs are closed, none open after %v", r.Closed, r.NoneOpenAfter.AsTime())
	}
}

// closedGates are the keys of the closed gates that an Envoy holds, sorted.
func closedGates(t *testing.T, in *mesh.Instance) []string {
	t.Helper()
	body, err := in.Get(t.Context(), "/runtime")
	check(t, err)
	var held struct {
		Entries map[string]struct {
			FinalValue string `json:"final_value"`
		}
	}
	check(t, json.Unmarshal([]byte(body), &held))
	var out []string
	for key, e := range held.Entries {
		if e.FinalValue == "0" {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// TestPolicyEdit: edits of grants change no listener, and break no connection that
// stays allowed, of fifty.
func TestPolicyEdit(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	base := fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp())
	m.Apply(base + grantTo("web", "http", ""))
	in := m.Run("bank/ledger").Acked()
	as := m.EnrolAgent("bank/web").SVID
	var conns []net.Conn
	for range 50 {
		c, err := in.Dial(8080, as, "http/1.1")
		check(t, err)
		defer c.Close()
		conns = append(conns, c)
	}
	ask := func(method string, status int) {
		t.Helper()
		for i, c := range conns {
			if a, err := mesh.Exchange(c, mesh.Request(method, ledger, "/a")); err != nil || a.Status != status {
				t.Fatalf("connection %d: %s: %+v, %v", i, method, a, err)
			}
		}
	}
	ask("GET", 200)
	ask("POST", 200)
	before := listeners(t, in)
	for _, edit := range []struct {
		grants    string
		get, post int
	}{
		{grantTo("web", "http", ", methods: [GET]"), 200, 403},
		{grantTo("web", "http", ", paths: [/a]") + grantTo("cart", "http", ""), 200, 200},
		{grantTo("web", "http", ", methods: [POST], paths: [/a/**]"), 403, 200},
		{grantTo("web", "http", ""), 200, 200},
	} {
		resp := m.Submit(base + edit.grants)
		m.Until("the ledger has ACKed", func() bool { return m.Proxy(in.ID).AckedRevision >= resp.Revision })
		ask("GET", edit.get)
		ask("POST", edit.post)
	}
	if after := listeners(t, in); after != before {
		t.Errorf("listeners have changed:\n%s\nbefore:\n%s", after, before)
	}
}

// listeners is what an Envoy holds of them, with versions and times, and how
// often they have changed.
func listeners(t *testing.T, in *mesh.Instance) string {
	t.Helper()
	body, err := in.Get(t.Context(), "/config_dump?resource=dynamic_listeners")
	check(t, err)
	return body + told(t, in)
}
