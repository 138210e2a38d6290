package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Bounds of a command that prints keys.
const (
	keyCommandTimeout = 10 * time.Second
	maxKeyText        = 64 << 10
	maxKeyComplaint   = 1 << 10
)

// KeySource is where a server has its key-encryption keys from. Its text is
//
//	file:PATH       a file of mode 0600
//	env:NAME        an environment variable of the process
//	command:PROGRAM ARGUMENT...
//	                what a program prints, as a key management service's client
//	                does; no shell is involved, arguments are divided by spaces
//
// Each gives the text of a key file. The zero KeySource is none.
type KeySource struct{ kind, what string }

// Kinds of KeySource.
const (
	sourceFile    = "file"
	sourceEnv     = "env"
	sourceCommand = "command"
)

// ParseKeySource reads the text of a KeySource.
func ParseKeySource(text string) (KeySource, error) {
	kind, what, ok := strings.Cut(text, ":")
	s := KeySource{kind, strings.TrimSpace(what)}
	switch {
	case !ok || s.what == "":
	case kind == sourceFile, kind == sourceEnv && !strings.ContainsAny(s.what, "= "), kind == sourceCommand:
		return s, nil
	}
	// A key in the place of a source must not be printed.
	return KeySource{}, errors.New("key source: must be file:PATH, env:NAME or command:PROGRAM ARGUMENTS")
}

// KeyFile is the source of a file.
func KeyFile(path string) KeySource { return KeySource{sourceFile, path} }

// String names the source; it holds no secret.
func (s KeySource) String() string {
	if s.IsZero() {
		return ""
	}
	return s.kind + ":" + s.what
}

// Kind is file, env or command.
func (s KeySource) Kind() string { return s.kind }

// IsZero says that there is no source.
func (s KeySource) IsZero() bool { return s.kind == "" }

// File returns the path of a file source.
func (s KeySource) File() (path string, ok bool) { return s.what, s.kind == sourceFile }

// Read asks the source. A file that others can read is refused; one that does not
// exist is fs.ErrNotExist.
func (s KeySource) Read(ctx context.Context) (Keys, error) {
	text, err := s.text(ctx)
	if err != nil {
		return Keys{}, fmt.Errorf("key-encryption key from %s: %w", s, err)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return Keys{}, fmt.Errorf("key-encryption key from %s: %w", s, err)
	}
	return keys, nil
}

func (s KeySource) text(ctx context.Context) (Secret, error) {
	switch s.kind {
	case sourceFile:
		b, err := readPrivate(s.what)
		return NewSecret(b), err
	case sourceEnv:
		v, ok := os.LookupEnv(s.what)
		if !ok {
			return Secret{}, errors.New("the variable is not set")
		}
		return NewSecret([]byte(v)), nil
	case sourceCommand:
		return runKeyCommand(ctx, strings.Fields(s.what))
	default:
		return Secret{}, errors.New("no source")
	}
}

// runKeyCommand returns what a program prints. Its complaints go into the error,
// shortened, and without what looks like a key.
func runKeyCommand(ctx context.Context, args []string) (Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, keyCommandTimeout)
	defer cancel()
	out, complaint := &head{max: maxKeyText}, &head{max: maxKeyComplaint}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, complaint
	cmd.WaitDelay = time.Second // a child of its own may hold the pipes open
	err := cmd.Run()
	switch said := strings.TrimSpace(string(keyLike.ReplaceAll(complaint.Bytes(), []byte(redacted)))); {
	case ctx.Err() != nil:
		return Secret{}, errors.New("no answer in time")
	case err != nil && said != "":
		return Secret{}, fmt.Errorf("%w: %s", err, said)
	case err != nil:
		return Secret{}, err
	case out.cut:
		return Secret{}, fmt.Errorf("it prints more than %d bytes", maxKeyText)
	}
	return NewSecret(out.Bytes()), nil
}

// keyLike is what a program that fails may quote: a key, whole or in part.
var keyLike = regexp.MustCompile(`(?i)(ztkek1:\S*|[0-9a-f]{32,}|[a-z0-9+/_-]{40,}=*)`)

// head keeps the first bytes of what is written to it.
type head struct {
	bytes.Buffer
	max int
	cut bool
}

func (h *head) Write(p []byte) (int, error) {
	keep := min(len(p), h.max-h.Len())
	h.cut = h.cut || keep < len(p)
	h.Buffer.Write(p[:keep])
	return len(p), nil
}

// ReadFrom keeps io.Copy from going around Write.
func (h *head) ReadFrom(r io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{h}, r) }

// SaveKeys writes a key file where there is none. An existing file is never
// replaced: what it seals would be lost.
func SaveKeys(path string, keys Keys) error {
	if keys.IsZero() {
		return errors.New("save key-encryption key: there is none")
	}
	if err := createFile(path, keys.Text().Reveal()); err != nil {
		return fmt.Errorf("save key-encryption key: %w", err)
	}
	return nil
}

// PutKey puts a key into the key file at path, before those that are there, or into a
// new file. One that is there already is left where it is.
func PutKey(path string, key KEK) error {
	keys, err := KeyFile(path).Read(context.Background())
	if errors.Is(err, fs.ErrNotExist) {
		keys, err = Keys{}, nil
	}
	if err != nil {
		return err
	}
	if _, has := keys.Find(key.ID()); has {
		return nil
	}
	if keys, err = NewKeys(append([]KEK{key}, keys.list...)...); err != nil {
		return fmt.Errorf("key file %s: %w", path, err)
	}
	return WriteFile(path, keys.Text().Reveal())
}

// DropKey takes a key out of the key file at path. The last one stays.
func DropKey(path, id string) error {
	keys, err := KeyFile(path).Read(context.Background())
	if err != nil {
		return err
	}
	if _, ok := keys.Find(id); !ok {
		return fmt.Errorf("key file %s has no key %q, but %s", path, id, strings.Join(keys.IDs(), ", "))
	}
	if len(keys.list) == 1 {
		return fmt.Errorf("key file %s has no other key", path)
	}
	var left []KEK
	for _, k := range keys.list {
		if k.ID() != id {
			left = append(left, k)
		}
	}
	return WriteFile(path, Keys{left}.Text().Reveal())
}

// Within says whether path lies in the folder dir, once links are followed.
func Within(dir, path string) (bool, error) {
	d, err := resolve(dir)
	if err != nil {
		return false, err
	}
	p, err := resolve(path)
	if err != nil {
		return false, err
	}
	rel, err := filepath.Rel(d, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)), nil
}

// resolve makes path absolute and follows the links in as much of it as there is.
func resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for p := path; ; p = filepath.Dir(p) {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}
