package zttest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// App is a sample application, in this process.
type App struct {
	address string
	stop    func()
}

// Address is where it listens, host:port.
func (a *App) Address() string { return a.address }

// Close ends the application and its connections.
func (a *App) Close() { a.stop() }

// NewHTTPApp answers every request with 200 and one line that says what it
// received and from whom: "orders: GET /orders/7 from spiffe://…". A POST to a
// path that ends in /echo is answered by its own body, as it comes, for as long
// as it lasts.
func NewHTTPApp(name, address string) (*App, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/echo") {
			echoBody(w, r)
			return
		}
		fmt.Fprintf(w, "%s: %s %s from %s\n", name, r.Method, r.RequestURI, CallerOf(r.Header))
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }() // ends with Close
	return &App{l.Addr().String(), func() { srv.Close(); <-done }}, nil
}

// CallerOf is the SPIFFE ID that an application's proxy says a request is from.
func CallerOf(h http.Header) string {
	for part := range strings.SplitSeq(h.Get("X-Forwarded-Client-Cert"), ";") {
		if id, ok := strings.CutPrefix(part, "URI="); ok {
			return id
		}
	}
	return "nobody"
}

// echoBody sends the body back while it is still being received.
func echoBody(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	if err := c.EnableFullDuplex(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	buf := make([]byte, 4096)
	for c.Flush() == nil {
		n, err := r.Body.Read(buf)
		if _, werr := w.Write(buf[:n]); err != nil || werr != nil {
			break
		}
	}
}

// NewGRPCApp serves grpc.health.v1.Health.
func NewGRPCApp(address string) (*App, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	srv, h := grpc.NewServer(), health.NewServer()
	healthv1.RegisterHealthServer(srv, h)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	return &App{l.Addr().String(), func() { h.Shutdown(); srv.Stop(); <-done }}, nil
}

// NewTCPApp sends back what it receives: the client speaks first.
func NewTCPApp(address string) (*App, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	a := &echo{open: map[net.Conn]bool{}}
	a.wg.Go(func() { a.accept(l) })
	return &App{l.Addr().String(), func() { l.Close(); a.close(); a.wg.Wait() }}, nil
}

type echo struct {
	wg     sync.WaitGroup
	mu     sync.Mutex // guards what follows
	open   map[net.Conn]bool
	closed bool
}

func (e *echo) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		if e.closed {
			conn.Close()
		} else {
			e.open[conn] = true
			e.wg.Go(func() { e.serve(conn) })
		}
		e.mu.Unlock()
	}
}

func (e *echo) serve(conn net.Conn) {
	_, _ = io.Copy(conn, conn) // how it ends is the client's to see
	conn.Close()
	e.mu.Lock()
	delete(e.open, conn)
	e.mu.Unlock()
}

func (e *echo) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for conn := range e.open {
		conn.Close()
	}
}
