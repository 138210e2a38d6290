package xds_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// TestUpgradeRules: a WebSocket needs a rule that speaks of it, and such a rule allows
// nothing else; over HTTP/1.1 and as an extended CONNECT of HTTP/2.
func TestUpgradeRules(t *testing.T) {
	rule := func(name, path string, upgrades ...string) xds.Rule {
		return xds.Rule{Grant: "shop/" + name, Callers: byWeb(), Methods: []string{"GET"}, Upgrades: upgrades, Paths: []xds.Path{{Value: path, Kind: xds.Exact}}}
	}
	app := newUpgradeApp(t)
	conf := judged(app, rule("plain", "/plain"), rule("ws", "/ws", "websocket"), rule("both", "/both"), rule("both-ws", "/both", "websocket"))
	conf.Inbound[0].Upgrades = []string{"websocket"}
	var cases []judgeCase
	add := func(want, method, path string, headers ...string) {
		cases = append(cases, judgeCase{name: fmt.Sprint(method, path, headers), request: ask(method, path, headers...), want: want})
	}
	for _, spelled := range []string{"websocket", "WebSocket", "WEBSOCKET"} {
		add("101", "GET", "/ws", "Upgrade: "+spelled, "Connection: Upgrade")
		add("101", "GET", "/both", "Connection: keep-alive, upgrade", "Upgrade: "+spelled)
		add("default-deny", "GET", "/plain", "Upgrade: "+spelled, "Connection: Upgrade")
		add("default-deny", "POST", "/ws", "Upgrade: "+spelled, "Connection: Upgrade")
	}
	add("200", "GET", "/plain")
	add("200", "GET", "/both")
	add("default-deny", "GET", "/ws")
	// Without Connection it is no upgrade, and is not passed on as one.
	add("200", "GET", "/plain", "Upgrade: websocket")
	add("default-deny", "GET", "/ws", "Upgrade: websocket")
	// Envoy knows h2c and takes no notice of it: the request is as if it had not
	// asked (RFC 9113, section 3.1, has no upgrade to h2c either).
	add("200", "GET", "/plain", "Upgrade: h2c", "Connection: Upgrade")
	add("default-deny", "GET", "/ws", "Upgrade: h2c", "Connection: Upgrade")
	for _, other := range []string{"websocket, h2c", "h2c, websocket", "spdy/3.1", "websocketx"} {
		add("upgrade", "GET", "/plain", "Upgrade: "+other, "Connection: Upgrade")
		add("upgrade", "GET", "/ws", "Upgrade: "+other, "Connection: Upgrade")
	}
	add("form", "GET", "/w%2573", "Upgrade: websocket", "Connection: Upgrade")
	orders := judgeAll(t, conf, cases)

	web := orders.p.svid(t, id("shop/web"))
	for _, tt := range []struct{ path, protocol, want string }{
		{"/ws", "websocket", "200"},
		{"/both", "websocket", "200"},
		{"/ws", "WebSocket", "200"},
		{"/plain", "websocket", "403"},
		{"/plain", "connect-udp", "404"}, // no route is for it
		{"/ws", "connect-udp", "404"},
		{"/plain", "", "403"},
		{"/ws", "", "403"},
	} {
		if got := orders.extendedConnect(web, tt.path, tt.protocol); got != tt.want {
			t.Errorf("extended CONNECT %s to %s: got %s, want %s", tt.protocol, tt.path, got, tt.want)
		}
	}
}

// TestNoUpgrades: a port that lists none refuses them all, whatever its rules.
func TestNoUpgrades(t *testing.T) {
	conf := judged(newUpgradeApp(t), xds.Rule{Grant: "shop/all", Callers: byWeb()})
	orders := judgeAll(t, conf, []judgeCase{
		{name: "websocket", request: ask("GET", "/x", "Upgrade: websocket", "Connection: Upgrade"), want: "upgrade"},
		{name: "h2c", request: ask("GET", "/x", "Upgrade: h2c", "Connection: Upgrade"), want: "200"},
		{name: "none", request: ask("GET", "/x"), want: "200"},
	})
	if got := orders.extendedConnect(orders.p.svid(t, id("shop/web")), "/x", "websocket"); got == "200" {
		t.Errorf("extended CONNECT: got %s", got)
	}
}

// newUpgradeApp agrees to every upgrade.
func newUpgradeApp(t *testing.T) (target string) {
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
			go func() {
				defer c.Close()
				var head strings.Builder
				for r := bufio.NewReader(c); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					head.WriteString(line)
				}
				if strings.Contains(strings.ToLower(head.String()), "\r\nupgrade: ") {
					_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
					_, _ = io.Copy(io.Discard, c)
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// extendedConnect is a CONNECT with that :protocol (RFC 8441); without one it is a
// plain CONNECT. It returns the status, or "refused" if the stream or the
// connection was ended.
func (p *proxy) extendedConnect(pair *identity.KeyPair, path, protocol string) string {
	p.t.Helper()
	c, err := p.dial(8080, pair, "h2")
	check(p.t, err)
	defer c.Close()
	_, err = io.WriteString(c, http2.ClientPreface)
	check(p.t, err)
	f := http2.NewFramer(c, c)
	check(p.t, f.WriteSettings())
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	fields := []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: ordersHost}}
	if protocol != "" {
		fields = append(fields, hpack.HeaderField{Name: ":protocol", Value: protocol}, hpack.HeaderField{Name: ":scheme", Value: "https"}, hpack.HeaderField{Name: ":path", Value: path})
	}
	for _, h := range fields {
		check(p.t, enc.WriteField(h))
	}
	check(p.t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true}))
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			if !closed(err) {
				p.t.Fatal(err)
			}
			return "refused"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "refused"
		}
	}
}
