package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/identity"
)

// Credential is an administrator's, as ztd init writes it.
type Credential struct {
	TrustDomain string
	Roots       []*x509.Certificate
	Pair        *identity.KeyPair
}

// LoadCredential reads the current context of a contexts file.
func LoadCredential(path string) (*Credential, error) {
	contexts, err := identity.LoadContexts(path)
	if err != nil {
		return nil, err
	}
	x, ok := contexts.Find("")
	if !ok {
		return nil, errors.New("no context is in use")
	}
	roots, err := identity.ParsePEM([]byte(x.Roots))
	if err != nil {
		return nil, err
	}
	pair, err := identity.ParseKeyPair([]byte(string(x.Key) + x.Certificate))
	return &Credential{x.TrustDomain, roots, pair}, err
}

// TLS is how to connect, showing pair; nil shows nothing.
func (c *Credential) TLS(pair *identity.KeyPair) (*tls.Config, error) {
	trust := identity.Trust{TrustDomain: c.TrustDomain, Roots: func() []*x509.Certificate { return c.Roots }, Now: time.Now}
	if pair != nil {
		trust.Certificate = func() (*tls.Certificate, error) { return pair.TLS(), nil }
	}
	return identity.ClientConfig(trust)
}

// Connect makes a connection to a server's port that finds a server again soon after
// it was restarted.
func Connect(address string, config *tls.Config, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, append(more,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: 2 * time.Second,
		}))...)
}
