package identity

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
)

const (
	organization = "ztmesh"
	rootPurpose  = "root-key"
)

// Root is the unsealed root of a cluster. It is made for a call and dropped: a
// server keeps only the sealed key.
type Root struct {
	td string
	by issuer
	s  Signing
}

// NewRoot makes the root of trust domain td: P-256, self-signed, 10 years, one
// level of intermediates below it, and (by name constraints) good for td and
// control.td only.
func NewRoot(td string, s Signing) (*Root, error) {
	if err := ValidTrustDomain(td); err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	uri := "spiffe://" + td
	t := authorityTemplate(pkix.Name{Organization: []string{organization}, CommonName: td + " root"}, 1)
	t.URIs = []*url.URL{{Scheme: "spiffe", Host: td}} // X509-SVID 3.2: a signing certificate names its trust domain
	t.PermittedURIDomains = []string{td, ControlDomain(td)}
	t.PermittedDNSDomainsCritical = true // of all name constraints, despite its name
	cert, err := s.sign("root", uri, t, key.Public(), RootLife, issuer{t, key})
	if err != nil {
		return nil, err
	}
	return &Root{td, issuer{cert, key}, s}, nil
}

// OpenRoot unseals the root key. Key-encryption keys, certificate and sealed key
// that do not belong together are an error (ErrSealed, or one that says that the
// certificate is for another key).
func OpenRoot(cert *x509.Certificate, sealed []byte, keys Keys, s Signing) (*Root, error) {
	td, err := RootTrustDomain(cert)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	der, err := keys.Open(rootPurpose, td, sealed)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	key, err := parseKey(der.Reveal())
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	if !key.get().PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("open root: the certificate is for another key")
	}
	return &Root{td, issuer{cert, key}, s}, nil
}

// Seal returns the root key, encrypted under kek.
func (r *Root) Seal(kek KEK) ([]byte, error) {
	der, err := r.by.key.der()
	if err != nil {
		return nil, err
	}
	return kek.Seal(rootPurpose, r.td, der)
}

// Certificate returns the self-signed certificate: the trust anchor.
func (r *Root) Certificate() *x509.Certificate { return r.by.cert }

// TrustDomain returns the trust domain that the root is for.
func (r *Root) TrustDomain() string { return r.td }

// SignIntermediate certifies pub as the intermediate of a server: 7 days, no
// further authority below it, no identity of its own. Its subject's common name
// is the server id: it narrows (the server leaves below it must bear that id)
// and gives no right.
func (r *Root) SignIntermediate(pub crypto.PublicKey, serverID string) (*x509.Certificate, error) {
	uri := ServerID(r.td, serverID)
	if _, err := ParseControlID(uri, r.td); err != nil {
		return nil, fmt.Errorf("sign intermediate: %w", err)
	}
	t := authorityTemplate(pkix.Name{Organization: []string{organization}, CommonName: serverID}, 0)
	return r.s.sign("intermediate", uri, t, pub, IntermediateLife, r.by)
}

// IssueNode certifies pub as an enrolled instance: 30 days, client only. The
// chain is the leaf alone, the root signs it.
func (r *Root) IssueNode(pub crypto.PublicKey, instance string) ([]*x509.Certificate, error) {
	c, err := r.issueClient(Principal{Node, instance}, pub)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{c}, nil
}

// IssueAdmin certifies pub as an administrator: 365 days, client only. It
// carries no right: what name may do stands in the store.
func (r *Root) IssueAdmin(pub crypto.PublicKey, name string) ([]*x509.Certificate, error) {
	c, err := r.issueClient(Principal{Admin, name}, pub)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{c}, nil
}

func (r *Root) issueClient(p Principal, pub crypto.PublicKey) (*x509.Certificate, error) {
	uri, life := p.ID(r.td), NodeLife
	if p.Role == Admin {
		life = AdminLife
	}
	if _, err := ParseControlID(uri, r.td); err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	t, err := leaf(uri, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	return r.s.sign(string(p.Role), uri, t, pub, life, r.by)
}

// RootTrustDomain returns the trust domain that a root certificate names, and an
// error if the certificate is not fit to be a trust anchor: a certificate
// authority, self-signed, for one trust domain.
func RootTrustDomain(cert *x509.Certificate) (string, error) {
	if cert == nil || !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return "", errors.New("trust anchor: not a certificate authority")
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return "", fmt.Errorf("trust anchor: not self-signed: %w", err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].String() != "spiffe://"+cert.URIs[0].Host {
		return "", errors.New("trust anchor: does not name one trust domain")
	}
	td := cert.URIs[0].Host
	return td, ValidTrustDomain(td)
}
