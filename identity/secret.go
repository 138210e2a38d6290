package identity

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is bytes that must not be seen. Every fmt verb, slog, JSON and text
// encoders write [redacted]. In an unexported field of another type, fmt cannot
// call methods and walks the value by reflection, with a wrong verb also through
// pointers; so the bytes stand in a closure, which shows as an address. That
// also makes two secrets incomparable by ==, which takes a telling time.
type Secret struct{ get func() []byte }

// NewSecret wraps a copy of b.
func NewSecret(b []byte) Secret {
	c := bytes.Clone(b)
	return Secret{func() []byte { return bytes.Clone(c) }}
}

// Reveal returns a copy of the bytes. Each use is a place to look at.
func (s Secret) Reveal() []byte {
	if s.get == nil {
		return nil
	}
	return s.get()
}

// IsZero says that there is no secret.
func (s Secret) IsZero() bool { return s.get == nil }

func (s Secret) String() string                 { return redacted }
func (s Secret) GoString() string               { return redacted }
func (s Secret) Format(f fmt.State, _ rune)     { redact(f) }
func (s Secret) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (k PrivateKey) String() string             { return redacted }
func (k PrivateKey) GoString() string           { return redacted }
func (k PrivateKey) Format(f fmt.State, _ rune) { redact(f) }
func (k PrivateKey) LogValue() slog.Value       { return slog.StringValue(redacted) }
func (k PrivateKey) MarshalText() ([]byte, error) {
	return []byte(redacted), nil
}

// redact answers every verb. A write to a fmt.State cannot be refused usefully.
func redact(f fmt.State) { _, _ = io.WriteString(f, redacted) }
