package judge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// pki is the certificates of a court: of the control plane and the proxies by the
// package that issues the real ones, and of callers, who may claim to be anybody.
type pki struct {
	trustDomain string
	root        *identity.Root
	authority   *identity.Authority

	// callers signs whatever name a caller has. It has no name constraints, so that
	// the proxies alone judge names.
	callers *signer
	former  *signer // the same of the trust domain's aliases
	key     *ecdsa.PrivateKey

	mu    sync.Mutex // guards certs
	certs map[string]*tls.Certificate
}

// signer is a certificate authority.
type signer struct {
	pem  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(trustDomain string) (*pki, error) {
	s := identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }}
	root, err := identity.NewRoot(trustDomain, s)
	if err != nil {
		return nil, err
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := root.SignIntermediate(key.Public(), "court")
	if err != nil {
		return nil, err
	}
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert})
	if err != nil {
		return nil, err
	}
	p := &pki{trustDomain: trustDomain, root: root, certs: map[string]*tls.Certificate{}}
	if p.authority, err = identity.NewAuthority(root.Certificate(), pair, "court", s); err != nil {
		return nil, err
	}
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	var errs [2]error
	p.callers, errs[0] = newSigner("callers")
	p.former, errs[1] = newSigner("former")
	return p, errors.Join(errs[:]...)
}

func newSigner(name string) (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := leafTemplate()
	template.Subject = pkix.Name{CommonName: name}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &signer{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert, key}, err
}

func leafTemplate() *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// caller is the certificate of an identity, signed by whoever signs for its trust
// domain, or, where nobody does, by our own. The name stands in it byte by byte.
func (p *pki) caller(trust policy.Trust, uri string) (*tls.Certificate, error) {
	by := p.callers
	domain, _, _ := strings.Cut(strings.TrimPrefix(uri, "spiffe://"), "/")
	for _, alias := range trust.Aliases {
		if domain == alias && trust.Bundles[alias] == "" {
			by = p.former
		}
	}
	if trust.Bundles[domain] != "" {
		ca, cert, key := specgen.ForeignCA()
		by = &signer{ca, cert, key}
	}
	at := by.pem + uri
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.certs[at]; c != nil {
		return c, nil
	}
	const uriName = 6 // GeneralName (RFC 5280, section 4.2.1.6)
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: uriName, Bytes: []byte(uri)}})
	if err != nil {
		return nil, err
	}
	template := leafTemplate()
	template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: names}}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, p.key.Public(), by.key)
	if err != nil {
		return nil, err
	}
	p.certs[at] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: p.key}
	return p.certs[at], nil
}

// trust is whom the proxies of a spec accept, as the control plane tells them. For
// every foreign trust domain the same foreign CA signs.
func (p *pki) trust(t policy.Trust) map[string][]byte {
	out := map[string][]byte{}
	for _, alias := range t.Aliases {
		out[alias] = []byte(p.former.pem)
	}
	foreign, _, _ := specgen.ForeignCA()
	for domain := range t.Bundles {
		out[domain] = []byte(foreign)
	}
	out[p.trustDomain] = append(identity.EncodePEM([]*x509.Certificate{p.root.Certificate()}), p.callers.pem...)
	return out
}

// svid is the certificate of a proxy's workload.
func (p *pki) svid(id string) (*xds.Resource, error) {
	pair, err := p.authority.MakeSVID(id, time.Hour)
	if err != nil {
		return nil, err
	}
	key, err := pair.Key.PEM()
	if err != nil {
		return nil, err
	}
	return xds.SVID(identity.EncodePEM(pair.Chain), key.Reveal()), nil
}

// node is the certificate by which a proxy opens its stream.
func (p *pki) node(instance string) (*xds.Resource, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	chain, err := p.root.IssueNode(key.Public(), instance)
	if err != nil {
		return nil, err
	}
	text, err := key.PEM()
	if err != nil {
		return nil, err
	}
	return xds.Node(identity.EncodePEM(chain), text.Reveal()), nil
}

// server is the certificate of a server outside the mesh, called name.
func (p *pki) server(name string) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.certs["server "+name]; c != nil {
		return c, nil
	}
	template := leafTemplate()
	template.DNSNames = []string{name}
	der, err := x509.CreateCertificate(rand.Reader, template, p.callers.cert, p.key.Public(), p.callers.key)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: p.key}
	p.certs["server "+name] = c
	return c, nil
}
