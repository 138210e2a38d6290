//go:build components

// Package components_test runs meshes, of real servers and real Envoys, beside what
// others have made: an OpenID provider and Open Policy Agent. make test-components
// builds those.
package components_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/xds"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs a program that the Makefile has built, until the test ends. Its log is
// shown if the test fails.
func start(t *testing.T, program string, args ...string) *zttest.Process {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%v: run make test-components, which builds it", err)
	}
	p, err := zttest.Start(zttest.Command{Name: program, Path: path, Args: args, Log: filepath.Join(t.TempDir(), "log")})
	check(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", program, zttest.Tail(p.Log(), 50))
		}
	})
	return p
}

// listens returns when something listens at an address.
func listens(t *testing.T, address string) {
	t.Helper()
	mesh.Until(t, address+" listens", func() bool {
		c, err := net.DialTimeout("tcp", address, mesh.Patience)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// received is what an application got.
type received struct {
	Method, URI, Host, Body string
	Header                  http.Header
}

// newApp runs an application that answers every request with what it got, as JSON.
func newApp(t *testing.T, m *mesh.Mesh) (target string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(m.Loopback(), "0"))
	check(t, err)
	srv := &http.Server{ReadHeaderTimeout: mesh.Patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the proxy has hung up
		}
		_ = json.NewEncoder(w).Encode(received{r.Method, r.RequestURI, r.Host, string(body), r.Header})
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

// answer is what came back of a request.
type answer struct {
	status int
	reason string    // why a proxy said no, if with 403
	got    *received // what the application got; nil: nothing reached it
	header http.Header
}

// caller is a workload that calls through its own Envoy, as its application does.
type caller struct {
	t      *testing.T
	in     *mesh.Instance
	client *http.Client
}

func newCaller(t *testing.T, m *mesh.Mesh, workload string) *caller {
	t.Helper()
	return &caller{t, m.Run(workload).Acked(), &http.Client{
		Timeout: mesh.Patience, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	}}
}

const ordersHost = "orders.shop.mesh"

// call makes a request of orders. Its headers are pairs of name and value.
func (c *caller) call(method, path, body string, headers ...string) answer {
	c.t.Helper()
	url := "http://" + c.in.At(xds.EgressPort) + path
	req, err := http.NewRequestWithContext(c.t.Context(), method, url, strings.NewReader(body))
	check(c.t, err)
	req.Host = ordersHost
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.client.Do(req)
	check(c.t, err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	check(c.t, err)
	return read(resp.StatusCode, resp.Header.Get(xds.ReasonHeader), content, resp.Header)
}

func read(status int, reason string, body []byte, header http.Header) answer {
	a := answer{status: status, reason: reason, header: header}
	var got received
	decoder := json.NewDecoder(bytes.NewReader(body))
	if decoder.Decode(&got) == nil && got.Method != "" {
		a.got = &got
	}
	return a
}

// soon is when the Exceptions of a test end.
func soon() string { return time.Now().Add(time.Hour).UTC().Format(time.RFC3339) }
