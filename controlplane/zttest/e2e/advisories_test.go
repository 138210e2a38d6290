package e2e_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sync/errgroup"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/xds"
)

// kiosk is orders, of which web may use what is public, by any method.
const kiosk = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http, target: %q}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: public}
spec: {from: {workloads: [web]}, to: {services: [orders], paths: [/public/**]}}
`

const webID = "spiffe://shop.example/ns/shop/sa/web"

// TestAdvisories sends what has got past other proxies, as raw bytes, to an Envoy
// that the control plane feeds.
func TestAdvisories(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	app := newWitness(t, m)
	m.Apply(fmt.Sprintf(kiosk, app.target))
	a := advisories{in: m.Run("shop/orders").Acked(), caller: m.Run("shop/web").Acked(), as: m.EnrolAgent("shop/web").SVID, app: app}
	reach := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	m.Until("web reaches orders", func() bool {
		got, err := a.caller.Call(reach, http.MethodGet, orders, "/public/a")
		return err == nil && got.Status == 200
	})
	t.Run("CVE-2023-27487 forged identity headers", a.forgedHeaders)
	t.Run("CVE-2023-27487 orders to the proxy", a.forgedOrders)
	t.Run("CVE-2025-64763 smuggled requests", a.smuggled)
	t.Run("CVE-2020-25017 repeated and foreign fields of HTTP2", a.fields)
	t.Run("CVE-2026-50149 CVE-2021-31921 server names", a.serverNames)
	t.Run("CVE-2022-21657 issued by who may not", a.issuedByLeaf)
	t.Run("CVE-2023-44487 rapid reset", a.rapidReset)
}

type advisories struct {
	in, caller *mesh.Instance // of orders and of web
	as         *tls.Certificate
	app        *witness
}

// forgedHeaders: what a caller says in the proxies' name, the application does
// not hear, be it said to the callee's proxy or to the caller's own.
func (a *advisories) forgedHeaders(t *testing.T) {
	forged := []string{
		"X-Forwarded-Client-Cert: By=x;URI=spiffe://shop.example/ns/shop/sa/admin",
		"x-forwarded-client-cert: URI=spiffe://shop.example/ns/shop/sa/admin", "X-Forwarded-Proto: forged",
	}
	for _, name := range []string{
		"original-path", "internal", "external-address", "upstream-rq-timeout-ms", "expected-rq-timeout-ms", "retry-on", "max-retries",
		"force-trace", "decorator-operation", "ip-tags", "hedge-on-per-try-timeout", "upstream-alt-stat-name",
		"downstream-service-cluster", "downstream-service-node",
	} {
		forged = append(forged, "X-Envoy-"+name+": forged")
	}
	// By these, a framework would take another request than the one that was judged.
	for _, name := range []string{"Original-Url", "Rewrite-Url", "Http-Method", "Http-Method-Override", "Method-Override"} {
		forged = append(forged, "X-"+name+": /admin")
	}
	request := mesh.Request("GET", orders, "/public/a", forged...)
	direct := a.in.Raw(8080, a.as, request)
	conn, err := net.Dial("tcp", a.caller.At(xds.EgressPort))
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(mesh.Patience)))
	through, err := mesh.Exchange(conn, request)
	check(t, err)
	for way, got := range map[string]mesh.Answer{"to the callee": direct, "through the caller's own proxy": through} {
		if got.Status != 200 || strings.Contains(got.Body, "forged") || strings.Contains(got.Body, "/admin") ||
			strings.Contains(strings.ToLower(got.Body), "x-envoy-internal") {
			t.Errorf("%s: %d, and the application heard:\n%s", way, got.Status, got.Body)
		}
		if n := strings.Count(got.Body, "URI="); n != 1 || !strings.Contains(got.Body, ";URI="+webID+"\n") {
			t.Errorf("%s: who calls is not said once and rightly:\n%s", way, got.Body)
		}
	}
	// Which headers a hop is to drop is a client's to say; not the proxy's own.
	for _, name := range []string{"x-forwarded-client-cert", "x-forwarded-proto, close", "host", "x-request-id", ":path"} {
		got := a.in.Raw(8080, a.as, mesh.Request("GET", orders, "/public/a", "Connection: "+name))
		if got.Status != 400 && !(got.Status == 200 && strings.Contains(got.Body, ";URI="+webID+"\n")) {
			t.Errorf("Connection: %s: %+v", name, got)
		}
	}
}

// forgedOrders: a caller cannot have the callee's proxy repeat what it asks.
func (a *advisories) forgedOrders(t *testing.T) {
	const path = "/public/fails"
	got := a.in.Raw(8080, a.as, mesh.Request("POST", orders, path, "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 3"))
	if n := a.app.count("POST " + path); got.Status != 503 || n != 1 {
		t.Errorf("%d, and the application was asked %d times", got.Status, n)
	}
}

// smuggled: no second request hides in a first one whose length, or whose end, two
// parsers could see differently.
func (a *advisories) smuggled(t *testing.T) {
	const hidden = "GET /public/hidden HTTP/1.1\r\nHost: " + orders + "\r\n\r\n"
	first := func(headers, body string) string {
		return "POST /public/a HTTP/1.1\r\nHost: " + orders + "\r\n" + headers + "\r\n\r\n" + body + hidden
	}
	requests := map[string]string{
		"length and chunks":          first("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
		"chunks and length":          first("Transfer-Encoding: chunked\r\nContent-Length: 0", "0\r\n\r\n"),
		"two lengths":                first("Content-Length: 0\r\nContent-Length: 1", ""),
		"a list of lengths":          first("Content-Length: 0, 0", ""),
		"a signed length":            first("Content-Length: +0", ""),
		"another coding":             first("Transfer-Encoding: xchunked", "0\r\n\r\n"),
		"two codings":                first("Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
		"a coding behind a tab":      first("Transfer-Encoding:\vchunked", "0\r\n\r\n"),
		"a space before the colon":   first("Transfer-Encoding : chunked", "0\r\n\r\n"),
		"a bare line feed in chunks": first("Transfer-Encoding: chunked", "1;x=\"\n\"\r\na\r\n0\r\n\r\n"),
		"a bare return in a header":  first("Content-Length: 0\rX: y", ""),
		"early data of an upgrade":   first("Connection: upgrade\r\nUpgrade: websocket", ""),
		"early data of another":      first("Connection: upgrade\r\nUpgrade: TLS/1.2", ""),
		"early data of CONNECT":      "CONNECT " + orders + ":80 HTTP/1.1\r\nHost: " + orders + "\r\n\r\n" + hidden,
		"a version that is none":     "POST /public/a HTTP/1.0\r\nHost: " + orders + "\r\n\r\n" + hidden,
		"a space in the query":       "GET /public/a?x y HTTP/1.1\r\nHost: " + orders + "\r\n\r\n" + hidden,
	}
	together(requests, func(what, request string) {
		c, err := a.in.Dial(8080, a.as, "http/1.1")
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		defer c.Close()
		_, err = io.WriteString(c, request)
		answers, readErr := io.ReadAll(c) // until the proxy closes
		if err != nil || errors.Is(readErr, os.ErrDeadlineExceeded) || strings.Contains(string(answers), "200 OK") {
			t.Errorf("%s: %v, %v:\n%s", what, err, readErr, answers)
		}
	})
	if n := a.app.count("GET /public/hidden"); n != 0 {
		t.Errorf("the application was asked %d times for what was hidden", n)
	}
}

// fields: HTTP/2 requests that mean something else in HTTP/1.1 go no further.
func (a *advisories) fields(t *testing.T) {
	base := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", orders, ":path", "/public/a"}, more...)
	}
	with := func(name, value string) []string {
		out := base()
		for i := 0; i < len(out); i += 2 {
			if out[i] == name {
				out[i+1] = value
			}
		}
		return out
	}
	before := a.app.total()
	cases := map[string][]string{
		"two paths":                  base(":path", "/admin"),
		"two authorities":            base(":authority", orders),
		"two methods":                base(":method", "DELETE"),
		"no path":                    base()[:6],
		"a path after a header":      append([]string{"x", "y"}, base()...),
		"an unknown one":             base(":forged", "x"),
		"a protocol":                 base(":protocol", "websocket"),
		"an upper-case name":         base("X-Forwarded-Client-Cert", "x"),
		"a name with underscores":    base("x_forwarded_client_cert", "x"),
		"a name with a colon":        base("x: y", "z"),
		"a name over two lines":      base("x\r\ny", "z"),
		"a value over two lines":     base("x", "y\r\nx-forwarded-client-cert: URI=z"),
		"Connection":                 base("connection", "x-forwarded-client-cert"),
		"Transfer-Encoding":          base("transfer-encoding", "chunked"),
		"Upgrade":                    base("upgrade", "websocket"),
		"TE":                         base("te", "chunked"),
		"a length that is not":       base("content-length", "5"),
		"a method with a path":       with(":method", "GET /admin?"),
		"a method over two lines":    with(":method", "GET /admin HTTP/1.1\r\nHost: x\r\n\r\nGET"),
		"a query with a space":       with(":path", "/public/a? HTTP/1.1"),
		"a query over two lines":     with(":path", "/public/a?\r\nx: y"),
		"a fragment":                 with(":path", "/public/a#/../../admin"),
		"an absolute path":           with(":path", "http://"+orders+"/public/a"),
		"an asterisk":                with(":path", "*"),
		"an empty path":              with(":path", ""),
		"a scheme with an authority": with(":scheme", "https://evil/admin?"),
		"a NUL":                      with(":path", "/public/a\x00"),
	}
	together(cases, func(what string, fields []string) {
		if status, err := a.ask(fields); status == "200" || err != nil {
			t.Errorf("%s: %q, %v", what, status, err)
		}
	})
	if n := a.app.total() - before; n != 0 {
		t.Errorf("%d of them reached the application", n)
	}
	if status, err := a.ask(base()); status != "200" || err != nil {
		t.Errorf("what is well: %q, %v", status, err)
	}
}

// ask sends the fields of one request over HTTP/2 as they are and returns the
// status; it is empty where the proxy ends the stream or the connection instead.
func (a *advisories) ask(fields []string) (status string, err error) {
	c, err := a.in.Dial(8080, a.as, "h2")
	if err != nil {
		return "", err
	}
	defer c.Close()
	frames := http2.NewFramer(c, c)
	frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encode := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		err = errors.Join(err, encode.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	_, greeted := io.WriteString(c, http2.ClientPreface)
	err = errors.Join(err, greeted, frames.WriteSettings(), frames.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true,
	}))
	for err == nil {
		var f http2.Frame
		if f, err = frames.ReadFrame(); err != nil {
			break
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status"), nil
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return "", nil
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", err
	}
	return "", nil // closed
}

// serverNames: the name that a caller asks TLS for decides nothing.
func (a *advisories) serverNames(t *testing.T) {
	for _, name := range []string{"", orders, "ORDERS.SHOP.MESH", "admin.shop.mesh", "control.shop.example", "localhost", strings.Repeat("a.", 120) + "mesh"} {
		raw, err := net.Dial("tcp", a.in.At(8080))
		check(t, err)
		c := tls.Client(raw, &tls.Config{
			ServerName: name, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{*a.as},
			InsecureSkipVerify: true, //nolint:gosec // not the subject
		})
		defer c.Close()
		check(t, c.SetDeadline(time.Now().Add(mesh.Patience)))
		for _, ask := range []struct {
			host, path string
			status     int
		}{{orders, "/public/a", 200}, {orders, "/admin", 403}, {"admin.shop.mesh", "/public/a", 404}} {
			got, err := mesh.Exchange(c, mesh.Request("GET", ask.host, ask.path))
			if err != nil || got.Status != ask.status {
				t.Errorf("server name %q: %s%s: %+v, %v", name, ask.host, ask.path, got, err)
			}
		}
	}
}

// issuedByLeaf: the key of a workload, or of an instance, signs for nobody.
func (a *advisories) issuedByLeaf(t *testing.T) {
	for what, by := range map[string]*tls.Certificate{"a workload": a.as, "an instance": a.caller.Node.TLS()} {
		issuer, err := x509.ParseCertificate(by.Certificate[0])
		check(t, err)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(t, err)
		id, err := url.Parse(webID)
		check(t, err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), URIs: []*url.URL{id}, NotBefore: issuer.NotBefore, NotAfter: issuer.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, issuer, key.Public(), by.PrivateKey)
		check(t, err)
		forged := &tls.Certificate{Certificate: append([][]byte{der}, by.Certificate...), PrivateKey: key}
		if got := a.in.Raw(8080, forged, mesh.Request("GET", orders, "/public/a")); got.Status != 0 {
			t.Errorf("signed by %s: %+v", what, got)
		}
	}
}

// rapidReset: who opens streams only to reset them loses the connection, soon.
func (a *advisories) rapidReset(t *testing.T) {
	c, err := a.in.Dial(8080, a.as, "h2")
	check(t, err)
	defer c.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	frames := http2.NewFramer(c, c)
	var block bytes.Buffer
	encode := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", orders}, {":path", "/public/reset"}} {
		check(t, encode.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	encoded := bytes.Clone(block.Bytes())
	_, err = io.WriteString(c, http2.ClientPreface)
	check(t, errors.Join(err, frames.WriteSettings()))
	const most = 20_000
	sent := 0
	for err == nil && sent < most {
		err = errors.Join(frames.WriteHeaders(http2.HeadersFrameParam{
			StreamID: uint32(2*sent + 1), BlockFragment: encoded, EndStream: true, EndHeaders: true,
		}), frames.WriteRSTStream(uint32(2*sent+1), http2.ErrCodeCancel))
		sent++
	}
	if sent == most {
		t.Errorf("%d streams were opened and reset", sent)
	}
	c.Close()
	<-ended
	if got := a.in.Raw(8080, a.as, mesh.Request("GET", orders, "/public/a")); got.Status != 200 {
		t.Errorf("others: %+v", got)
	}
}

// together runs f for all of cases, many at a time: Envoy takes a second to close
// what it refuses.
func together[T any](cases map[string]T, f func(what string, c T)) {
	var g errgroup.Group
	g.SetLimit(2 * atOnce)
	for what, c := range cases {
		g.Go(func() error { f(what, c); return nil })
	}
	_ = g.Wait() // f reports by itself
}

// witness is an application that remembers what it was asked and answers with the
// request line, the host and all headers and trailers that reached it. It fails what ends in "fails".
type witness struct {
	target string
	mu     sync.Mutex // guards asked
	asked  []string   // "GET /public/a"
}

func newWitness(t *testing.T, m *mesh.Mesh) *witness {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(m.Loopback(), "0"))
	check(t, err)
	w := &witness{target: l.Addr().String()}
	srv := &http.Server{Handler: w, ReadHeaderTimeout: mesh.Patience}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return w
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.asked = append(w.asked, r.Method+" "+r.URL.Path)
	w.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "fails") {
		rw.WriteHeader(http.StatusServiceUnavailable)
	}
	if r.Header.Get("Upgrade") == "" {
		_, _ = io.Copy(io.Discard, r.Body) // trailers come after it
	}
	fmt.Fprintf(rw, "%s %s %s\n", r.Method, r.RequestURI, r.Host)
	for _, part := range []http.Header{r.Header, r.Trailer} {
		for name, values := range part {
			fmt.Fprintf(rw, "%s: %s\n", name, strings.Join(values, ","))
		}
	}
}

// count is how often a request was asked.
func (w *witness) count(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.asked {
		if a == what {
			n++
		}
	}
	return n
}

func (w *witness) total() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}
