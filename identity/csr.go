package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
)

// maxCSR is more than any request with a P-384 key and no attributes needs.
const maxCSR = 8 << 10

// NewCSR returns a DER PKCS #10 request for key. It names nobody: who the key is
// for is the signer's to say.
func NewCSR(key PrivateKey) ([]byte, error) {
	if key.IsZero() {
		return nil, errors.New("make certificate request: no key")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// CheckCSR returns the public key of a DER PKCS #10 request whose signature
// proves that its sender holds the private key. Everything else that the request
// asks for (subject, SANs, extensions) is not looked at.
func CheckCSR(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request: %d bytes, at most %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return nil, fmt.Errorf("certificate request: signature algorithm %v is not accepted", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return csr.PublicKey, nil
}

// checkPublicKey accepts ECDSA on P-256 and P-384.
func checkPublicKey(pub crypto.PublicKey) error {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || (k.Curve != elliptic.P256() && k.Curve != elliptic.P384()) {
		return errors.New("the key must be ECDSA on P-256 or P-384")
	}
	return nil
}
