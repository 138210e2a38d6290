package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrSealed is returned when something sealed does not open: another
// key-encryption key, purpose or trust domain, or changed bytes. Where the key is
// the reason, the error names the one that is wanted and those that were given.
var ErrSealed = errors.New("sealed with another key, or damaged")

const (
	kekSize   = 32
	kekPrefix = "ztkek1:"    // a line of a key file is this and 64 hex digits
	sealMagic = "ztseal\x02" // version 2: magic, 8 bytes of key id, 12 of nonce, AES-256-GCM
	keyIDSize = 8
	maxKEKs   = 8
)

// KEK is a key-encryption key of a cluster: it seals the root key, so that neither
// the log nor a backup can sign, and each server's data keys, so that its folder
// alone tells nothing. It comes from a [KeySource].
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

// Text returns the key as a line of a key file.
func (k KEK) Text() Secret { return NewSecret(fmt.Appendf(nil, "%s%x\n", kekPrefix, k.s.Reveal())) }

// ID names the key in public: 16 hex digits of the SHA-256 of a value that is
// derived from it. Nothing that is sealed by the key depends on that value.
func (k KEK) ID() string {
	if k.IsZero() {
		return ""
	}
	derived, err := hkdf.Key(sha256.New, k.s.Reveal(), nil, "ztmesh key id", kekSize)
	if err != nil {
		panic(err) // a length that SHA-256 does not give
	}
	sum := sha256.Sum256(derived)
	return hex.EncodeToString(sum[:keyIDSize])
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
	id, err := hex.DecodeString(k.ID())
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	out := slices.Concat([]byte(sealMagic), id, nonce)
	return aead.Seal(out, nonce, plain, sealedFor(id, purpose, td)), nil
}

// SealedBy returns the id of the key that something is sealed with; false: it is
// not something sealed.
func SealedBy(sealed []byte) (id string, ok bool) {
	body, ok := bytes.CutPrefix(sealed, []byte(sealMagic))
	if !ok || len(body) < keyIDSize {
		return "", false
	}
	return hex.EncodeToString(body[:keyIDSize]), true
}

// open is Keys.Open with this key, which is the one that it was sealed with.
func (k KEK) open(purpose, td string, sealed []byte) (Secret, error) {
	aead, err := k.aead()
	if err != nil {
		return Secret{}, fmt.Errorf("unseal: %w", err)
	}
	body := sealed[len(sealMagic):]
	id, body := body[:keyIDSize], body[keyIDSize:]
	if len(body) < aead.NonceSize() {
		return Secret{}, fmt.Errorf("unseal %s: %w", purpose, ErrSealed)
	}
	plain, err := aead.Open(nil, body[:aead.NonceSize()], body[aead.NonceSize():], sealedFor(id, purpose, td))
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

// sealedFor is the additional data: magic and key id, then each part with its
// length, so that no two pairs give the same bytes.
func sealedFor(id []byte, purpose, td string) []byte {
	b := slices.Concat([]byte(sealMagic), id)
	for _, s := range []string{purpose, td} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// Keys are the key-encryption keys that a server has: one, and during a rotation
// the one before or after it. Which of them seals is the cluster's choice, not that
// of their order.
type Keys struct{ list []KEK }

// NewKeys returns the keys as one set; none is an error, as is one twice.
func NewKeys(list ...KEK) (Keys, error) {
	if len(list) == 0 {
		return Keys{}, errors.New("no key-encryption key")
	}
	if len(list) > maxKEKs {
		return Keys{}, fmt.Errorf("%d key-encryption keys, at most %d", len(list), maxKEKs)
	}
	seen := map[string]bool{}
	for _, k := range list {
		if k.IsZero() || seen[k.ID()] {
			return Keys{}, errors.New("a key-encryption key that is empty, or stands twice")
		}
		seen[k.ID()] = true
	}
	return Keys{slices.Clone(list)}, nil
}

// ParseKeys reads the text of a key file: a key on each line.
func ParseKeys(text Secret) (Keys, error) {
	var list []KEK
	for n, line := range strings.Split(strings.TrimSuffix(string(text.Reveal()), "\n"), "\n") {
		digits, ok := strings.CutPrefix(strings.TrimSuffix(line, "\r"), kekPrefix)
		raw, fine := unhex(digits, kekSize)
		if !ok || !fine {
			return Keys{}, fmt.Errorf("line %d is not %s and 64 hex digits", n+1, kekPrefix)
		}
		list = append(list, KEK{NewSecret(raw)})
	}
	return NewKeys(list...)
}

// Text returns the keys as ParseKeys reads them.
func (k Keys) Text() Secret {
	var b []byte
	for _, key := range k.list {
		b = append(b, key.Text().Reveal()...)
	}
	return NewSecret(b)
}

// IsZero says that there is none.
func (k Keys) IsZero() bool { return len(k.list) == 0 }

// IDs returns the ids of the keys, in their order.
func (k Keys) IDs() []string {
	ids := make([]string, len(k.list))
	for i, key := range k.list {
		ids[i] = key.ID()
	}
	return ids
}

// Find returns the key with an id.
func (k Keys) Find(id string) (KEK, bool) {
	for _, key := range k.list {
		if key.ID() == id {
			return key, true
		}
	}
	return KEK{}, false
}

// First returns the key that stands first; the zero KEK if there is none.
func (k Keys) First() KEK {
	if len(k.list) == 0 {
		return KEK{}
	}
	return k.list[0]
}

// Open decrypts what Seal made by one of the keys for the same purpose and trust
// domain; anything else is ErrSealed.
func (k Keys) Open(purpose, td string, sealed []byte) (Secret, error) {
	id, ok := SealedBy(sealed)
	if !ok {
		return Secret{}, fmt.Errorf("unseal %s: not something sealed: %w", purpose, ErrSealed)
	}
	key, ok := k.Find(id)
	if !ok {
		return Secret{}, fmt.Errorf("unseal %s: it wants key %s, and the keys given are %s: %w",
			purpose, id, strings.Join(k.IDs(), ", "), ErrSealed)
	}
	return key.open(purpose, td, sealed)
}
