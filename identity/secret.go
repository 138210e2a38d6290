package identity

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is bytes that must not be seen. Every fmt verb, slog, JSON and text
// encoders write [redacted], also for a Secret in an unexported field, which
// encoders reach by reflection only: there they find a pointer.
type Secret struct{ b *[]byte }

// NewSecret wraps a copy of b.
func NewSecret(b []byte) Secret {
	c := append([]byte(nil), b...)
	return Secret{&c}
}

// Reveal returns a copy of the bytes. Each use is a place to look at.
func (s Secret) Reveal() []byte {
	if s.b == nil {
		return nil
	}
	return append([]byte(nil), *s.b...)
}

// IsZero says that there is no secret.
func (s Secret) IsZero() bool { return s.b == nil || len(*s.b) == 0 }

func (s Secret) String() string                 { return redacted }
func (s Secret) GoString() string               { return redacted }
func (s Secret) Format(f fmt.State, _ rune)     { redact(f) }
func (s Secret) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (s Secret) MarshalJSON() ([]byte, error)   { return []byte(`"` + redacted + `"`), nil }
func (k PrivateKey) String() string             { return redacted }
func (k PrivateKey) GoString() string           { return redacted }
func (k PrivateKey) Format(f fmt.State, _ rune) { redact(f) }
func (k PrivateKey) LogValue() slog.Value       { return slog.StringValue(redacted) }
func (k PrivateKey) MarshalText() ([]byte, error) {
	return []byte(redacted), nil
}
func (k PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// redact answers every verb. A write to a fmt.State cannot be refused usefully.
func redact(f fmt.State) { _, _ = io.WriteString(f, redacted) }
