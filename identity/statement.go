package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"
)

// SignStatement signs a digest with the intermediate's key, for a purpose
// ("backup"): as the server, not as an authority. No certificate is made.
func (a *Authority) SignStatement(purpose string, digest [sha256.Size]byte) (sig []byte, by *x509.Certificate, err error) {
	pair := a.Intermediate()
	sum := statement(purpose, digest)
	sig, err = pair.Key.Sign(rand.Reader, sum[:], crypto.SHA256)
	return sig, pair.Leaf(), err
}

// VerifyStatement checks what SignStatement made at a time: by the intermediate of
// a server, whose id it returns, signed by root.
func VerifyStatement(purpose string, digest [sha256.Size]byte, sig []byte, by, root *x509.Certificate, at time.Time) (server string, err error) {
	if _, err := RootTrustDomain(root); err != nil {
		return "", err
	}
	if err := by.CheckSignatureFrom(root); err != nil {
		return "", fmt.Errorf("the signer's certificate is not of this root: %w", err)
	}
	if !by.IsCA || at.Before(by.NotBefore) || at.After(by.NotAfter) {
		return "", errors.New("the signer's certificate is not that of a server at that time")
	}
	key, ok := by.PublicKey.(*ecdsa.PublicKey)
	sum := statement(purpose, digest)
	if !ok || !ecdsa.VerifyASN1(key, sum[:], sig) {
		return "", errors.New("the signature is wrong")
	}
	return by.Subject.CommonName, nil
}

// statement cannot be taken for what is signed elsewhere: a certificate begins with
// another byte.
func statement(purpose string, digest [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("ztmesh statement\x00"+purpose+"\x00"), digest[:]...))
}

// NewStreamKey makes a key for SealStream. A key seals one stream.
func NewStreamKey() Secret { return newDataKey() }

// SealStream returns a writer that encrypts to w with a key of NewStreamKey. Close
// ends the stream; it does not close w.
func SealStream(w io.Writer, key Secret, about []byte) (io.WriteCloser, error) {
	aead, err := derive(key, nil, "stream")
	if err != nil {
		return nil, err
	}
	return newStreamWriter(w, aead, about), nil
}

// OpenStream returns a reader of what SealStream wrote. It gives nothing that has
// not been authenticated, and io.EOF only at the true end; otherwise ErrSealed.
func OpenStream(r io.Reader, key Secret, about []byte) (io.Reader, error) {
	aead, err := derive(key, nil, "stream")
	if err != nil {
		return nil, err
	}
	return newStreamReader(r, aead, about), nil
}
