package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/identity"
)

// noteConnection puts a connection on record that was refused before any call: who is
// empty where nobody knows.
func (s *Server) noteConnection(who, port string, from net.Addr, code codes.Code, reason string) {
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		host = ""
	}
	s.refusals.Add(refusals.Refusal{Who: who, What: port, From: host, Code: code.String(), Reason: reason})
}

// noteForeign puts on record that a proxy asked for what is another's.
func (s *Server) noteForeign(ctx context.Context, instance, typeURL, name string) {
	r := refusals.Refusal{
		Who: "spiffe://control." + s.td + "/" + string(identity.Node) + "/" + instance, What: "ADS " + typeURL[strings.LastIndexByte(typeURL, '.')+1:],
		Code: codes.PermissionDenied.String(), Reason: "asked for " + name + ", which is not its own",
	}
	if p, ok := grpcpeer.FromContext(ctx); ok {
		r.From, _, _ = net.SplitHostPort(p.Addr.String())
	}
	s.refusals.Add(r)
}

// tellsWho tells whether a handshake has failed for who the other side is, or is not: a
// certificate that is not good here. What else can go wrong is noise.
func tellsWho(err error) bool {
	var bad *tls.CertificateVerificationError
	var role *identity.RoleError
	return errors.As(err, &bad) || errors.As(err, &role) || strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "remote error") ||
		errors.Is(err, identity.ErrOtherEpoch)
}

// noting are credentials that put on record whose handshakes they refuse.
func (s *Server) noting(port string, c credentials.TransportCredentials) credentials.TransportCredentials {
	return &notingCredentials{c, s, port}
}

type notingCredentials struct {
	credentials.TransportCredentials
	s    *Server
	port string
}

func (n *notingCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := n.TransportCredentials.ServerHandshake(c)
	if err != nil && tellsWho(err) {
		n.s.noteConnection("nobody", n.port, c.RemoteAddr(), codes.Unauthenticated, err.Error())
	}
	return conn, info, err
}

func (n *notingCredentials) Clone() credentials.TransportCredentials {
	return &notingCredentials{n.TransportCredentials.Clone(), n.s, n.port}
}

// handshakes is where an http.Server writes what went wrong with its connections. It has
// no other way to tell of a handshake that it refused:
//
//	http: TLS handshake error from 192.0.2.7:4711: tls: failed to verify certificate: ...
type handshakes struct{ s *Server }

func (h handshakes) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	h.s.cfg.Logger.Debug("admin port", "error", line) // what strangers do is nothing to act on
	if rest, ok := strings.CutPrefix(line, "http: TLS handshake error from "); ok {
		from, reason, _ := strings.Cut(rest, ": ")
		if addr, err := net.ResolveTCPAddr("tcp", from); err == nil && tellsWho(errors.New(reason)) {
			h.s.noteConnection("nobody", "admin port", addr, codes.Unauthenticated, reason)
		}
	}
	return len(b), nil
}
