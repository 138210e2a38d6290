package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

const (
	pemKey  = "PRIVATE KEY"
	pemCert = "CERTIFICATE"
)

// EncodePEM returns the certificates in PEM, in order.
func EncodePEM(certs []*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})...)
	}
	return b
}

// ParsePEM reads one or more certificates and nothing else.
func ParsePEM(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			if strings.TrimSpace(string(b)) != "" {
				return nil, errors.New("parse certificates: text that is not PEM")
			}
			break
		}
		if block.Type != pemCert {
			return nil, fmt.Errorf("parse certificates: a PEM block of type %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: %w", err)
		}
		certs, b = append(certs, c), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("parse certificates: there is none")
	}
	return certs, nil
}

// DER returns the encoded certificates, in order.
func DER(certs []*x509.Certificate) [][]byte {
	der := make([][]byte, len(certs))
	for i, c := range certs {
		der[i] = c.Raw
	}
	return der
}

// ParseDER is the inverse of DER.
func ParseDER(der [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, len(der))
	for i, d := range der {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", i, err)
		}
		certs[i] = c
	}
	return certs, nil
}
