package controlplane_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// handshake tells whether the cluster port keeps a connection of this caller:
// in TLS 1.3 a refusal comes with the first read.
func handshake(c *cluster, pair *identity.KeyPair, protocol string) bool {
	c.t.Helper()
	cfg := c.ClientTLS(pair)
	cfg.NextProtos = nil
	if protocol != "" {
		cfg.NextProtos = []string{protocol}
	}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(c.ctx(), "tcp", c.Servers[0].Addresses().Cluster)
	if err != nil {
		return false
	}
	defer conn.Close()
	if protocol == identity.ALPNHTTP2 {
		// A gRPC server speaks after the preface.
		if _, err := io.WriteString(conn, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
			return false
		}
		c.check(conn.SetReadDeadline(time.Now().Add(patience)))
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	}
	c.check(conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
	_, err = conn.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded) // Raft waits for us to speak
}

// TestSilence is CVE-2026-73500 and slow loris: a connection that does not say
// who it is, or not all of it, is closed in time; on every port.
func TestSilence(t *testing.T) {
	c := newCluster(t, 1, func(cfg *controlplane.Config) { cfg.Handshake = 300 * time.Millisecond })
	a := c.Servers[0].Addresses()
	for name, address := range map[string]string{"admin": a.Admin, "node": a.Node, "cluster": a.Cluster} {
		for what, say := range map[string]string{"nothing": "", "half a record": "\x16\x03\x01\x02\x00", "not TLS": "GET / HTTP/1.1\r\n\r\n"} {
			conn, err := net.Dial("tcp", address)
			c.check(err)
			_, err = io.WriteString(conn, say)
			c.check(err)
			closes(t, name+" port, "+what, conn)
		}
		var pair *identity.KeyPair
		if name == "cluster" {
			pair = c.identityOf(c.Servers[0])
		}
		for what, say := range map[string]string{"silent after the handshake": "", "half a preface": http2.ClientPreface[:10]} {
			if name == "admin" {
				continue // net/http: below
			}
			conn, err := tls.Dial("tcp", address, c.ClientTLS(pair))
			c.check(err)
			_, err = io.WriteString(conn, say)
			c.check(err)
			closes(t, name+" port, "+what, conn)
		}
	}
	for what, say := range map[string]string{
		"silent after the handshake": "",
		"headers without end":        "GET /v1alpha1/info HTTP/1.1\r\nHost: x\r\nX: ",
	} {
		conn, err := tls.Dial("tcp", a.Admin, c.http1(nil))
		c.check(err)
		_, err = io.WriteString(conn, say)
		c.check(err)
		closes(t, "admin port, "+what, conn)
	}
	// Others are served meanwhile.
	_, err := c.Admin().GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
	c.check(err)
}

// closes wants the other side to close the connection, whatever it says before.
func closes(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(patience / 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: the connection stays", what)
	}
}

// raw sends bytes as HTTP/1.1 on the admin port and returns the first line of the
// answer; empty if there was none.
func raw(c *cluster, pair *identity.KeyPair, request string, body io.Reader) string {
	c.t.Helper()
	conn, err := tls.Dial("tcp", c.Servers[0].Addresses().Admin, c.http1(pair))
	c.check(err)
	defer conn.Close()
	c.check(conn.SetDeadline(time.Now().Add(patience)))
	go func() {
		// Whether the server takes it all is its business.
		_, _ = io.WriteString(conn, request)
		_, _ = io.Copy(conn, body)
	}()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSpace(line)
}

// TestHostileHTTP is CVE-2025-11374, CVE-2024-10086 and CVE-2022-24726: what is
// odd about a request is answered with 4xx, in bounded memory, and the server
// goes on.
func TestHostileHTTP(t *testing.T) {
	c := newCluster(t, 1, nil)
	head := func(path string, headers ...string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n"
	}
	const (
		isJSON = "Content-Type: application/json"
		can    = "/v1alpha1/can"
	)
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d", n) }
	deep := strings.Repeat("[", 1<<20-64)
	nested := `{"files":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}"
	bomb := "\x1f\x8b\x08\x00\x00\x00\x00\x00" + strings.Repeat("\x00", 4096)
	for name, tt := range map[string]struct {
		pair    *identity.KeyPair
		request string
		body    io.Reader
	}{
		"negative length":         {c.AdminPair(), head(can, isJSON, "Content-Length: -1"), strings.NewReader("{}")},
		"two lengths":             {c.AdminPair(), head(can, isJSON, length(2), length(3)), strings.NewReader("{}")},
		"length beyond 64 bits":   {c.AdminPair(), head(can, isJSON, "Content-Length: 99999999999999999999"), strings.NewReader("{}")},
		"length and chunks":       {c.AdminPair(), head(can, isJSON, length(2), "Transfer-Encoding: chunked"), strings.NewReader("5\r\n{}{}{\r\n0\r\n\r\n")},
		"chunk of no size":        {c.AdminPair(), head(can, isJSON, "Transfer-Encoding: chunked"), strings.NewReader("zz\r\n{}\r\n0\r\n\r\n")},
		"deep JSON":               {c.AdminPair(), head(can, isJSON, length(len(deep))), strings.NewReader(deep)},
		"deep objects":            {c.AdminPair(), head("/v1alpha1/apply", isJSON, length(len(nested))), strings.NewReader(nested)},
		"gzip":                    {c.AdminPair(), head(can, isJSON, "Content-Encoding: gzip", length(len(bomb))), strings.NewReader(bomb)},
		"a form":                  {c.AdminPair(), head(can, "Content-Type: application/x-www-form-urlencoded", length(2)), strings.NewReader("{}")},
		"plain text":              {c.AdminPair(), head(can, "Content-Type: text/plain", length(2)), strings.NewReader("{}")},
		"no type":                 {c.AdminPair(), head(can, length(2)), strings.NewReader("{}")},
		"unknown field":           {c.AdminPair(), head(can, isJSON, length(12)), strings.NewReader(`{"caller2":1}`)},
		"two values":              {c.AdminPair(), head("/v1alpha1/tokens", isJSON, length(13)), strings.NewReader(`{"server":1}{}`)},
		"not UTF-8":               {c.AdminPair(), head(can, isJSON, length(14)), strings.NewReader("{\"caller\":\"\xff\"}")},
		"2 MiB to a small call":   {c.AdminPair(), head(can, isJSON, length(2<<20)), strings.NewReader(`{"caller":"` + strings.Repeat("x", 2<<20))},
		"endless":                 {c.AdminPair(), head("/v1alpha1/apply", isJSON, "Transfer-Encoding: chunked"), &endless{}},
		"an apply of nobody":      {nil, head("/v1alpha1/apply", isJSON, length(32<<20)), io.LimitReader(&endless{}, 32<<20)},
		"headers of 1 MiB":        {c.AdminPair(), head(can, isJSON, length(2), "X: "+strings.Repeat("x", 1<<20)), strings.NewReader("{}")},
		"no such route":           {c.AdminPair(), head("/v1alpha1/../../etc/passwd", isJSON, length(2)), strings.NewReader("{}")},
		"an escaped route":        {c.AdminPair(), "GET /v1alpha1/documents/a%2f..%2fb/%00/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", strings.NewReader("")},
		"gRPC over HTTP/1.1":      {c.AdminPair(), head("/zt.v1alpha1.AdminService/Apply", "Content-Type: application/grpc", length(5)), strings.NewReader("\x00\x00\x00\x00\x00")},
		"a peer's method by REST": {c.AdminPair(), head("/zt.v1alpha1.PeerService/Announce", isJSON, length(2)), strings.NewReader("{}")},
	} {
		t.Run(name, func(t *testing.T) {
			if line := raw(c, tt.pair, tt.request, tt.body); !strings.HasPrefix(line, "HTTP/1.1 4") {
				t.Errorf("answered with %q, want 4xx", line)
			}
		})
	}
	_, err := c.Admin().GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
	c.check(err)
}

// endless is a JSON string that does not end, in chunks.
type endless struct{ begun bool }

func (e *endless) Read(p []byte) (int, error) {
	const size = 4096
	if !e.begun {
		e.begun = true
		return copy(p, "2\r\n{\"\r\n"), nil
	}
	return copy(p, fmt.Sprintf("%x\r\n%s\r\n", size, strings.Repeat("x", size))), nil
}
