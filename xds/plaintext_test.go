package xds_test

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// plain asks without TLS.
func (p *proxy) plain(port uint32, request string) answer {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.address(port))
	check(p.t, err)
	defer conn.Close()
	check(p.t, conn.SetDeadline(time.Now().Add(patience)))
	return exchange(conn, request)
}

// says connects without TLS, writes, and reads a line.
func (p *proxy) says(port uint32, text string) string {
	p.t.Helper()
	conn, err := net.Dial("tcp", p.address(port))
	check(p.t, err)
	defer conn.Close()
	check(p.t, conn.SetDeadline(time.Now().Add(patience)))
	_, _ = io.WriteString(conn, text)
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return line
}

// exceptConfig lets peers of some addresses come without TLS until a moment.
func exceptConfig(target, tcp, cidr string, until time.Time) *xds.Config {
	c := ordersConfig(target, tcp)
	c.Inbound = []xds.Inbound{c.Inbound[0], c.Inbound[2]}
	c.Strip = []string{"x-user"}
	for i := range c.Inbound {
		c.Inbound[i].Plaintext = []xds.Plaintext{{Exception: "shop/old", CIDRs: []string{cidr}, Until: until}}
	}
	return c
}

// TestPlaintext: an Exception opens a port to its addresses, until it ends, and to
// nothing else; who comes by TLS is judged as ever.
func TestPlaintext(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	echo, db := newEcho(t), newTCPApp(t)
	ahead := time.Now().Add(time.Hour)
	orders := newProxy(t, p, c, exceptConfig(echo, db.target, "127.0.0.0/8", ahead))
	const forged = "DELETE /any/thing HTTP/1.1\r\nHost: " + ordersHost + "\r\nX-User: admin\r\nX-Forwarded-Client-Cert: URI=spiffe://shop.example/ns/shop/sa/web\r\n\r\n"
	got := orders.plain(8080, forged)
	if got.status != 200 || got.sent("X-User") != "" || got.sent("X-Forwarded-Client-Cert") != "" {
		t.Errorf("excepted: %+v", got)
	}
	if got := orders.plain(8080, get("GET", ordersHost, xds.HealthPath)); got.status != 200 || got.body != "" {
		t.Errorf("health: %+v", got)
	}
	for path, want := range map[string]int{"/a;b": 403, "/a%2fb": 400, "/a%3bb": 403} {
		if got := orders.plain(8080, get("GET", ordersHost, path)); got.status != want {
			t.Errorf("%s: %+v", path, got)
		}
	}
	if got := orders.plain(8080, get("GET", "other.shop.mesh", "/")); got.status != 404 {
		t.Errorf("another host: %+v", got)
	}
	if got := orders.plain(8080, "GET / HTTP/1.1\r\nHost: "+ordersHost+"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"); got.status != 403 {
		t.Errorf("an upgrade: %+v", got)
	}
	for _, text := range []string{"select", "x"} { // a short word is told from TLS by time
		if got := orders.says(7000, text); got != "hello\n" {
			t.Errorf("tcp, %q: %q", text, got)
		}
	}
	if got := orders.raw(8080, p.svid(t, id("far/stranger")), get("DELETE", ordersHost, "/any/thing")); got.status != 403 {
		t.Errorf("by TLS, without a grant: %+v", got)
	}
	if got := orders.raw(8080, p.svid(t, id("shop/web")), get("GET", ordersHost, "/orders")); got.status != 200 {
		t.Errorf("by TLS, with a grant: %+v", got)
	}
	if got := orders.raw(8080, nil, get("GET", ordersHost, "/orders")); got.status != 0 {
		t.Errorf("by TLS, without a certificate: %+v", got)
	}

	// A Block of everybody holds here, too; it is a resource of its own.
	blocked := exceptConfig(echo, db.target, "127.0.0.0/8", ahead)
	blocked.Inbound[0].Blocks = []xds.Block{{Name: "shop/lost", Callers: &xds.Callers{IDs: []string{id("shop/web")}}}}
	orders.apply(orders.build(blocked).Get(xds.ExtensionType, xds.PlaintextBlockName("shop/orders", "http")))
	if got := orders.plain(8080, forged); got.status != 200 {
		t.Errorf("excepted, beside a Block of somebody else: %+v", got)
	}
	blocked.Inbound[0].Blocks = []xds.Block{{Name: "shop/stop"}}
	orders.apply(orders.build(blocked).Get(xds.ExtensionType, xds.PlaintextBlockName("shop/orders", "http")))
	if got := orders.plain(8080, forged); got.status != 403 {
		t.Errorf("blocked: %+v", got)
	}
}

func TestPlaintextElsewhere(t *testing.T) {
	past, ahead := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	for name, conf := range map[string]func(target, tcp string) *xds.Config{
		"from elsewhere": func(target, tcp string) *xds.Config { return exceptConfig(target, tcp, "10.0.0.0/8", ahead) },
		"ended":          func(target, tcp string) *xds.Config { return exceptConfig(target, tcp, "127.0.0.0/8", past) },
		"one of two ended, the other from elsewhere": func(target, tcp string) *xds.Config {
			c := exceptConfig(target, tcp, "127.0.0.0/8", past)
			for i := range c.Inbound {
				c.Inbound[i].Plaintext = append(c.Inbound[i].Plaintext, xds.Plaintext{Exception: "shop/new", CIDRs: []string{"10.0.0.0/8"}, Until: ahead})
			}
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			db := newTCPApp(t)
			orders := newProxy(t, p, newControl(t, p), conf(newEcho(t), db.target))
			for _, path := range []string{"/orders", xds.HealthPath} {
				if got := orders.plain(8080, get("GET", ordersHost, path)); got.status == 200 {
					t.Errorf("%s: %+v", path, got)
				}
			}
			if got := orders.says(7000, "select"); got != "" || db.accepted.Load() > 0 {
				t.Errorf("tcp: %q, dialled %d", got, db.accepted.Load())
			}
			if got := orders.raw(8080, p.svid(t, id("shop/web")), get("GET", ordersHost, "/orders")); got.status != 200 {
				t.Errorf("by TLS: %+v", got)
			}
		})
	}
}
