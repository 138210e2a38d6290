package policybench_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
)

// request is one request of HTTP/1.1 and the status that it gets.
type request struct {
	text   []byte
	status int
}

// wire is a request without a body.
func wire(status int, method, host, path string, headers ...string) request {
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for _, h := range headers {
		text.WriteString(h + "\r\n")
	}
	text.WriteString("\r\n")
	return request{text.Bytes(), status}
}

// client is a connection that is kept alive, and what goes over it, in turn. It
// belongs to one goroutine at a time.
type client struct {
	conn     net.Conn
	in       *bufio.Reader
	requests []request
	next     int
}

// dial opens a connection, in mTLS as whose certificate it is; nil: in plaintext.
func dial(address string, as *identity.KeyPair, requests []request) (*client, error) {
	conn, err := net.DialTimeout("tcp", address, mesh.Patience)
	if err != nil {
		return nil, err
	}
	if as != nil {
		conn = tls.Client(conn, &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{*as.TLS()},
			InsecureSkipVerify: true, //nolint:gosec // who serves is known: it was started here
		})
	}
	return &client{conn: conn, in: bufio.NewReader(conn), requests: requests}, nil
}

// ask sends the next request and reads its answer, which must be the expected.
func (c *client) ask() error {
	r := &c.requests[c.next%len(c.requests)]
	c.next++
	if _, err := c.conn.Write(r.text); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 || string(line[9:12]) != strconv.Itoa(r.status) {
		return fmt.Errorf("%q is answered by %q", r.text, line)
	}
	length := 0
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("content-length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	_, err = c.in.Discard(length)
	return err
}

// load is clients that ask all at once, each one request after the other.
type load []*client

// ask asks for a time and says how many requests were answered.
func (l load) ask(d time.Duration) (int, error) {
	counts, errs := make([]int, len(l)), make([]error, len(l))
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for i, c := range l {
		wg.Go(func() {
			for errs[i] == nil && time.Now().Before(end) {
				if errs[i] = c.ask(); errs[i] == nil {
					counts[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return sum, errors.Join(errs...)
}

func (l load) close() {
	for _, c := range l {
		c.conn.Close()
	}
}
