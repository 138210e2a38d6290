package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/ztmesh/ztmesh/identity"
)

const web = "spiffe://shop.example/ns/shop/sa/web"

// Every certificate that is issued, field by field, and as go-spiffe sees it.
func TestIssued(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	key := newKey(t)
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	client := both[:1]
	for _, tt := range []struct {
		kind  string
		uri   string
		issue func() ([]*x509.Certificate, error)
		life  time.Duration
		usage []x509.ExtKeyUsage
		chain int
	}{
		{"workload", web, func() ([]*x509.Certificate, error) { return a.IssueWorkload(key.Public(), web, 2*time.Hour) }, 2 * time.Hour, both, 2},
		{"server", identity.ServerID(trustDomain, serverA), func() ([]*x509.Certificate, error) { return a.IssueServer(key.Public()) }, 7 * 24 * time.Hour, both, 3},
		{"node", identity.NodeID(trustDomain, instance), func() ([]*x509.Certificate, error) { return c.root.IssueNode(key.Public(), instance) }, 30 * 24 * time.Hour, client, 1},
		{"admin", identity.AdminID(trustDomain, "ada"), func() ([]*x509.Certificate, error) { return c.root.IssueAdmin(key.Public(), "ada") }, 365 * 24 * time.Hour, client, 1},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			chain, err := tt.issue()
			if err != nil {
				t.Fatal(err)
			}
			leaf := chain[0]
			if uri, err := identity.URI(leaf); err != nil || uri != tt.uri {
				t.Errorf("URI %q, %v, want %q", uri, err, tt.uri)
			}
			if len(chain) != tt.chain {
				t.Errorf("chain of %d, want %d", len(chain), tt.chain)
			}
			if !leaf.NotBefore.Equal(start.Add(-time.Minute)) || !leaf.NotAfter.Equal(start.Add(tt.life)) {
				t.Errorf("valid from %v until %v", leaf.NotBefore, leaf.NotAfter)
			}
			if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(leaf.ExtKeyUsage, tt.usage) {
				t.Errorf("CA %v, key usage %b, extended %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
			}
			if leaf.Subject.String() != "" {
				t.Errorf("subject %q, want none", leaf.Subject)
			}
			if leaf.SerialNumber.BitLen() != 128 {
				t.Errorf("serial of %d bits", leaf.SerialNumber.BitLen())
			}
			if !key.Public().(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
				t.Error("another key was certified")
			}
			spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
			intent := c.intents[len(c.intents)-1]
			if intent.Kind != tt.kind || intent.Subject != tt.uri || intent.Serial != leaf.SerialNumber.Text(16) ||
				intent.Key != hex.EncodeToString(spki[:]) || !intent.NotAfter.Equal(leaf.NotAfter) || !intent.NotBefore.Equal(leaf.NotBefore) {
				t.Errorf("the intent says %+v", intent)
			}
			id, err := spiffeid.FromString(tt.uri)
			if err != nil {
				t.Fatal(err)
			}
			bundle := x509bundle.FromX509Authorities(id.TrustDomain(), c.roots())
			if got, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(start)); err != nil || got != id {
				t.Errorf("go-spiffe says %v, %v", got, err)
			}
		})
	}
}

func TestAuthorities(t *testing.T) {
	c := newCluster(t, trustDomain)
	root := c.root.Certificate()
	if !root.IsCA || root.MaxPathLen != 1 || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !root.NotAfter.Equal(start.Add(identity.RootLife)) {
		t.Errorf("root: CA %v, path %d, usage %b, until %v", root.IsCA, root.MaxPathLen, root.KeyUsage, root.NotAfter)
	}
	if td, err := identity.RootTrustDomain(root); err != nil || td != trustDomain {
		t.Errorf("root: %q, %v", td, err)
	}
	in := c.authority(t, serverA).Intermediate().Leaf()
	if !in.IsCA || !in.MaxPathLenZero || in.MaxPathLen != 0 || len(in.URIs) != 0 || !in.NotAfter.Equal(start.Add(7*24*time.Hour)) {
		t.Errorf("intermediate: CA %v, path %d, URIs %v, until %v", in.IsCA, in.MaxPathLen, in.URIs, in.NotAfter)
	}
	if in.Subject.CommonName != serverA {
		t.Errorf("intermediate of %q", in.Subject.CommonName)
	}
}

func TestIssueRefuses(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	pub := newKey(t).Public()
	workload := func(uri string, ttl time.Duration) error {
		_, err := a.IssueWorkload(pub, uri, ttl)
		return err
	}
	before := len(c.intents)
	wantErr(t, workload(identity.AdminID(trustDomain, "ada"), time.Hour), "not of trust domain")
	wantErr(t, workload(identity.ServerID(trustDomain, serverA), time.Hour), "not of trust domain")
	wantErr(t, workload("spiffe://other.example/ns/shop/sa/web", time.Hour), "not of trust domain")
	wantErr(t, workload("spiffe://shop.example", time.Hour), "not of the form")
	wantErr(t, workload(web+"%61", time.Hour), "SPIFFE ID")
	wantErr(t, workload(web, 0), "a life of 0s")
	wantErr(t, workload(web, 24*time.Hour+1), "not within 24h")
	for _, name := range []string{"", "Ada", "ada/x", "../server/x", "a.b"} {
		_, err := c.root.IssueAdmin(pub, name)
		wantErr(t, err, "SPIFFE ID")
		_, err = c.root.IssueNode(pub, name)
		wantErr(t, err, "SPIFFE ID")
		_, err = c.root.SignIntermediate(pub, name)
		wantErr(t, err, "SPIFFE ID")
	}
	for name, bad := range weakKeys(t) {
		_, err := a.IssueWorkload(bad.Public(), web, time.Hour)
		if err == nil {
			t.Errorf("%s: certified", name)
		}
	}
	if len(c.intents) != before {
		t.Errorf("%d intents were logged for what was refused", len(c.intents)-before)
	}
}

// P7: no signature without a logged intent.
func TestNothingIsSignedUnlogged(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	c.logErr = errors.New("disk full")
	pub := newKey(t).Public()
	for name, issue := range map[string]func() (any, error){
		"workload":     func() (any, error) { x, err := a.IssueWorkload(pub, web, time.Hour); return len(x), err },
		"server":       func() (any, error) { x, err := a.IssueServer(pub); return len(x), err },
		"node":         func() (any, error) { x, err := c.root.IssueNode(pub, instance); return len(x), err },
		"admin":        func() (any, error) { x, err := c.root.IssueAdmin(pub, "ada"); return len(x), err },
		"intermediate": func() (any, error) { x, err := c.root.SignIntermediate(pub, serverB); return btoi(x != nil), err },
		"root":         func() (any, error) { x, err := identity.NewRoot(trustDomain, c.signing()); return btoi(x != nil), err },
	} {
		got, err := issue()
		if got != 0 || !errors.Is(err, c.logErr) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := identity.NewRoot(trustDomain, identity.Signing{Now: c.clock}); err == nil {
		t.Error("a root without an intent log")
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestNoLeafOutlivesItsIntermediate(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	end := a.Intermediate().NotAfter()
	pub := newKey(t).Public()
	c.now = end.Add(-30 * time.Minute)
	for _, issue := range []func() ([]*x509.Certificate, error){
		func() ([]*x509.Certificate, error) { return a.IssueWorkload(pub, web, 2*time.Hour) },
		func() ([]*x509.Certificate, error) { return a.IssueServer(pub) },
	} {
		chain, err := issue()
		if err != nil {
			t.Fatal(err)
		}
		if !chain[0].NotAfter.Equal(end) {
			t.Errorf("ends %v, its issuer %v", chain[0].NotAfter, end)
		}
	}
	c.now = end
	_, err := a.IssueWorkload(pub, web, 2*time.Hour)
	wantErr(t, err, "the issuer is valid from")

	renewed := c.authority(t, serverA).Intermediate()
	if err := a.Replace(c.root.Certificate(), renewed); err != nil {
		t.Fatal(err)
	}
	chain, err := a.IssueWorkload(pub, web, 2*time.Hour)
	if err != nil || !chain[0].NotAfter.Equal(end.Add(2*time.Hour)) {
		t.Errorf("with a new intermediate: %v", err)
	}
}

func TestAuthorityRefusesIntermediates(t *testing.T) {
	c, other := newCluster(t, trustDomain), newCluster(t, trustDomain)
	pair := c.authority(t, serverA).Intermediate()
	root := c.root.Certificate()
	_, err := identity.NewAuthority(root, pair, serverB, c.signing())
	wantErr(t, err, "not that of this server")
	_, err = identity.NewAuthority(other.root.Certificate(), pair, serverA, c.signing())
	wantErr(t, err, "not signed by the root")
	_, err = identity.NewAuthority(root, c.admin(t, "ada"), "ada", c.signing())
	wantErr(t, err, "not that of this server")
	_, err = identity.NewAuthority(pair.Leaf(), pair, serverA, c.signing())
	wantErr(t, err, "not self-signed")
	wantErr(t, c.authority(t, serverA).Replace(newCluster(t, "other.example").root.Certificate(), pair), "trust domain")
}

func TestMakeSVID(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	p, err := a.MakeSVID(web, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if uri, err := identity.VerifySVID(p.Chain, trustDomain, c.roots(), c.now); err != nil || uri != web {
		t.Errorf("got %q, %v", uri, err)
	}
	if again, err := a.MakeSVID(web, time.Hour); err != nil || again.Key.Public().(*ecdsa.PublicKey).Equal(p.Key.Public()) {
		t.Errorf("the same key twice, or %v", err)
	}
	key, err := p.Key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := identity.ParseKeyPair(append(key.Reveal(), identity.EncodePEM(p.Chain)...))
	if err != nil || !back.Leaf().Equal(p.Leaf()) {
		t.Errorf("PEM does not round-trip: %v", err)
	}
	_, err = identity.VerifySVID(p.Chain, trustDomain, newCluster(t, trustDomain).roots(), c.now)
	wantErr(t, err, "unknown authority")
	_, err = identity.VerifySVID(p.Chain, trustDomain, c.roots(), c.now.Add(time.Hour+time.Second))
	wantErr(t, err, "expired")
	_, err = identity.VerifySVID(c.server(t, serverA).Chain, trustDomain, c.roots(), c.now)
	wantErr(t, err, "not of trust domain")
	_, err = identity.VerifySVID(c.node(t, instance).Chain, trustDomain, c.roots(), c.now)
	wantErr(t, err, "incompatible key usage")
}

// CVE-2022-40716, CVE-2021-27098, CVE-2021-27099, CVE-2018-16886: whatever a
// request asks for, what is certified is what the caller of Issue says.
func TestOnlyTheKeyOfARequestIsUsed(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	key := newKey(t)
	for name, request := range map[string]x509.CertificateRequest{
		"nothing":                {},
		"several SANs":           {URIs: []*url.URL{parseURL(t, web), parseURL(t, "spiffe://shop.example/ns/shop/sa/db")}, DNSNames: []string{"db", "web"}},
		"another workload":       {URIs: []*url.URL{parseURL(t, "spiffe://shop.example/ns/shop/sa/db")}},
		"a server":               {URIs: []*url.URL{parseURL(t, identity.ServerID(trustDomain, serverA))}},
		"an admin by CN":         {Subject: pkix.Name{CommonName: identity.AdminID(trustDomain, "ada"), Organization: []string{"system:masters"}}},
		"to be an authority":     {ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}},
		"an extended key usage":  {ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 37}, Value: []byte{0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0}}}},
		"an extension of no use": {ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := x509.CreateCertificateRequest(rand.Reader, &request, key)
			if err != nil {
				t.Fatal(err)
			}
			pub, err := identity.CheckCSR(der)
			if err != nil {
				t.Fatal(err)
			}
			chain, err := a.IssueWorkload(pub, web, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if uri, err := identity.VerifySVID(chain, trustDomain, c.roots(), c.now); err != nil || uri != web {
				t.Errorf("got %q, %v", uri, err)
			}
			if got := chain[0]; got.IsCA || got.Subject.String() != "" || len(got.Extensions) != 5 {
				t.Errorf("CA %v, subject %q, extensions %v", got.IsCA, got.Subject, got.Extensions)
			}
		})
	}
}

func TestCheckCSR(t *testing.T) {
	key := newKey(t)
	good, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := identity.CheckCSR(good); err != nil || !key.Public().(*ecdsa.PublicKey).Equal(pub) {
		t.Fatalf("got %v, %v", pub, err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.CheckCSR(request(t, p384)); err != nil {
		t.Errorf("P-384: %v", err)
	}
	for name, k := range weakKeys(t) {
		_, err := identity.CheckCSR(request(t, k))
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	_, err = identity.CheckCSR(forged)
	wantErr(t, err, "certificate request")
	_, err = identity.CheckCSR(append(slices.Clone(good), 0))
	wantErr(t, err, "trailing data")
	_, err = identity.CheckCSR(make([]byte, 8<<10+1))
	wantErr(t, err, "at most 8192")
	_, err = identity.CheckCSR(nil)
	wantErr(t, err, "certificate request")
	_, err = identity.NewCSR(identity.PrivateKey{})
	wantErr(t, err, "no key")
}

func FuzzCheckCSR(f *testing.F) {
	key, err := identity.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	good, err := identity.NewCSR(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, der []byte) {
		if pub, err := identity.CheckCSR(der); err == nil {
			if _, ok := pub.(*ecdsa.PublicKey); !ok {
				t.Fatalf("a key of type %T", pub)
			}
		}
	})
}

func request(t *testing.T, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// weakKeys are of kinds that are not certified.
func weakKeys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	p224, err2 := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p521, err3 := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	r, err4 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"Ed25519": ed, "P-224": p224, "P-521": p521, "RSA": r}
}
