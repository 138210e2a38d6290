package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNoTrust is returned when a connection, or a token, is asked for without
// anything to know the other side by: no roots and no pin. Nothing was sent.
var ErrNoTrust = errors.New("no root certificates and no pin: refusing to talk to an unknown server")

// ErrOtherEpoch is why a server refuses another that is of before a restore, or after.
var ErrOtherEpoch = errors.New("TLS: the client is of another epoch of this cluster")

// Application protocols of the cluster port (7402).
const (
	ALPNRaft  = "zt-raft"
	ALPNHTTP2 = "h2"
)

// RenewalServerName is the name (SNI) that who renews a certificate calls on the node
// port, so as not to wait behind a fleet that comes back. It proves nothing.
const RenewalServerName = "renewal.ztmesh"

// Trust is what one end of a connection knows and shows. Roots and Certificate
// are asked anew for each connection, so that rotation needs no restart; both
// may be called concurrently.
type Trust struct {
	TrustDomain string
	// Roots returns the trust anchors of the cluster. None: nobody is trusted.
	Roots func() []*x509.Certificate
	// Certificate returns what this side shows. Required on servers and within
	// the cluster; nil on a client that has none yet.
	Certificate func() (*tls.Certificate, error)
	// Epoch is that of the cluster. Within it, each end must be of the same one: a
	// server of before a restore has a certificate that is good, and is of another
	// cluster all the same. Empty: not looked at.
	Epoch string
	Now   func() time.Time
}

// ServerConfig is for the admin and node ports (7400, 7401). A client
// certificate is optional. One that is not a valid identity of the control
// domain ends the handshake; the caller judges by PeerPrincipal which methods
// an identity, or none, may call.
func ServerConfig(t Trust) (*tls.Config, error) {
	return t.server(tls.VerifyClientCertIfGiven, []string{ALPNHTTP2, "http/1.1"}, Server, Admin, Node)
}

// ClusterServerConfig is for the listener of the cluster port (7402): servers
// only, and only zt-raft or h2, which the connection state then names.
func ClusterServerConfig(t Trust) (*tls.Config, error) {
	c, err := t.server(tls.RequireAndVerifyClientCert, []string{ALPNRaft, ALPNHTTP2}, Server)
	if err != nil || t.Epoch == "" {
		return c, err
	}
	forConnection := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName != t.Epoch {
			return nil, ErrOtherEpoch
		}
		return forConnection(hello)
	}
	return c, nil
}

// ClusterClientConfig is for dialling the cluster port of another server with
// the given protocol, ALPNRaft or ALPNHTTP2.
func ClusterClientConfig(t Trust, protocol string) (*tls.Config, error) {
	if t.Certificate == nil {
		return nil, errors.New("TLS: no certificate to show")
	}
	c, err := ClientConfig(t)
	if err != nil {
		return nil, err
	}
	c.NextProtos = []string{protocol}
	c.ServerName = t.Epoch // what the server holds its own against
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol != protocol {
			return errors.New("TLS: the server does not speak " + protocol)
		}
		return verify(cs)
	}
	return c, nil
}

// ClientConfig is for whoever calls a server: administrators, agents, proxies.
// The server must be spiffe://control.<td>/server/..., by a root of t.Roots; the
// host name that is dialled proves nothing and is not looked at.
func ClientConfig(t Trust) (*tls.Config, error) {
	if t.Roots == nil {
		return nil, ErrNoTrust
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	c := t.base()
	c.NextProtos = []string{ALPNHTTP2}
	if t.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.Certificate() }
	}
	// The standard verification compares host names, which these certificates do
	// not have, and takes its roots once. VerifyConnection does the whole of it
	// for SPIFFE IDs instead, on every handshake.
	c.InsecureSkipVerify = true
	known := &anchors{td: t.TrustDomain}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		pool, err := known.pool(t.Roots())
		if err != nil {
			return err
		}
		_, err = verifyServer(cs.PeerCertificates, t.TrustDomain, pool, t.Now())
		return err
	}
	return c, nil
}

// PinnedClientConfig is for first contact, with no more than a token: the
// server must show a chain up to a root with the pinned key, and be a server of
// that root's trust domain. learned (may be nil) is told both, before any byte
// of the caller's is sent; later connections use ClientConfig with them.
func PinnedClientConfig(pin Pin, now func() time.Time, learned func(trustDomain string, root *x509.Certificate)) (*tls.Config, error) {
	if pin.IsZero() {
		return nil, ErrNoTrust
	}
	c := Trust{Now: now}.base()
	c.NextProtos = []string{ALPNHTTP2}
	// As in ClientConfig; the trust anchor is the certificate that the pin names.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		i := slices.IndexFunc(cs.PeerCertificates, func(c *x509.Certificate) bool { return PinOf(c) == pin })
		if i < 0 {
			return errors.New("TLS: the server does not show the pinned root: another cluster, or somebody in between")
		}
		root := cs.PeerCertificates[i]
		td, err := RootTrustDomain(root)
		if err != nil {
			return err
		}
		pool, err := (&anchors{td: td}).pool([]*x509.Certificate{root})
		if err != nil {
			return err
		}
		if _, err := verifyServer(cs.PeerCertificates, td, pool, now()); err != nil {
			return err
		}
		if learned != nil {
			learned(td, root)
		}
		return nil
	}
	return c, nil
}

// PeerPrincipal returns who a client of ServerConfig or ClusterServerConfig is,
// and false if it showed no certificate.
func PeerPrincipal(cs tls.ConnectionState, td string) (Principal, bool, error) {
	if len(cs.PeerCertificates) == 0 {
		return Principal{}, false, nil
	}
	if len(cs.VerifiedChains) == 0 {
		return Principal{}, false, errors.New("TLS: the client's certificate was not verified")
	}
	p, err := principalOf(cs.PeerCertificates[0], td)
	return p, err == nil, err
}

// server returns a config that verifies clients against the roots of the
// moment, and then holds them to the roles.
func (t Trust) server(auth tls.ClientAuthType, protocols []string, roles ...Role) (*tls.Config, error) {
	if t.Roots == nil {
		return nil, ErrNoTrust
	}
	if t.Certificate == nil {
		return nil, errors.New("TLS: no certificate to show")
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	c := t.base()
	c.ClientAuth = auth
	c.NextProtos = protocols
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.Certificate() }
	known := &anchors{td: t.TrustDomain}
	// verified is nil, or the pool that crypto/tls verifies the client against before.
	holdTo := func(verified *x509.CertPool) func(tls.ConnectionState) error {
		return func(cs tls.ConnectionState) error {
			if auth == tls.RequireAndVerifyClientCert && !slices.Contains(protocols, cs.NegotiatedProtocol) {
				return errors.New("TLS: the client names no protocol")
			}
			if len(cs.PeerCertificates) == 0 {
				return nil // only where ClientAuth allows it
			}
			pool, err := known.pool(t.Roots())
			if err != nil {
				return err
			}
			var found [][]*x509.Certificate
			if pool == verified { // the roots have not changed since the handshake began
				found = cs.VerifiedChains
			}
			return verifyClient(cs.PeerCertificates, found, t.TrustDomain, pool, t.Now(), roles...)
		}
	}
	c.VerifyConnection = holdTo(nil)
	perConnection := c.Clone()
	var last atomic.Pointer[tls.Config] // by the newest roots; not changed
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool, err := known.pool(t.Roots())
		if err != nil {
			return nil, err
		}
		if p := last.Load(); p != nil && p.ClientCAs == pool {
			return p, nil
		}
		p := perConnection.Clone()
		p.ClientCAs, p.VerifyConnection = pool, holdTo(pool)
		last.Store(p)
		return p, nil
	}
	return c, nil
}

func (t Trust) check() error {
	if t.Now == nil {
		return errors.New("TLS: no clock")
	}
	return ValidTrustDomain(t.TrustDomain)
}

// base is what all configs share.
func (t Trust) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // on servers; clients have no ClientSessionCache and so resume nothing
		Time:                   t.Now,
	}
}

// Current holds the key pair that a process shows at this moment.
type Current struct {
	mu   sync.Mutex // guards pair
	pair *KeyPair
}

// Set takes p into use for new connections.
func (c *Current) Set(p *KeyPair) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pair = p
}

// Get returns the pair in use; nil before the first Set.
func (c *Current) Get() *KeyPair {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pair
}

// Certificate is a Trust.Certificate.
func (c *Current) Certificate() (*tls.Certificate, error) {
	p := c.Get()
	if p == nil {
		return nil, errors.New("TLS: no certificate yet")
	}
	return p.TLS(), nil
}
