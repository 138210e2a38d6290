package xds_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/xds"
)

// webConfig calls every port of orders.
func webConfig() *xds.Config {
	dest := func(port, host string, n uint32, p xds.Protocol, aliases ...string) xds.Destination {
		return xds.Destination{Service: "shop/orders", Port: port, ID: id("shop/orders"), Protocol: p, Host: host, Aliases: aliases, Number: n}
	}
	return &xds.Config{
		TrustDomain: td, Workload: "shop/web", ID: id("shop/web"), MaxConnectionAge: 30 * time.Minute,
		Destinations: []xds.Destination{
			dest("http", "orders.shop.mesh", 8080, xds.HTTP, "http.orders.shop.mesh"),
			dest("grpc", "grpc.orders.shop.mesh", 9090, xds.GRPC),
			dest("tcp", "tcp.orders.shop.mesh", 7000, xds.TCP),
		},
		TCPCalls: []xds.TCPCall{
			{LocalPort: 15432, Service: "shop/orders", Port: "tcp"},
			{LocalPort: 15433, Service: "shop/other", Port: "tcp"}, // no grant, no listener
		},
	}
}

// endpoints leads every destination of the caller to one instance.
func endpoints(conf *xds.Config, address string) []*xds.Resource {
	var out []*xds.Resource
	for _, d := range conf.Destinations {
		out = append(out, xds.Endpoints(d.Cluster(), []xds.Endpoint{{Address: address, Port: d.Number}}))
	}
	return out
}

// call asks through the caller's own proxy. HTTP/2 goes without TLS, as a gRPC
// client would.
func (p *proxy) call(host, method, path string, http2 bool) answer {
	p.t.Helper()
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	tr := &http.Transport{Protocols: protocols}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(p.t.Context(), method, "http://"+p.address(xds.EgressPort)+path, nil)
	check(p.t, err)
	req.Host = host
	req.Header.Set("X-Forwarded-Client-Cert", "URI="+id("shop/admin"))
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(p.t, err)
	return answer{resp.StatusCode, resp.Header.Get(xds.ReasonHeader), string(body), resp.Header}
}

func TestCalls(t *testing.T) {
	for _, secrets := range []xds.SecretSource{xds.FromADS, xds.FromAgent} {
		t.Run(string(secrets), func(t *testing.T) {
			p := newPKI(t)
			c := newControl(t, p)
			orders := startProxy(t, p, c, ordersConfig(newApp(t), newTCPApp(t).target), secrets)
			conf := webConfig()
			c.set("i-shop-web", endpoints(conf, orders.in.Address)...)
			web := startProxy(t, p, c, conf, secrets)

			web.until(func() bool { return web.call(ordersHost, "GET", "/orders/7", false).status == 200 })
			got := web.call("HTTP.orders.shop.mesh:15001", "GET", "/orders/7?q=1", false)
			if want := "GET /orders/7?q=1 HTTP/1.1\n"; got.status != 200 || !strings.HasPrefix(got.body, want) {
				t.Errorf("http: %+v", got)
			}
			if strings.Contains(got.body, "admin") || !strings.HasSuffix(got.body, "URI="+id("shop/web")) {
				t.Errorf("the application was told %q", got.body)
			}
			got = web.call("grpc.orders.shop.mesh", "POST", "/pkg.S/M", true)
			if want := "POST /pkg.S/M HTTP/2.0\n"; got.status != 200 || !strings.HasPrefix(got.body, want) {
				t.Errorf("grpc: %+v", got)
			}
			got = web.call(ordersHost, "DELETE", "/secret", false)
			if got.status != 403 || got.reason != "rbac_access_denied_matched_policy[default-deny]" {
				t.Errorf("refused by the callee: %+v", got)
			}
			got = web.call("payments.shop.mesh", "GET", "/", false)
			if got.status != 403 || got.reason != xds.ReasonNoGrant || got.body != "no grant lets shop/web call this\n" {
				t.Errorf("no destination: %+v", got)
			}
			if got = web.call(ordersHost, "GET", "/a%2fb", false); got.status != 400 {
				t.Errorf("form, at the caller: %+v", got)
			}
			conn, err := net.Dial("tcp", web.address(15432))
			check(t, err)
			defer conn.Close()
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			_, err = io.WriteString(conn, "x")
			check(t, err)
			b := make([]byte, len("hello\nx"))
			if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello\nx" {
				t.Errorf("tcp: %q, %v", b, err)
			}
			if extra, err := net.Dial("tcp", web.address(15433)); err == nil {
				_ = extra.Close()
				t.Error("a tcp call without a grant has a listener")
			}
		})
	}
}

// TestCalleeIdentity: another workload of the mesh at a callee's address is not
// the callee.
func TestCalleeIdentity(t *testing.T) {
	p := newPKI(t)
	c := newControl(t, p)
	impostor := ordersConfig(newApp(t), newTCPApp(t).target)
	impostor.Workload, impostor.ID = "shop/mallory", id("shop/mallory")
	mallory := newProxy(t, p, c, impostor)
	conf := webConfig()
	c.set("i-shop-web", endpoints(conf, mallory.in.Address)...)
	web := newProxy(t, p, c, conf)
	const refused = "cluster.svc/shop/orders/http.ssl.fail_verify_san"
	web.until(func() bool {
		n, err := web.Stat(t.Context(), refused)
		check(t, err)
		return n > 0
	})
	if got := web.call(ordersHost, "GET", "/orders/7", false); got.status != 503 {
		t.Errorf("got %+v", got)
	}
}

// TestBootstrapAccepted: Envoy itself validates what Bootstrap makes, with
// servers by name and by address.
func TestBootstrapAccepted(t *testing.T) {
	for name, boot := range bootstraps() {
		if boot.NodeDir == "" {
			boot.NodeDir = "/not/used"
		}
		b, err := xds.Bootstrap(boot)
		check(t, err)
		again, err := xds.Bootstrap(boot)
		check(t, err)
		if !bytes.Equal(b, again) {
			t.Errorf("%s: two renderings differ", name)
		}
		dir := t.TempDir()
		b = bytes.ReplaceAll(b, []byte(boot.NodeDir), []byte(dir)) // Envoy wants the files to be there
		for _, f := range []string{xds.NodeFile, xds.ControlBundleFile} {
			check(t, os.WriteFile(filepath.Join(dir, f), []byte("{}"), 0o600))
		}
		file := filepath.Join(dir, "bootstrap.json")
		check(t, os.WriteFile(file, b, 0o600))
		if err := envoy.Validate(t.Context(), file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func bootstraps() map[string]xds.BootstrapConfig {
	base := xds.BootstrapConfig{
		TrustDomain: td, Workload: "shop/web",
		Instance:    xds.Instance{ID: "i-1", Address: "127.0.0.21", Egress: "127.0.0.1", Secrets: xds.FromADS},
		Servers:     []string{"127.0.0.1:7401", "[::1]:7401"},
		AdminSocket: "/run/ztmesh/admin", NodeDir: "/var/lib/ztmesh/node",
	}
	agent := base
	agent.Instance.Secrets, agent.NodeDir, agent.AgentSocket = xds.FromAgent, "", "/run/ztmesh/agent"
	agent.Servers = []string{"ztd-1.example:7401", "127.0.0.1:7401"}
	agent.BindAddress, agent.MaxConnections = true, 100
	return map[string]xds.BootstrapConfig{"files": base, "agent": agent}
}
