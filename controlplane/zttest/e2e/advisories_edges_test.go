package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/xds"
)

// principals: an identity is one name, whole; none that contains it, begins or ends
// with it, is it, on tcp as on HTTP.
func (s *stranger) principals(t *testing.T) {
	const ns = "spiffe://shop.example/ns/shop/sa/"
	for id, open := range map[string]bool{
		ns + "web": true, ns + "web2": false, ns + "we": false, ns + "web/x": false, ns + "Web": false, ns + "xweb": false, ns + "*": false, ns + "web.": false,
		"spiffe://shop.example/ns/shop/sa/shop/sa/web": false, "spiffe://shop.example/ns/web/sa/shop": false, "spiffe://shop.example/ns/shop/gw/web": false,
		"spiffe://shop.example/x/ns/shop/sa/web": false, "spiffe://shop.example.evil/ns/shop/sa/web": false, "spiffe://evil/spiffe://shop.example/ns/shop/sa/web": false,
		"spiffe://evil.shop.example/ns/shop/sa/web": false, "https://shop.example/ns/shop/sa/web": false, "spiffe://shop.example": false,
	} {
		as := s.m.Certificate(id)
		if got := echo(t, s.in, rawPort, as); open != (got.Status == 200) {
			t.Errorf("%s by tcp: %+v", id, got)
		}
		if got := s.in.Raw(httpPort, as, mesh.Request("GET", orders, "/public/a")); open != (got.Status == 200) {
			t.Errorf("%s by HTTP: %+v", id, got)
		}
	}
}

// misused: a certificate of the mesh that speaks for several, for nobody, or for
// another time, is nobody's, nor is one that signs. Key usages of TLS, Envoy does not
// ask for: that no server signs others is what identity: TestIssued holds.
func (s *stranger) misused(t *testing.T) {
	by := s.m.Servers[0].Intermediate()
	web, err := url.Parse(webID)
	check(t, err)
	other, err := url.Parse("spiffe://shop.example/ns/shop/sa/admin")
	check(t, err)
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	past, ahead := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for what, c := range map[string]struct {
		x509.Certificate
		open bool
	}{
		"as it should be":   {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both}, true},
		"for clients":       {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both[1:]}, true},
		"for servers":       {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both[:1]}, true},
		"for signing code":  {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}, true},
		"of two":            {x509.Certificate{URIs: []*url.URL{web, other}, ExtKeyUsage: both}, false},
		"of two, the other": {x509.Certificate{URIs: []*url.URL{other, web}, ExtKeyUsage: both}, false},
		"of nobody":         {x509.Certificate{ExtKeyUsage: both}, false},
		"as a DNS name":     {x509.Certificate{DNSNames: []string{webID}, ExtKeyUsage: both}, false},
		"as a wildcard":     {x509.Certificate{DNSNames: []string{"*"}, EmailAddresses: []string{"web@shop.example"}, ExtKeyUsage: both}, false},
		"expired":           {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both, NotAfter: past}, false},
		"of the future":     {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both, NotBefore: ahead}, false},
		"that signs":        {x509.Certificate{URIs: []*url.URL{web}, ExtKeyUsage: both, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, false},
	} {
		template := c.Certificate
		template.SerialNumber = big.NewInt(1)
		template.NotBefore = later(template.NotBefore, by.Leaf().NotBefore)
		if template.NotAfter.IsZero() {
			template.NotAfter = by.Leaf().NotAfter
		}
		template.KeyUsage |= x509.KeyUsageDigitalSignature
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(t, err)
		der, err := x509.CreateCertificate(rand.Reader, &template, by.Leaf(), key.Public(), by.Key)
		check(t, err)
		as := &tls.Certificate{Certificate: [][]byte{der, by.Leaf().Raw}, PrivateKey: key}
		if got := s.in.Raw(httpPort, as, mesh.Request("GET", orders, "/public/a")); c.open != (got.Status == 200) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// earlyData: what a client sends before an upgrade is agreed to is no request that
// the application answers, agreed or not.
func (s *stranger) earlyData(t *testing.T) {
	const hidden = "GET /admin/hidden HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: close\r\n\r\n"
	const key = "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	before, admins := s.app.count("GET /live"), s.app.count("GET /admin")
	heads := map[string]string{
		"granted":            "GET /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket" + key,
		"with a length":      "GET /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0" + key,
		"with chunks":        "GET /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked" + key,
		"not granted":        "GET /public/a HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket" + key,
		"of two":             "GET /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c" + key,
		"h2c with settings":  "GET /public/a HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade, close, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"without Connection": "GET /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nUpgrade: websocket" + key,
		"by POST":            "POST /live HTTP/1.1\r\nHost: " + wsOrders + "\r\nConnection: upgrade\r\nUpgrade: websocket" + key,
	}
	together(heads, func(what, head string) {
		c, err := s.in.Dial(wsPort, s.as, "http/1.1")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, err = io.WriteString(c, head+"\r\n"+hidden)
		// Pipelined requests are judged one by one, and answered as such.
		answers, _ := io.ReadAll(c)
		if err != nil || len(answers) == 0 || strings.Contains(string(answers), "/admin") {
			t.Errorf("%s: %v: %q", what, err, answers)
		}
	})
	if n := s.app.count("GET /admin/hidden"); n != 0 {
		t.Errorf("the application was asked %d times for what was hidden", n)
	}
	if s.app.count("GET /live") == before {
		t.Error("no upgrade has reached the application: nothing was tried")
	}
	// HTTP/2: the same by extended CONNECT, and by what only looks like one.
	for what, fields := range map[string][]hpack.HeaderField{
		"a GET with a protocol":    {{Name: ":method", Value: "GET"}, {Name: ":protocol", Value: "websocket"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/live"}},
		"a CONNECT without":        {{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: wsOrders}},
		"a CONNECT with a path":    {{Name: ":method", Value: "CONNECT"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/public/a"}},
		"another path":             {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/admin"}},
		"what is for requests":     {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/public/a"}},
		"another protocol":         {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "connect-tcp"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/public/a"}},
		"h2c":                      {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "h2c"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/public/a"}},
		"an empty protocol":        {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: ""}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/public/a"}},
		"a protocol of two":        {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket, x"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/live"}},
		"a protocol over lines":    {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket\r\nx: y"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/live"}},
		"one beside a real header": {{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: wsOrders}, {Name: ":path", Value: "/admin"}, {Name: "upgrade", Value: "x"}},
	} {
		h, err := s.in.DialHTTP2(wsPort, s.as)
		check(t, err)
		got, err := h.Do(false, fields)
		if err == nil && got.Status == 200 {
			t.Errorf("%s: %+v", what, got)
		}
		h.Close()
	}
	if n := s.app.count("GET /admin") - admins; n != 0 {
		t.Errorf("the application was asked %d times for /admin", n)
	}
}

// segments: a "*" is one segment of the path that the application gets.
func (s *stranger) segments(t *testing.T) {
	long, most := strings.Repeat("s", 9<<10), strings.Repeat("s", 8<<10-2)
	for path, allowed := range map[string]bool{
		"/star/a/read": true, "/star/a/read?/x": true, "/star/a/read?x=/write": true, "/star/a/write?/read": false, "/star/a?/read": false,
		"/star//read": false, "/star/read": false, "/star/a/b/read": false, "/star/a%2fb/read": false, "/star/a/../read": false, "/star/./a/./read": true,
		"/star/a/read/": false, "/star/a/read/x": false, "/star/../star/a/read": true, "/star/-/read": true, "/star/=/read": true, "/star/=a/read": true,
		"/star/a/write": false, "/star/a/read;x": false, "/star/a;x/read": false, "/star/%/read": false, "/star/a/read\n": false,
		"/star/" + long + "/write": false, "/star/a/" + long + "/read": false, "/x" + long + "/star/a/read": false, "/star/a/write?" + long + "/star/a/read": false,
		"/star/a/read?" + long: true, "/star/a/" + long: false, "/star/" + long + "/read": false, "/star/" + most + "/read": true, "/star/" + most + "s/read": false, "/star/a/read?\n": false,
	} {
		for way, got := range map[string]mesh.Answer{
			"HTTP/1.1": s.in.Raw(httpPort, s.as, mesh.Request("GET", orders, path)), "HTTP/2": s.in.RawHTTP2(httpPort, s.as, "GET", orders, path),
		} {
			if allowed != (got.Status == 200) {
				t.Errorf("%.60q by %s: %+v", path, way, got.Status)
			}
		}
	}
	for path, judged := range map[string]string{ // of a port that lets encoded paths pass
		"/public/%20": "/public/%20", "/public/..;/admin": "", "/public/%2e%2e/admin": "", "/public/..%3b/admin": "", "/public/%252e%252e%252fadmin": "",
		"/public/%c0%ae%c0%ae/admin": "", "/public/a%2f..%2f..%2fadmin": "", "/public/.%00./admin": "", "/public/..%00/admin": "", "/public/%u002e%u002e/admin": "",
	} {
		got := s.in.Raw(encPort, s.as, mesh.Request("GET", encOrders, path))
		if (judged != "") != (got.Status == 200) || judged != "" && got.RequestLine() != "GET "+judged+" "+encOrders {
			t.Errorf("encoded %q: %d %q", path, got.Status, got.RequestLine())
		}
	}
}

// plaintext: an Exception lets in who speaks no TLS, and nobody as somebody.
func (s *stranger) plaintext(t *testing.T) {
	firsts := map[string]string{
		"a hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "four bytes of one": "\x16\x03\x01\x02", "a record that is none": "\x16\x03\x01\x00\x05GET /", "SSLv2": "\x80\x2e\x01\x03\x01",
		"PROXY": "PROXY TCP4 10.0.0.1 10.0.0.1 1 1\r\n", "PROXY 2": "\r\n\r\n\x00\r\nQUIT\n", "an alert": "\x15\x03\x01\x00\x02\x02\x28",
	}
	together(firsts, func(what, first string) {
		for _, port := range []uint32{oldPort, httpPort} {
			got, err := s.plain(s.in.At(port), first+mesh.Request("GET", oldOrders, "/public/a"))
			if err != nil || got.Status == 200 {
				t.Errorf("%s to %d: %+v, %v", what, port, got, err)
			}
		}
	})
	got, err := s.plain(s.in.At(oldPort), mesh.Request("GET", oldOrders, "/any",
		"x-forwarded-client-cert: URI="+webID, "x-user: ada", "x-forwarded-for: 10.0.0.1", "x-envoy-original-path: /x", "forwarded: for=10.0.0.1"))
	if err != nil || got.Status != 200 || heard(got, "X-User") != "" || heard(got, "X-Forwarded-Client-Cert") != "" || heard(got, "X-Envoy-Original-Path") != "" {
		t.Errorf("forged: %+v, %v", got, err)
	}
	if got, err := s.plain(s.in.At(httpPort), mesh.Request("GET", orders, "/public/a")); err != nil || got.Status != 0 {
		t.Errorf("a port without an Exception: %+v, %v", got, err)
	}
	var nobody *tls.Certificate
	for _, as := range []*tls.Certificate{nobody, s.m.Certificate("spiffe://shop.example/ns/shop/sa/admin")} {
		if got := s.in.Raw(oldPort, as, mesh.Request("GET", oldOrders, "/public/a")); got.Status != 0 {
			t.Errorf("by TLS at the port of the Exception: %+v", got)
		}
	}
	bad := specgen.Token("corp", map[string]any{"exp": 1})
	if got, err := s.plain(s.in.At(oldPort), mesh.Request("GET", oldOrders, "/any", "authorization: Bearer "+bad)); err != nil || got.Status == 200 {
		t.Errorf("a token that does not verify: %+v, %v", got, err)
	}
}

// told applies a spec and returns when orders has ACKed it.
func (s *stranger) told(yaml string) {
	revision := s.m.Submit(yaml).Revision
	s.m.Until("orders has ACKed", func() bool { return s.m.Proxy(s.in.ID).AckedRevision >= revision })
}

// blocked: a Block of a workload is of all its names, on every way in, and of what is
// open; one of a user is of the user of that provider.
func (s *stranger) blocked(t *testing.T) {
	old := newForeign(t, "old.example")
	former := old.certificate(t, "spiffe://old.example/ns/shop/sa/web")
	base := s.spec + fmt.Sprintf(meshDocument, ", trustDomainAliases: [old.example], federation: ["+old.bundle()+"]")
	token := func(provider string) string {
		return "authorization: Bearer " + specgen.Token(provider, map[string]any{"sub": "eve"})
	}
	s.told(base + `---
apiVersion: ztmesh.dev/v1alpha1
kind: Block
metadata: {namespace: shop, name: no-eve}
spec: {users: {provider: corp, subjects: [eve]}, services: [orders], reason: test}
`)
	for _, as := range []*tls.Certificate{s.as, former} {
		for header, status := range map[string]int{token("corp"): 403, token("partner"): 200, "x-user: eve": 200} {
			if got := s.in.Raw(httpPort, as, mesh.Request("GET", orders, "/public/a", header)); got.Status != status {
				t.Errorf("%.40s: %+v", header, got)
			}
		}
	}
	open := map[string]*mesh.HTTP2{}
	for name, as := range map[string]*tls.Certificate{"web": s.as, "web by its former name": former} {
		h, err := s.in.DialHTTP2(httpPort, as)
		check(t, err)
		defer h.Close()
		if got, err := h.Exchange("GET", orders, "/public/a"); err != nil || got.Status != 200 {
			t.Errorf("%s, before: %+v, %v", name, got, err)
		}
		open[name] = h
	}
	s.told(base + `---
apiVersion: ztmesh.dev/v1alpha1
kind: Block
metadata: {namespace: shop, name: no-web}
spec: {workloads: [web], reason: test}
`)
	for name, h := range open {
		if got, err := h.Exchange("GET", orders, "/public/a"); err == nil && got.Status == 200 {
			t.Errorf("%s, on what was open: %+v", name, got)
		}
	}
	for name, as := range map[string]*tls.Certificate{"web": s.as, "web by its former name": former} {
		for _, path := range []string{"/public/a", xds.HealthPath, xds.HealthPath + "?", "/public/../public/a"} {
			if got := s.in.Raw(httpPort, as, mesh.Request("GET", orders, path)); got.Status == 200 {
				t.Errorf("%s, %s: %+v", name, path, got)
			}
		}
		if got := echo(t, s.in, rawPort, as); got.Status == 200 {
			t.Errorf("%s by tcp: %+v", name, got)
		}
	}
}
