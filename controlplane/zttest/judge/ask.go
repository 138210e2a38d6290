package judge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sync/errgroup"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/xds"
)

// forged is what clients write into headers that only proxies may write.
const forged = "forged"

// Hearing is one workload of a spec on a Proxy.
type Hearing struct {
	*Spec
	proxy    *Proxy
	workload spec.Ref
	egress   map[spec.Ref]uint32 // where external services are called
	tcpCalls map[spec.Ref]bool   // those that are tcp
}

// Hear gives the Envoy a workload of a spec.
func (p *Proxy) Hear(s *Spec, ref spec.Ref) (*Hearing, error) {
	conf, err := s.config(p.court, ref)
	if err != nil {
		return nil, err
	}
	p.court.endpoints(conf)
	if err := p.load(conf, p.court.pki.trust(s.Index.Trust())); err != nil {
		return nil, err
	}
	h := &Hearing{Spec: s, proxy: p, workload: ref, egress: map[spec.Ref]uint32{}, tcpCalls: map[spec.Ref]bool{}}
	w, _ := s.Index.Workload(ref)
	for _, d := range s.Docs {
		if e := d.GetService().GetExternal(); e != nil && e.GetProtocol() != policy.TCP {
			h.egress[d.Ref()] = xds.EgressPort
		}
	}
	for _, call := range w.TCPCalls {
		if s.external(call.Service) != nil {
			h.egress[call.Service], h.tcpCalls[call.Service] = call.LocalPort, true
		}
	}
	return h, nil
}

// Answer is what came of a question.
type Answer struct {
	mesh.Answer
	Reset         bool // status 0: HTTP/2 was told of an error
	Received      *Received
	Asked         bool // the external authorizer was asked
	Line          line
	Before, After time.Time

	number uint64
	log    string // the key of Line, "" if there is none to wait for
}

// atOnce is how many connections of a hearing are in use.
const atOnce = 8

// Ask sends questions, those of one caller, port and protocol on one connection.
func (h *Hearing) Ask(questions []Question) ([]Answer, error) {
	answers := make([]Answer, len(questions))
	groups := map[string][]int{}
	for i, q := range questions {
		key := fmt.Sprint(q.Protocol, " ", q.CallerID, " ", q.Service, " ", q.Port, " ", q.Plaintext, " ", q.Source)
		if h.alone(q) {
			key = fmt.Sprint(i)
		}
		groups[key] = append(groups[key], i)
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, list := range groups {
		g.Go(func() error {
			var c client
			defer c.close()
			for _, i := range list {
				if err := h.ask(&c, questions[i], &answers[i]); err != nil {
					return fmt.Errorf("%s: %w", questions[i], err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return answers, h.collect(questions, answers)
}

// alone tells whether a question has a connection of its own: it ends it, or the
// log knows it by nothing else.
func (h *Hearing) alone(q Question) bool {
	return q.TCP || q.Upgrade != "" || h.external(q.Service) != nil || h.Slow(q)
}

// collect adds what the log and those behind the proxy say.
func (h *Hearing) collect(questions []Question, answers []Answer) error {
	for i := range answers {
		a, ask := &answers[i], strconv.FormatUint(answers[i].number, 10)
		a.Received = h.proxy.court.app.take(ask)
		a.Asked = h.proxy.court.authorizer.take(ask)
		if a.Received == nil && a.Status != 401 && !(a.Status == 0 && h.silent(questions[i]) == nil) {
			continue
		}
		if err := await("an entry of the access log", func() (ok bool, err error) {
			if a.Line, ok = h.proxy.log.find(a.log); !ok && a.Status == 0 {
				a.Line, ok = h.proxy.log.find(a.From)
			}
			return ok, nil
		}); err != nil {
			return fmt.Errorf("%s: %w: %+v", questions[i], err, *a)
		}
	}
	h.proxy.log.forget()
	return nil
}

// client is a connection that is used again and again.
type client struct {
	conn net.Conn
	h2   *mesh.HTTP2
	used bool
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
	}
	*c = client{}
}

func (h *Hearing) ask(c *client, q Question, a *Answer) error {
	court := h.proxy.court
	a.number = court.asks.Add(1)
	if q.Denied {
		court.authorizer.deny(strconv.FormatUint(a.number, 10))
	}
	a.Before = time.Now()
	err := h.exchange(c, q, a)
	if err != nil && c.used && !errors.Is(err, os.ErrDeadlineExceeded) {
		// A connection that has served may have been closed since.
		c.close()
		*a = Answer{number: a.number, Before: a.Before}
		err = h.exchange(c, q, a)
	}
	a.After = time.Now()
	if err == nil && a.Status != 0 && !a.Last {
		c.used = true
		return nil
	}
	c.close()
	var stream http2.StreamError
	var connection http2.ConnectionError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errCannotAsk):
		return err
	case errors.As(err, &stream), errors.As(err, &connection):
		a.Reset = true
	case err != nil:
		a.Refused = strings.Contains(err.Error(), "remote error: tls:")
	}
	return nil
}

// errCannotAsk is for what is the test's own fault.
var errCannotAsk = errors.New("the question cannot be asked")

// exchange sends a question and reads its answer. An error is the connection's.
func (h *Hearing) exchange(c *client, q Question, a *Answer) error {
	if c.conn == nil {
		if err := h.dial(c, q); err != nil {
			return err
		}
	}
	if err := c.conn.SetDeadline(time.Now().Add(mesh.Patience)); err != nil {
		return err
	}
	a.log = strconv.FormatUint(a.number, 10)
	defer func() { a.From = c.conn.LocalAddr().String() }()
	if h.external(q.Service) != nil {
		a.log = c.conn.LocalAddr().String()
	}
	var err error
	switch {
	case q.TCP:
		err = h.echo(c.conn, q, a)
	case q.Protocol == HTTP2:
		if c.h2 == nil {
			if c.h2, err = mesh.NewHTTP2(c.conn); err != nil {
				return err
			}
		}
		a.Answer, err = c.h2.Do(q.Upgrade == "", h.http2(q, a.number))
	default:
		a.Answer, err = mesh.Exchange(c.conn, h.http1(q, a.number))
	}
	return err
}

// dial opens a connection as the caller, from where it calls.
func (h *Hearing) dial(c *client, q Question) error {
	d := net.Dialer{Timeout: mesh.Patience}
	if q.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(q.Source, 0))
	}
	at, outbound := h.egress[q.Service]
	if !outbound {
		p, _ := h.port(q.Request.Request)
		at = p.Number
	}
	conn, err := d.DialContext(h.proxy.court.t.Context(), "tcp", h.proxy.at(at))
	if err != nil || outbound || q.Plaintext {
		c.conn = conn
		return err
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true,                      //nolint:gosec // who serves is another test's subject
		CurvePreferences:   []tls.CurveID{tls.X25519}, // the cheapest
	}
	switch q.Protocol {
	case HTTP1:
		config.NextProtos = []string{"http/1.1"}
	case HTTP2:
		config.NextProtos = []string{"h2"}
	}
	if q.CallerID != "" {
		cert, err := h.proxy.court.pki.caller(h.Index.Trust(), q.CallerID)
		if err != nil {
			conn.Close()
			return fmt.Errorf("%w: %w", errCannotAsk, err)
		}
		config.Certificates = []tls.Certificate{*cert}
	}
	encrypted := tls.Client(conn, config)
	ctx, cancel := context.WithTimeout(h.proxy.court.t.Context(), mesh.Patience)
	defer cancel()
	if err := encrypted.HandshakeContext(ctx); err != nil {
		conn.Close()
		return err
	}
	c.conn = encrypted
	return nil
}

// alert is the first byte of what a TLS server says to who speaks something else
// (RFC 8446, section 5.1).
const alert = 0x15

// echo is status 200 if the application can be talked to.
func (h *Hearing) echo(c net.Conn, q Question, a *Answer) error {
	sent := "\x00hello\n"
	if p, _ := h.port(q.Request.Request); p.ServerFirst {
		sent = greeting
	} else if _, err := io.WriteString(c, sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if q.Plaintext && got[0] == alert {
		return io.EOF
	}
	if string(got) != sent {
		return fmt.Errorf("%w: %q came back of %q", errCannotAsk, got, sent)
	}
	a.Status = 200
	return nil
}

// authority is the main host of the port unless the request names one.
func (h *Hearing) authority(q Question) string {
	if q.Authority != "" {
		return q.Authority
	}
	if d := h.external(q.Service); d != nil {
		return d.GetService().GetExternal().GetHosts()[0]
	}
	p, _ := h.port(q.Request.Request)
	w, _ := h.Index.Workload(q.Service)
	return w.Hosts(p.Name)[0]
}

// headers are those of the request, and such as only proxies may write.
func (h *Hearing) headers(q Question, number uint64) []policy.Header {
	n := strconv.FormatUint(number, 10)
	out := []policy.Header{
		{Name: "x-request-id", Value: n},
		{Name: askHeader, Value: n},
		{Name: "x-forwarded-client-cert", Value: "Hash=00;URI=spiffe://" + h.Index.TrustDomain() + "/ns/" + forged + "/sa/x"},
	}
	for _, name := range h.Index.Strip() {
		out = append(out, policy.Header{Name: name, Value: forged})
	}
	out = append(out, q.Headers...)
	for _, value := range h.authorization(&q, number) {
		out = append(out, policy.Header{Name: "authorization", Value: value})
	}
	return out
}

func (h *Hearing) http1(q Question, number uint64) string {
	var lines []string
	for _, f := range h.headers(q, number) {
		lines = append(lines, f.Name+": "+f.Value)
	}
	if q.Upgrade != "" {
		lines = append(lines, "Connection: Upgrade", "Upgrade: "+q.Upgrade)
	}
	target := q.Path
	if q.Target != "" {
		target = q.Target
	}
	return mesh.Request(q.Method, h.authority(q), target, lines...)
}

func (h *Hearing) http2(q Question, number uint64) []hpack.HeaderField {
	method := q.Method
	if q.Upgrade != "" {
		method = "CONNECT" // extended (RFC 8441)
	}
	fields := []hpack.HeaderField{
		{Name: ":method", Value: method},
		{Name: ":scheme", Value: "https"},
		{Name: ":authority", Value: h.authority(q)},
		{Name: ":path", Value: q.Path},
	}
	if q.Upgrade != "" {
		fields = append(fields, hpack.HeaderField{Name: ":protocol", Value: q.Upgrade})
	}
	for _, f := range h.headers(q, number) {
		fields = append(fields, hpack.HeaderField{Name: f.Name, Value: f.Value})
	}
	return fields
}
