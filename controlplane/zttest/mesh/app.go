package mesh

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// NewApp runs an application until the test ends and returns its address. It
// answers every request with the first line that reached it and who the proxy
// says has sent it: "GET /a HTTP/1.1\nBy=…;URI=spiffe://…". It speaks HTTP/1.1 and,
// without TLS, HTTP/2.
func (m *Mesh) NewApp() (target string) {
	m.t.Helper()
	return m.NewHandler(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n%s", r.Method, r.RequestURI, r.Proto, r.Header.Get("X-Forwarded-Client-Cert"))
	})
}

// NewHandler runs an application that answers as h does, as NewApp.
func (m *Mesh) NewHandler(h http.HandlerFunc) (target string) {
	m.t.Helper()
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Protocols: protocols, ReadHeaderTimeout: Patience, Handler: h}
	return m.serve(func(l net.Listener) { _ = srv.Serve(l) }, func() { srv.Close() })
}

// NewGRPCApp runs the gRPC health service, which says that "app" serves.
func (m *Mesh) NewGRPCApp() (target string) {
	m.t.Helper()
	srv, checker := grpc.NewServer(), health.NewServer()
	checker.SetServingStatus("app", healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(srv, checker)
	return m.serve(func(l net.Listener) { _ = srv.Serve(l) }, srv.Stop)
}

// NewTCPApp runs an application of the kind in which the client speaks first: it
// sends back what it gets.
func (m *Mesh) NewTCPApp() (target string) {
	m.t.Helper()
	var conns sync.WaitGroup
	return m.serve(func(l net.Listener) {
		defer conns.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	}, nil)
}

// serve runs an application on a port of its own.
func (m *Mesh) serve(run func(net.Listener), stop func()) string {
	m.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(m.Loopback(), "0"))
	m.check(err)
	done := make(chan struct{})
	go func() { defer close(done); run(l) }()
	m.t.Cleanup(func() {
		l.Close()
		if stop != nil {
			stop()
		}
		<-done
	})
	return l.Addr().String()
}

// RequestLine is the first line that reached the application of NewApp.
func (a Answer) RequestLine() string { line, _, _ := strings.Cut(a.Body, "\n"); return line }
