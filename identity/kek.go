package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// ErrSealed is returned when something sealed does not open: another
// key-encryption key, purpose or trust domain, or changed bytes. Which of them
// cannot be told.
var ErrSealed = errors.New("sealed with another key, or damaged")

const (
	kekSize   = 32
	kekPrefix = "ztkek1:"    // the file is this, 64 hex digits and a line feed
	sealMagic = "ztseal\x01" // version 1: magic, 12 bytes of nonce, AES-256-GCM
)

// KEK is the key-encryption key of a cluster: it seals the root key, so that
// neither the log nor a backup can sign. It lives in a file of mode 0600 on each
// server and is handed to a new server at enrolment.
type KEK struct{ s Secret }

// NewKEK makes a key.
func NewKEK() KEK {
	b := make([]byte, kekSize)
	rand.Read(b) // never fails (Go 1.24)
	return KEK{NewSecret(b)}
}

// KEKFrom returns the key that Reveal gave on another server.
func KEKFrom(b []byte) (KEK, error) {
	if len(b) != kekSize {
		return KEK{}, fmt.Errorf("key-encryption key: %d bytes, must be %d", len(b), kekSize)
	}
	return KEK{NewSecret(b)}, nil
}

// LoadKEK reads the key file at path. One that others than its owner can read
// is refused.
func LoadKEK(path string) (KEK, error) {
	b, err := readPrivate(path)
	if err != nil {
		return KEK{}, fmt.Errorf("load key-encryption key: %w", err)
	}
	digits, ok := strings.CutPrefix(strings.TrimSuffix(string(b), "\n"), kekPrefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != kekSize {
		return KEK{}, fmt.Errorf("load key-encryption key: %s is not a key file", path)
	}
	return KEK{NewSecret(raw)}, nil
}

// LoadOrCreateKEK reads the key file at path, or makes a key and the file if
// there is none.
func LoadOrCreateKEK(path string) (KEK, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return LoadKEK(path)
	}
	k := NewKEK()
	return k, k.Save(path)
}

// Save writes the key file. An existing file is never replaced: what it seals
// would be lost.
func (k KEK) Save(path string) error {
	if k.IsZero() {
		return errors.New("save key-encryption key: there is none")
	}
	if err := createFile(path, fmt.Appendf(nil, "%s%x\n", kekPrefix, k.s.Reveal())); err != nil {
		return fmt.Errorf("save key-encryption key: %w", err)
	}
	return nil
}

// Reveal returns the 32 bytes of the key, for a new server's enrolment.
func (k KEK) Reveal() []byte { return k.s.Reveal() }

// IsZero says that there is no key.
func (k KEK) IsZero() bool { return k.s.IsZero() }

// Seal encrypts plain. The purpose ("root-key") and the trust domain are bound
// to it: what is sealed for one does not open for another.
func (k KEK) Seal(purpose, td string, plain []byte) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	out := append([]byte(sealMagic), nonce...)
	return aead.Seal(out, nonce, plain, sealedFor(purpose, td)), nil
}

// Open decrypts what Seal made for the same purpose and trust domain; anything
// else is ErrSealed.
func (k KEK) Open(purpose, td string, sealed []byte) (Secret, error) {
	aead, err := k.aead()
	if err != nil {
		return Secret{}, fmt.Errorf("unseal: %w", err)
	}
	body, ok := bytes.CutPrefix(sealed, []byte(sealMagic))
	if !ok || len(body) < aead.NonceSize() {
		return Secret{}, fmt.Errorf("unseal %s: %w", purpose, ErrSealed)
	}
	nonce, box := body[:aead.NonceSize()], body[aead.NonceSize():]
	plain, err := aead.Open(nil, nonce, box, sealedFor(purpose, td))
	if err != nil {
		return Secret{}, fmt.Errorf("unseal %s: %w", purpose, ErrSealed)
	}
	return NewSecret(plain), nil
}

func (k KEK) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.s.Reveal())
	if err != nil {
		return nil, errors.New("no key-encryption key")
	}
	return cipher.NewGCM(block)
}

// sealedFor is the additional data: magic, then each part with its length, so
// that no two pairs give the same bytes.
func sealedFor(purpose, td string) []byte {
	b := []byte(sealMagic)
	for _, s := range []string{purpose, td} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}
