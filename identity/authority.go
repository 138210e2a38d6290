package identity

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Authority issues for one server: it holds the intermediate whose key never
// leaves that server.
type Authority struct {
	td, server string
	s          Signing

	mu   sync.Mutex // guards root and pair; never held while signing
	root *x509.Certificate
	pair *KeyPair
}

// NewAuthority issues with intermediate, a key pair whose first certificate was
// signed by root for the server id.
func NewAuthority(root *x509.Certificate, intermediate *KeyPair, server string, s Signing) (*Authority, error) {
	td, err := RootTrustDomain(root)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	a := &Authority{td: td, server: server, s: s}
	return a, a.Replace(root, intermediate)
}

// Replace takes a renewed intermediate into use. What was issued stays valid.
func (a *Authority) Replace(root *x509.Certificate, intermediate *KeyPair) error {
	td, err := RootTrustDomain(root)
	switch {
	case err != nil:
		return fmt.Errorf("authority: %w", err)
	case td != a.td:
		return fmt.Errorf("authority: the root is for trust domain %q", td)
	}
	c := intermediate.Leaf()
	if err := c.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("authority: the intermediate is not signed by the root: %w", err)
	}
	if !c.IsCA || c.Subject.CommonName != a.server {
		return errors.New("authority: the intermediate is not that of this server")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.root, a.pair = root, intermediate
	return nil
}

// Intermediate returns the key pair in use.
func (a *Authority) Intermediate() *KeyPair {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pair
}

// TrustDomain returns the trust domain that is issued for.
func (a *Authority) TrustDomain() string { return a.td }

// IssueWorkload certifies pub as the workload with SPIFFE ID uri, of the trust
// domain itself, for ttl (up to 24 h, and never beyond the intermediate). The
// chain is the leaf and the intermediate.
func (a *Authority) IssueWorkload(pub crypto.PublicKey, uri string, ttl time.Duration) ([]*x509.Certificate, error) {
	if _, _, err := ParseWorkloadID(uri, a.td); err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if ttl <= 0 || ttl > MaxWorkloadLife {
		return nil, fmt.Errorf("issue %s: a life of %v is not within 24h", uri, ttl)
	}
	chain, _, err := a.issue("workload", uri, pub, ttl)
	return chain, err
}

// IssueServer certifies pub as this server, until the intermediate ends. The
// chain is the leaf, the intermediate and the root: who has only a pin needs to
// see the root.
func (a *Authority) IssueServer(pub crypto.PublicKey) ([]*x509.Certificate, error) {
	chain, root, err := a.issue(string(Server), ServerID(a.td, a.server), pub, ServerLife)
	if err != nil {
		return nil, err
	}
	return append(chain, root), nil
}

func (a *Authority) issue(kind, uri string, pub crypto.PublicKey, life time.Duration) (chain []*x509.Certificate, root *x509.Certificate, err error) {
	t, err := leaf(uri, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, nil, fmt.Errorf("issue: %w", err)
	}
	a.mu.Lock()
	pair, root := a.pair, a.root
	a.mu.Unlock()
	c, err := a.s.sign(kind, uri, t, pub, life, issuer{pair.Leaf(), pair.Key})
	if err != nil {
		return nil, nil, err
	}
	return []*x509.Certificate{c, pair.Leaf()}, root, nil
}

// MakeSVID makes a key here and certifies it as the workload: for an Envoy
// without an agent, which gets both by SDS over its own stream.
func (a *Authority) MakeSVID(uri string, ttl time.Duration) (*KeyPair, error) {
	return makePair(func(pub crypto.PublicKey) ([]*x509.Certificate, error) { return a.IssueWorkload(pub, uri, ttl) })
}

// MakeServer makes a key here and certifies it as this server.
func (a *Authority) MakeServer() (*KeyPair, error) { return makePair(a.IssueServer) }

func makePair(issue func(crypto.PublicKey) ([]*x509.Certificate, error)) (*KeyPair, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	chain, err := issue(key.Public())
	if err != nil {
		return nil, err
	}
	return NewKeyPair(key, chain)
}
