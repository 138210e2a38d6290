package identity

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenVersion = "zt1"
	tokenIDSize  = 8
	secretSize   = 32
)

// ErrToken is returned when a text is not a token. The text is never part of
// the error.
var ErrToken = errors.New("not a token of the form zt1.<id>.<secret>.<spki-sha256>")

// A Pin is the SHA-256 of the SubjectPublicKeyInfo of a cluster's root. It is
// public. The zero Pin pins nothing and is refused wherever one is needed.
type Pin [sha256.Size]byte

// PinOf returns the pin of a certificate's key.
func PinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// String returns 64 hex digits.
func (p Pin) String() string { return hex.EncodeToString(p[:]) }

// IsZero says that nothing is pinned.
func (p Pin) IsZero() bool { return p == Pin{} }

// A Token lets its bearer enrol once. It names itself (ID, public), proves
// itself (the secret), and says which cluster to show it to (Pin): it is sent
// only to a server whose root has that key.
type Token struct {
	ID     string // 16 hex digits
	Pin    Pin
	secret Secret
}

// NewToken makes a token for the cluster whose root has this pin. The secret
// has 256 bits.
func NewToken(pin Pin) (Token, error) {
	if pin.IsZero() {
		return Token{}, fmt.Errorf("make token: %w", ErrNoTrust)
	}
	id, secret := make([]byte, tokenIDSize), make([]byte, secretSize)
	rand.Read(id) // never fails (Go 1.24)
	rand.Read(secret)
	return Token{ID: hex.EncodeToString(id), Pin: pin, secret: NewSecret(secret)}, nil
}

// DeriveToken makes the token that belongs to a seed: the same one each time, and one
// that nobody can guess who has not the key, which is secret and has at least 256
// bits.
func DeriveToken(pin Pin, key []byte, seed string) (Token, error) {
	if pin.IsZero() || len(key) < secretSize {
		return Token{}, fmt.Errorf("derive token: %w", ErrNoTrust)
	}
	b, err := hkdf.Key(sha256.New, key, nil, "ztmesh join token\x00"+seed, tokenIDSize+secretSize)
	if err != nil {
		return Token{}, fmt.Errorf("derive token: %w", err)
	}
	return Token{ID: hex.EncodeToString(b[:tokenIDSize]), Pin: pin, secret: NewSecret(b[tokenIDSize:])}, nil
}

// ParseToken reads what Reveal wrote, and nothing that differs from it by a
// byte. Everything else is ErrToken.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != tokenVersion {
		return Token{}, ErrToken
	}
	_, ok1 := unhex(parts[1], tokenIDSize)
	secret, ok2 := unhex(parts[2], secretSize)
	pin, ok3 := unhex(parts[3], sha256.Size)
	if !ok1 || !ok2 || !ok3 || Pin(pin).IsZero() {
		return Token{}, ErrToken
	}
	return Token{ID: parts[1], Pin: Pin(pin), secret: NewSecret(secret)}, nil
}

// Reveal returns the whole token: zt1.<id>.<secret>.<spki-sha256>. It is shown
// once to who asked for it, and sent once to the server.
func (t Token) Reveal() string {
	return strings.Join([]string{tokenVersion, t.ID, hex.EncodeToString(t.secret.Reveal()), t.Pin.String()}, ".")
}

// Hash returns the SHA-256 of the secret: what is stored. The secret is random
// and as long as the hash, so that a slow hash would add nothing.
func (t Token) Hash() []byte {
	h := sha256.Sum256(t.secret.Reveal())
	return h[:]
}

// String names the token without its secret.
func (t Token) String() string               { return tokenVersion + "." + t.ID + "." + redacted }
func (t Token) GoString() string             { return t.String() }
func (t Token) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(t.String())) }
func (t Token) LogValue() slog.Value         { return slog.StringValue(t.String()) }
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// unhex reads exactly n bytes of lower-case hex.
func unhex(s string, n int) ([]byte, bool) {
	b, err := hex.DecodeString(s)
	return b, err == nil && len(b) == n && hex.EncodeToString(b) == s
}
