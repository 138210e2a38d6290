package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// ErrContextsMode is returned when a contexts file can be read or written by
// others than its owner: the keys in it are then not to be trusted.
var ErrContextsMode = errors.New("contexts file is open to others")

// Context is an admin's credential for one cluster, with what is needed to reach
// it and to know it again. Certificate, Key and Roots are PEM.
type Context struct {
	Name        string     `yaml:"name"`
	TrustDomain string     `yaml:"trustDomain"` // of the mesh: "shop.example"
	Servers     []string   `yaml:"servers"`     // admin ports, host:port; tried in this order
	Roots       string     `yaml:"roots"`
	Certificate string     `yaml:"certificate"` // leaf first, then the intermediate
	Key         ContextKey `yaml:"key"`
}

// ContextKey is a private key as PEM. Only the YAML of a contexts file shows it.
type ContextKey string

// Format hides the key from every verb, also from those that String does not
// answer.
func (ContextKey) Format(f fmt.State, _ rune) { redact(f) }

// String hides the key.
func (ContextKey) String() string { return redacted }

// GoString hides the key.
func (ContextKey) GoString() string { return redacted }

// LogValue hides the key.
func (ContextKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the key from encoders other than YAML.
func (ContextKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes the key as it is.
func (k *ContextKey) UnmarshalText(b []byte) error { *k = ContextKey(b); return nil }

// MarshalYAML writes the key: a contexts file is where it lives.
func (k ContextKey) MarshalYAML() (any, error) { return string(k), nil }

// Contexts is the content of a contexts file. `ztd init` writes one with a
// single context; ztctl keeps a person's. It is not safe for concurrent use.
type Contexts struct {
	Current  string    `yaml:"current"` // a context's name; empty: none is in use
	Contexts []Context `yaml:"contexts"`
}

// LoadContexts reads a contexts file strictly: unknown and duplicate keys are
// errors, as is a file that others may read (ErrContextsMode). A file that does
// not exist is fs.ErrNotExist.
func LoadContexts(path string) (*Contexts, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, wants 0600", ErrContextsMode, path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxContextsSize+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxContextsSize {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxContextsSize)
	}
	c, err := ParseContexts(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// maxContextsSize bounds a contexts file: some 300 contexts.
const maxContextsSize = 1 << 20

// ParseContexts reads what SaveContexts writes, and validates it.
func ParseContexts(raw []byte) (*Contexts, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	c := &Contexts{}
	if err := dec.Decode(c); err != nil {
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	return c, c.Validate()
}

// SaveContexts writes the file with mode 0600, replacing it in one step, and
// makes its folder (0700) where it is missing.
func SaveContexts(path string, c *Contexts) error {
	if err := c.Validate(); err != nil {
		return err
	}
	raw, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return WriteFile(path, raw)
}

// Validate joins everything that is wrong with the contexts. It judges their
// shape, not their certificates.
func (c *Contexts) Validate() error {
	var errs []error
	seen := map[string]bool{}
	for i, x := range c.Contexts {
		if seen[x.Name] {
			errs = append(errs, fmt.Errorf("context %q stands twice", x.Name))
		}
		seen[x.Name] = true
		if err := x.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("contexts[%d]: %w", i, err))
		}
	}
	if c.Current != "" && !seen[c.Current] {
		errs = append(errs, fmt.Errorf("current names context %q, which is not there", c.Current))
	}
	return errors.Join(errs...)
}

// Validate joins everything that is missing from the context or malformed.
func (x Context) Validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"name", x.Name},
		{"trustDomain", x.TrustDomain},
		{"roots", x.Roots},
		{"certificate", x.Certificate},
		{"key", string(x.Key)},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s is missing", f.name))
		}
	}
	if len(x.Servers) == 0 {
		errs = append(errs, errors.New("servers is empty"))
	}
	for _, s := range x.Servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("server %q is not host:port", s))
		}
	}
	return errors.Join(errs...)
}

// Find returns the context of that name; with an empty name, the current one.
func (c *Contexts) Find(name string) (Context, bool) {
	if name == "" {
		name = c.Current
	}
	i := c.index(name)
	if i < 0 {
		return Context{}, false
	}
	return c.Contexts[i], true
}

// Put adds the context or replaces the one of its name. The first context
// becomes the current one.
func (c *Contexts) Put(x Context) {
	if i := c.index(x.Name); i >= 0 {
		c.Contexts[i] = x
	} else {
		c.Contexts = append(c.Contexts, x)
	}
	if c.Current == "" {
		c.Current = x.Name
	}
}

// Remove takes the context of that name away and says whether it was there. No
// other becomes current by itself.
func (c *Contexts) Remove(name string) bool {
	i := c.index(name)
	if i < 0 {
		return false
	}
	c.Contexts = slices.Delete(c.Contexts, i, i+1)
	if c.Current == name {
		c.Current = ""
	}
	return true
}

func (c *Contexts) index(name string) int {
	return slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Name == name })
}
