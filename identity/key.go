package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"
)

// PrivateKey is an ECDSA key that never shows itself. It is held as a Secret is.
type PrivateKey struct{ get func() *ecdsa.PrivateKey }

func hold(k *ecdsa.PrivateKey) PrivateKey { return PrivateKey{func() *ecdsa.PrivateKey { return k }} }

// NewKey makes a P-256 key.
func NewKey() (PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("make key: %w", err)
	}
	return hold(k), nil
}

// Public returns the public half.
func (k PrivateKey) Public() crypto.PublicKey { return &k.get().PublicKey }

// Sign makes PrivateKey a crypto.Signer, so that crypto/tls and crypto/x509 use
// it as it is and the key itself never leaves this package.
func (k PrivateKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.get == nil {
		return nil, errors.New("sign: no key")
	}
	return k.get().Sign(rand, digest, opts)
}

// IsZero says that there is no key.
func (k PrivateKey) IsZero() bool { return k.get == nil }

// PEM returns the key as PKCS #8 in PEM.
func (k PrivateKey) PEM() (Secret, error) {
	der, err := k.der()
	if err != nil {
		return Secret{}, err
	}
	return NewSecret(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})), nil
}

func (k PrivateKey) der() ([]byte, error) {
	if k.get == nil {
		return nil, errors.New("encode key: there is none")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.get())
	if err != nil {
		return nil, errors.New("encode key: not a key of a supported kind") // err may quote the key
	}
	return der, nil
}

func parseKey(der []byte) (PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return PrivateKey{}, errors.New("parse key: not PKCS #8")
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return PrivateKey{}, errors.New("parse key: not an ECDSA key")
	}
	return hold(e), checkPublicKey(&e.PublicKey)
}

// ParseKey reads what PEM wrote, and nothing beside it.
func ParseKey(b []byte) (PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemKey || len(bytes.TrimSpace(rest)) > 0 {
		return PrivateKey{}, errors.New("parse key: not one private key in PEM")
	}
	return parseKey(block.Bytes)
}

// A KeyPair is a key and the certificates that name it: leaf first, then its
// issuers. Values are not changed once made.
type KeyPair struct {
	Chain []*x509.Certificate
	Key   PrivateKey
}

// NewKeyPair checks that key is that of the first certificate.
func NewKeyPair(key PrivateKey, chain []*x509.Certificate) (*KeyPair, error) {
	if len(chain) == 0 {
		return nil, errors.New("key pair: no certificate")
	}
	if key.IsZero() || !key.get().PublicKey.Equal(chain[0].PublicKey) {
		return nil, errors.New("key pair: the certificate is for another key")
	}
	return &KeyPair{Chain: chain, Key: key}, nil
}

// Leaf returns the certificate of the key itself.
func (p *KeyPair) Leaf() *x509.Certificate { return p.Chain[0] }

// NotAfter is when the pair ends to be valid: the earliest end in its chain.
func (p *KeyPair) NotAfter() time.Time {
	end := p.Chain[0].NotAfter
	for _, c := range p.Chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// TLS returns the pair as crypto/tls takes it.
func (p *KeyPair) TLS() *tls.Certificate {
	return &tls.Certificate{Certificate: DER(p.Chain), PrivateKey: p.Key, Leaf: p.Chain[0]}
}

// PEM returns key and chain as ParseKeyPair reads them.
func (p *KeyPair) PEM() (Secret, error) {
	key, err := p.Key.PEM()
	if err != nil {
		return Secret{}, err
	}
	return NewSecret(append(key.Reveal(), EncodePEM(p.Chain)...)), nil
}

// Save writes key and chain into one PEM file of mode 0600, replacing what is
// there at once, so that a reader never sees a key with another's certificate.
func (p *KeyPair) Save(path string) error {
	pem, err := p.PEM()
	if err != nil {
		return err
	}
	if err := WriteFile(path, pem.Reveal()); err != nil {
		return fmt.Errorf("save key pair: %w", err)
	}
	return nil
}

// LoadKeyPair reads what Save wrote. A file that others than its owner can read
// is refused.
func LoadKeyPair(path string) (*KeyPair, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("load key pair: %w", err)
	}
	p, err := ParseKeyPair(b)
	if err != nil {
		return nil, fmt.Errorf("load key pair: %s: %w", path, err)
	}
	return p, nil
}

// SaveSealed is Save for a file that only this server's data keys open.
func (p *KeyPair) SaveSealed(path string, keys *DataKeys) error {
	pem, err := p.PEM()
	if err != nil {
		return err
	}
	if err := WriteFile(path, keys.Seal(nil, pem.Reveal(), []byte(keyPairPurpose))); err != nil {
		return fmt.Errorf("save key pair: %w", err)
	}
	return nil
}

// LoadSealedKeyPair reads what SaveSealed wrote.
func LoadSealedKeyPair(path string, keys *DataKeys) (*KeyPair, error) {
	sealed, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("load key pair: %w", err)
	}
	pem, err := keys.Open(sealed, []byte(keyPairPurpose))
	if err != nil {
		return nil, fmt.Errorf("load key pair: %s: %w", path, err)
	}
	p, err := ParseKeyPair(pem)
	if err != nil {
		return nil, fmt.Errorf("load key pair: %s: %w", path, err)
	}
	return p, nil
}

// keyPairPurpose is what a sealed key pair is about.
const keyPairPurpose = "key pair"

// ParseKeyPair reads a PKCS #8 key followed by certificates, leaf first, in PEM.
func ParseKeyPair(b []byte) (*KeyPair, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("the first PEM block is not a private key")
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	chain, err := ParsePEM(rest)
	if err != nil {
		return nil, err
	}
	return NewKeyPair(key, chain)
}
