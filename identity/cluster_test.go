package identity_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

const (
	trustDomain = "shop.example"
	serverA     = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	serverB     = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	instance    = "0123456789abcdef0123456789abcdef"
)

// start is when every test begins.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// cluster is a root with a clock that the test moves.
type cluster struct {
	root    *identity.Root
	now     time.Time
	intents []identity.Issuance
	logErr  error
}

func newCluster(t testing.TB, td string) *cluster {
	t.Helper()
	c := &cluster{now: start}
	root, err := identity.NewRoot(td, c.signing())
	if err != nil {
		t.Fatal(err)
	}
	c.root = root
	return c
}

func (c *cluster) clock() time.Time { return c.now }

func (c *cluster) signing() identity.Signing {
	return identity.Signing{Now: c.clock, Log: func(i identity.Issuance) error {
		if c.logErr != nil {
			return c.logErr
		}
		c.intents = append(c.intents, i)
		return nil
	}}
}

func (c *cluster) authority(t testing.TB, id string) *identity.Authority {
	t.Helper()
	key := newKey(t)
	cert, err := c.root.SignIntermediate(key.Public(), id)
	if err != nil {
		t.Fatal(err)
	}
	pair := newPair(t, key, cert)
	a, err := identity.NewAuthority(c.root.Certificate(), pair, id, c.signing())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (c *cluster) server(t testing.TB, id string) *identity.KeyPair {
	t.Helper()
	p, err := c.authority(t, id).MakeServer()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *cluster) admin(t testing.TB, name string) *identity.KeyPair {
	t.Helper()
	key := newKey(t)
	chain, err := c.root.IssueAdmin(key.Public(), name)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, key, chain...)
}

func (c *cluster) node(t testing.TB, id string) *identity.KeyPair {
	t.Helper()
	key := newKey(t)
	chain, err := c.root.IssueNode(key.Public(), id)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, key, chain...)
}

func (c *cluster) roots() []*x509.Certificate { return []*x509.Certificate{c.root.Certificate()} }

// trust is that of a process of the cluster which shows pair (nil: nothing).
func (c *cluster) trust(pair *identity.KeyPair) identity.Trust {
	t := identity.Trust{TrustDomain: c.root.TrustDomain(), Roots: c.roots, Now: c.clock}
	if pair != nil {
		t.Certificate = func() (*tls.Certificate, error) { return pair.TLS(), nil }
	}
	return t
}

func newKey(t testing.TB) identity.PrivateKey {
	t.Helper()
	k, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPair(t testing.TB, key identity.PrivateKey, chain ...*x509.Certificate) *identity.KeyPair {
	t.Helper()
	p, err := identity.NewKeyPair(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rogue is a root whose key the test holds, so that it can sign what the
// package never would. The package takes it for a good root of td.
type rogue struct{ pair *identity.KeyPair }

func newRogue(t *testing.T, td string, change func(*x509.Certificate)) rogue {
	t.Helper()
	tmpl := authorityTemplate()
	tmpl.URIs = []*url.URL{{Scheme: "spiffe", Host: td}}
	if change != nil {
		change(tmpl)
	}
	key := newKey(t)
	return rogue{newPair(t, key, create(t, tmpl, tmpl, key.Public(), key))}
}

func (r rogue) cert() *x509.Certificate { return r.pair.Leaf() }

// leaf signs what the package would issue for uri to both sides of a
// connection, after change.
func (r rogue) leaf(t *testing.T, uri string, change func(*x509.Certificate)) *identity.KeyPair {
	t.Helper()
	return signLeaf(t, r.pair, uri, change)
}

func (r rogue) intermediate(t *testing.T, name string) *identity.KeyPair {
	t.Helper()
	tmpl := authorityTemplate()
	tmpl.Subject = pkix.Name{CommonName: name}
	key := newKey(t)
	return newPair(t, key, create(t, tmpl, r.cert(), key.Public(), r.pair.Key))
}

// signLeaf signs with any authority; the chain is the leaf and that authority's.
func signLeaf(t *testing.T, by *identity.KeyPair, uri string, change func(*x509.Certificate)) *identity.KeyPair {
	t.Helper()
	tmpl := &x509.Certificate{
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{parseURL(t, uri)},
	}
	if change != nil {
		change(tmpl)
	}
	key := newKey(t)
	return newPair(t, key, append([]*x509.Certificate{create(t, tmpl, by.Leaf(), key.Public(), by.Key)}, by.Chain...)...)
}

func authorityTemplate() *x509.Certificate {
	return &x509.Certificate{
		Subject:  pkix.Name{CommonName: "authority"},
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
}

func create(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(1)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = start.Add(-time.Hour), start.Add(24*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// wantErr fails unless err says want; an empty want wants no error.
func wantErr(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("error %q, want none", err)
	case want != "" && err == nil:
		t.Errorf("no error, want one that says %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("error %q, want one that says %q", err, want)
	}
}
