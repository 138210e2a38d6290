package mesh

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// Dial opens a connection to a port as whoever holds the certificate; nil shows
// none. It may be called from several goroutines, and so returns its error.
//
// With TLS 1.3 it ends before the other side has judged the certificate.
func (in *Instance) Dial(port uint32, as *tls.Certificate, alpn ...string) (net.Conn, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: alpn,
		InsecureSkipVerify: true, //nolint:gosec // who serves is another test's subject
	}
	if as != nil {
		config.Certificates = []tls.Certificate{*as}
	}
	ctx, cancel := context.WithTimeout(in.m.context(), Patience)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", in.At(port))
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(Patience))
}

// Silent is the status of an answer that did not come in time.
const Silent = -1

// Answer is what came back of a request.
type Answer struct {
	Status       int    // 0: the connection was closed without an answer
	Reason, Body string // Reason is xds.ReasonHeader
	Refused      bool   // with status 0: TLS refused the client
	From         string // this end of the connection: "peer" in the access log
	Last         bool   // the other side closes the connection; HTTP/1.1 only
}

// Raw sends bytes on a new connection and reads one answer. It may be called from
// several goroutines.
func (in *Instance) Raw(port uint32, as *tls.Certificate, request string) Answer {
	c, err := in.Dial(port, as, "http/1.1")
	if err != nil {
		return in.Ended(err)
	}
	defer c.Close()
	a, err := Exchange(c, request)
	if err != nil {
		a = in.Ended(err)
	}
	a.From = c.LocalAddr().String()
	return a
}

// Ended is the answer that an error of Dial, or of its connection, stands for.
func (in *Instance) Ended(err error) Answer {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Answer{Status: Silent}
	}
	return Answer{Refused: strings.Contains(err.Error(), "remote error: tls:")}
}

// Exchange sends a request as it stands and reads one answer, of HTTP/1.1.
func Exchange(c net.Conn, request string) (Answer, error) {
	if _, err := io.WriteString(c, request); err != nil {
		return Answer{}, err
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	a := Answer{Status: resp.StatusCode, Reason: resp.Header.Get(xds.ReasonHeader), Last: resp.Close}
	if resp.ContentLength < 0 && resp.TransferEncoding == nil {
		return a, nil // the proxy refuses, and takes its time to close
	}
	body, err := io.ReadAll(resp.Body)
	a.Body = string(body)
	return a, err
}

// Request is a request for a host; the path stands as it is.
func Request(method, host, path string, headers ...string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n%s\r\n", method, path, host,
		strings.Join(append(headers, ""), "\r\n"))
}

// Call asks through the instance's own Envoy, as its application does. It may be
// called from several goroutines.
func (in *Instance) Call(client *http.Client, method, host, path string) (Answer, error) {
	req, err := http.NewRequestWithContext(in.m.context(), method, "http://"+in.At(xds.EgressPort)+path, nil)
	if err != nil {
		return Answer{}, err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return Answer{Status: resp.StatusCode, Reason: resp.Header.Get(xds.ReasonHeader), Body: string(body)}, err
}
