package judge

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/xds"
)

// askHeader bears the number of a question to whoever is behind the proxy.
const askHeader = "x-ask"

// Received is a request as the application got it.
type Received struct {
	Method, Path, Host string
	Headers            []policy.Header // names in lower case; of HTTP/2 without pseudo headers
}

// Header is the values of a header.
func (r *Received) Header(name string) []string {
	var out []string
	for _, h := range r.Headers {
		if h.Name == name {
			out = append(out, h.Value)
		}
	}
	return out
}

// app is what stands behind every port of every workload, and what external
// services are. It reads requests as they come, so that nothing is refused or put
// right before it is noted, and speaks whatever the first byte is of: TLS, HTTP/2,
// HTTP/1.1, or, after a zero byte, echo.
type app struct {
	listener, greeter net.Listener
	certificate       func(name string) (*tls.Certificate, error)
	conns             sync.WaitGroup

	mu       sync.Mutex // guards what follows
	received map[string]*Received
	open     map[net.Conn]bool
}

func newApp(certificate func(string) (*tls.Certificate, error)) (*app, error) {
	a := &app{certificate: certificate, received: map[string]*Received{}, open: map[net.Conn]bool{}}
	var err error
	if a.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if a.greeter, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		a.listener.Close()
		return nil, err
	}
	a.accept(a.listener, func(c net.Conn) { a.serve(c) })
	a.accept(a.greeter, func(c net.Conn) {
		if _, err := io.WriteString(c, greeting); err == nil {
			_, _ = io.Copy(c, c)
		}
	})
	return a, nil
}

// greeting is what a server says that speaks first.
const greeting = "hello\n"

func (a *app) accept(l net.Listener, serve func(net.Conn)) {
	a.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			a.open[c] = true
			a.mu.Unlock()
			a.conns.Go(func() {
				serve(c)
				c.Close()
				a.mu.Lock()
				delete(a.open, c)
				a.mu.Unlock()
			})
		}
	})
}

func (a *app) close() {
	a.listener.Close()
	a.greeter.Close()
	a.mu.Lock()
	for c := range a.open {
		c.Close()
	}
	a.mu.Unlock()
	a.conns.Wait()
}

func (a *app) note(ask string, r *Received) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.received[ask] = r
}

// take is what the application got of a question; nil if nothing.
func (a *app) take(ask string) *Received {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.received[ask]
	delete(a.received, ask)
	return r
}

// serve ends when the other side does, or says what nobody understands.
func (a *app) serve(c net.Conn) {
	r := bufio.NewReader(c)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	switch {
	case first[0] == 0x16: // a handshake record (RFC 8446, section 5.1)
		a.serve(tls.Server(buffered{c, r}, &tls.Config{
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
			GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.certificate(h.ServerName) },
		}))
	case first[0] == 0:
		_, _ = io.Copy(c, r)
	default:
		if begin, err := r.Peek(len(http2.ClientPreface)); err == nil && string(begin) == http2.ClientPreface {
			a.http2(c, r)
			return
		}
		a.http1(c, r)
	}
}

// buffered is a connection of which some has been read.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// http1 answers requests without bodies.
func (a *app) http1(c net.Conn, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.SplitN(strings.TrimRight(line, "\r\n"), " ", 3)
		if len(words) != 3 {
			return
		}
		got := &Received{Method: words[0], Path: words[1]}
		for {
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
			if line = strings.TrimRight(line, "\r\n"); line == "" {
				break
			}
			name, value, _ := strings.Cut(line, ":")
			got.Headers = append(got.Headers, policy.Header{Name: strings.ToLower(name), Value: strings.TrimSpace(value)})
		}
		got.Host = strings.Join(got.Header("host"), ",")
		a.note(strings.Join(got.Header(askHeader), ","), got)
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + xds.ReasonHeader + ": forged\r\n\r\n"
		upgrade := got.Header("upgrade")
		if upgrade != nil {
			answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + upgrade[0] + "\r\n\r\n"
		}
		if _, err := io.WriteString(c, answer); err != nil || upgrade != nil {
			return
		}
	}
}

func (a *app) http2(c net.Conn, r *bufio.Reader) {
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return
	}
	f := http2.NewFramer(c, r)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encode := hpack.NewEncoder(&block)
	if f.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = f.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			got := &Received{Method: frame.PseudoValue("method"), Path: frame.PseudoValue("path"), Host: frame.PseudoValue("authority")}
			for _, h := range frame.RegularFields() {
				got.Headers = append(got.Headers, policy.Header{Name: h.Name, Value: h.Value})
			}
			a.note(strings.Join(got.Header(askHeader), ","), got)
			block.Reset()
			for _, h := range []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: xds.ReasonHeader, Value: "forged"}} {
				if encode.WriteField(h) != nil {
					return
				}
			}
			err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		}
		if err != nil {
			return
		}
	}
}
