package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/xds"
)

// A call is one request and what must come of it.
type call struct {
	caller string // a workload; "" is somebody outside the mesh
	what   string // for people
	send   func(context.Context) answer
	status string // "200", "OK", "echoed", "closed", ...
	reason string // "grant:shop/web-reads-catalog", "default-deny", ...
}

// answer is what came back.
type answer struct {
	status, reason string
	id             string // of the request, by which the proxies log it
}

const ledgerPort = 7000 // of tcpCalls

// callTimeout bounds one request.
const callTimeout = 10 * time.Second

// http makes a call by HTTP, through the caller's proxy to service, "orders.shop".
func (d *demo) http(caller, method, service, path, status, reason string) call {
	return call{caller, method + " " + service + path, func(ctx context.Context) answer {
		return sendHTTP(ctx, "http://"+d.proxy(caller).out(xds.EgressPort)+path, method, service+".mesh")
	}, status, reason}
}

func sendHTTP(ctx context.Context, url, method, host string) answer {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{status: err.Error()}
	}
	a := answer{id: newRequestID()}
	req.Host = host
	req.Header.Set("X-Request-Id", a.id)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		a.status = "closed"
		return a
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		a.status = "closed"
		return a
	}
	a.status, a.reason = strconv.Itoa(resp.StatusCode), reasonOf(resp.Header.Get(xds.ReasonHeader))
	return a
}

// named is the policy in Envoy's words for a denial.
var named = regexp.MustCompile(`^rbac_access_denied_matched_policy\[(.+)\]$`)

func reasonOf(header string) string { return named.ReplaceAllString(header, "$1") }

func newRequestID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// grpc makes a call of grpc.health.v1.Health to the catalog.
func (d *demo) grpc(caller, method, status, reason string) call {
	return call{caller, "GRPC catalog.shop Health/" + method, func(ctx context.Context) answer {
		return sendGRPC(ctx, d.proxy(caller).out(xds.EgressPort), method)
	}, status, reason}
}

func sendGRPC(ctx context.Context, proxy, method string) answer {
	a := answer{id: newRequestID()}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "x-request-id", a.id), callTimeout)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+proxy,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("catalog.shop.mesh"))
	if err != nil {
		return answer{status: err.Error()}
	}
	defer conn.Close()
	var header, trailer metadata.MD
	client, req := healthv1.NewHealthClient(conn), &healthv1.HealthCheckRequest{}
	switch method {
	case "Watch":
		var stream grpc.ServerStreamingClient[healthv1.HealthCheckResponse]
		if stream, err = client.Watch(ctx, req); err == nil {
			_, err = stream.Recv()
			header, _ = stream.Header()
			trailer = stream.Trailer()
		}
	default:
		_, err = client.Check(ctx, req, grpc.Header(&header), grpc.Trailer(&trailer))
	}
	a.status = status.Code(err).String()
	for _, md := range []metadata.MD{header, trailer} {
		for _, v := range md.Get(xds.ReasonHeader) {
			a.reason = reasonOf(v)
		}
	}
	return a
}

// tcp makes a call to the ledger, by the caller's local port for it.
func (d *demo) tcp(caller, status, reason string) call {
	return call{caller, "TCP ledger.bank", func(ctx context.Context) answer {
		conn, err := dial(ctx, d.proxy(caller).out(ledgerPort))
		if err != nil {
			return answer{status: "closed", reason: "no-grant"} // the caller's own proxy has no such port
		}
		defer conn.Close()
		if err := roundTrip(conn); err != nil {
			return answer{status: "closed", reason: "gate"}
		}
		return answer{status: "echoed", reason: "gate"}
	}, status, reason}
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: callTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(callTimeout))
}

// roundTrip sends a line and reads it back.
func roundTrip(rw io.ReadWriter) error {
	sent := []byte("booked\n")
	if _, err := rw.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(rw, got); err != nil {
		return err
	}
	if string(got) != string(sent) {
		return fmt.Errorf("sent %q and received %q", sent, got)
	}
	return nil
}

// stranger dials the proxy of orders past the mesh: in plain text, or with TLS and
// the certificates of config.
func (d *demo) stranger(what string, config func() (*tls.Config, error)) call {
	return call{"", "GET orders.shop/orders/7 " + what, func(ctx context.Context) answer {
		conn, err := dial(ctx, d.proxy("shop/orders").address+":8443")
		if err != nil {
			return answer{status: err.Error()}
		}
		defer conn.Close()
		if config != nil {
			c, err := config()
			if err != nil {
				return answer{status: err.Error()}
			}
			conn = tls.Client(conn, c)
		}
		_, err = io.WriteString(conn, "GET /orders/7 HTTP/1.1\r\nHost: orders.shop.mesh\r\n\r\n")
		if n, rerr := conn.Read(make([]byte, 1)); err == nil && n > 0 {
			return answer{status: "answered"}
		} else {
			err = errors.Join(err, rerr)
		}
		var slow net.Error
		if errors.As(err, &slow) && slow.Timeout() {
			return answer{status: "open"}
		}
		return answer{status: "closed", reason: "transport"}
	}, "closed", "transport"}
}

// send makes calls one after the other and prints them as a table. What the
// answers do not say, the access logs of the proxies do.
func (d *demo) send(ctx context.Context, calls ...call) error {
	answers := make([]answer, len(calls))
	for i, c := range calls {
		answers[i] = c.send(ctx)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range answers {
		if a := &answers[i]; a.reason == "" && a.id != "" {
			reason, err := d.logged(ctx, a.id)
			if err != nil {
				return err
			}
			a.reason = reason
		}
	}
	lines := make([]line, len(calls))
	for i, c := range calls {
		caller := c.caller
		if caller == "" {
			caller = "(stranger)"
		}
		a := answers[i]
		lines[i] = line{
			cells: []string{caller, c.what, a.status, c.status, a.reason},
			ok:    a.status == c.status && a.reason == c.reason,
			id:    a.id,
		}
	}
	d.record("CALLER,REQUEST,STATUS,EXPECTED,REASON", lines)
	return nil
}

// logged is why a request was answered as it was, in the words of the proxy that
// decided: the callee's, or the caller's own if it went no further. A request that
// no proxy has logged within some seconds has no reason.
func (d *demo) logged(ctx context.Context, id string) (string, error) {
	deadline, tick := time.After(callTimeout), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		reason := ""
		for _, p := range d.proxies {
			lines, err := zttest.ReadAccess(p.Log())
			if err != nil {
				return "", err
			}
			for _, l := range lines {
				switch {
				case l.RequestID != id:
				case l.Inbound() && l.Matched != "":
					return l.Matched, nil
				case !l.Inbound() && l.Details != "" && !strings.HasPrefix(l.Details, "via_upstream"):
					reason = l.Details
				}
			}
		}
		if reason != "" {
			return reason, nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return "(not logged)", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}
