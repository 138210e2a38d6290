package policybench_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
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

// round asks for a time and says how many requests were answered.
func (l load) round(d time.Duration) (int, error) {
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

// series is what the rounds gave.
type series []float64

// quartiles are the 25th, 50th and 75th percentile.
func (s series) quartiles() (low, median, high float64) {
	s = slices.Clone(s)
	slices.Sort(s)
	at := func(q float64) float64 {
		i := q * float64(len(s)-1)
		below := int(i)
		above := min(below+1, len(s)-1)
		return s[below] + (i-float64(below))*(s[above]-s[below])
	}
	return at(0.25), at(0.5), at(0.75)
}

func (s series) String() string {
	low, median, high := s.quartiles()
	return fmt.Sprintf("%.4g [%.4g, %.4g]", median, low, high)
}

// over is the ratio to other of each round, which both have gone through one after
// the other.
func (s series) over(other series) series {
	out := make(series, len(s))
	for i := range s {
		out[i] = s[i] / other[i]
	}
	return out
}

// figure prints a line that `make bench` collects: the median of the rounds.
func figure(w io.Writer, name string, s series, sense string, goal float64) {
	_, median, _ := s.quartiles()
	verdict := "met"
	if sense == "<=" && median > goal || sense == ">=" && median < goal {
		verdict = "short"
	}
	fmt.Fprintf(w, "figure %s %.3f x goal %s %g %s\n", name, median, sense, goal, verdict)
	fmt.Fprintf(w, "%s: %s over %d rounds\n", name, s, len(s))
}
