package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/ztmesh/ztmesh/failpoint"
)

// Lives of certificates.
const (
	RootLife         = 10 * 365 * 24 * time.Hour
	IntermediateLife = 7 * 24 * time.Hour
	ServerLife       = IntermediateLife // ends with the intermediate that signed it
	NodeLife         = 30 * 24 * time.Hour
	AdminLife        = 365 * 24 * time.Hour
	MaxWorkloadLife  = 24 * time.Hour // Mesh.svidTTL may not say more

	// Backdate is how far before now a certificate begins: clocks differ.
	Backdate = time.Minute
)

// Signing says how anything is signed. Both fields are required.
type Signing struct {
	Now func() time.Time
	// Log makes the intent to sign durable. It is called before each signature;
	// if it fails, nothing is signed. (*Journal).Append is one.
	Log func(Issuance) error
}

// An Issuance is the intent to sign one certificate.
type Issuance struct {
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"`    // root, intermediate, workload, server, node or admin
	Subject   string    `json:"subject"` // the URI SAN; for an intermediate the ID of its server
	Serial    string    `json:"serial"`  // hex
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Key       string    `json:"key"`    // SHA-256 of the SubjectPublicKeyInfo that is certified, hex
	Issuer    string    `json:"issuer"` // the same of the key that signs
}

// issuer is a certificate and the key to sign with it.
type issuer struct {
	cert *x509.Certificate
	key  PrivateKey
}

// sign completes t (serial, validity, signature algorithm), logs the intent and
// signs. The certificate never outlives its issuer.
func (s Signing) sign(kind, subject string, t *x509.Certificate, pub crypto.PublicKey, life time.Duration, by issuer) (*x509.Certificate, error) {
	if s.Now == nil || s.Log == nil {
		return nil, errors.New("sign: no clock or no intent log")
	}
	if err := checkPublicKey(pub); err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	now := s.Now()
	t.SerialNumber = newSerial()
	t.NotBefore, t.NotAfter = now.Add(-Backdate).UTC(), now.Add(life).UTC()
	if by.cert != t { // not the root itself
		if now.Before(by.cert.NotBefore) || !now.Before(by.cert.NotAfter) {
			return nil, fmt.Errorf("sign %s: the issuer is valid from %v until %v", subject, by.cert.NotBefore, by.cert.NotAfter)
		}
		if t.NotBefore.Before(by.cert.NotBefore) {
			t.NotBefore = by.cert.NotBefore
		}
		if t.NotAfter.After(by.cert.NotAfter) {
			t.NotAfter = by.cert.NotAfter
		}
	}
	// X.509 has whole seconds. Cut off here, so that the journal says the same.
	t.NotBefore, t.NotAfter = t.NotBefore.Truncate(time.Second), t.NotAfter.Truncate(time.Second)
	certified, err := keyHash(pub)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	signer, err := keyHash(by.key.Public())
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	err = s.Log(Issuance{
		Time: now.UTC(), Kind: kind, Subject: subject, Serial: t.SerialNumber.Text(16),
		NotBefore: t.NotBefore, NotAfter: t.NotAfter, Key: certified, Issuer: signer,
	})
	if err != nil {
		return nil, fmt.Errorf("sign %s: log the intent: %w", subject, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, pub, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", subject, err)
	}
	failpoint.Hit("identity.sign.signed")
	return x509.ParseCertificate(der)
}

// leaf returns a template for an end entity: one URI SAN, signatures only. The
// subject stays empty, so that no verifier can be led to read a name from it;
// RFC 5280 4.2.1.6 then wants the SAN critical, which crypto/x509 sees to.
func leaf(uri string, usage ...x509.ExtKeyUsage) (*x509.Certificate, error) {
	u, err := url.Parse(uri)
	if err != nil || u.String() != uri {
		return nil, fmt.Errorf("SPIFFE ID %q: not a URI", uri)
	}
	return &x509.Certificate{
		URIs:                  []*url.URL{u},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}, nil
}

// authorityTemplate returns a template for a certificate that signs others.
func authorityTemplate(name pkix.Name, pathLen int) *x509.Certificate {
	return &x509.Certificate{
		Subject:               name,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            pathLen,
		MaxPathLenZero:        pathLen == 0,
	}
}

// newSerial returns 128 random bits. The first is set: RFC 5280 4.1.2.2 wants
// it positive, and so the length is always the same.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails (Go 1.24)
	return new(big.Int).SetBit(new(big.Int).SetBytes(b), 127, 1)
}

func keyHash(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:]), nil
}
