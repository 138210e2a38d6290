package identity_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ztmesh/ztmesh/identity"
)

func dataKeys(t testing.TB, path string, kek identity.KEK) *identity.DataKeys {
	t.Helper()
	d, err := identity.NewDataKeys(path, trustDomain, serverA, kek)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What one process has sealed, a later one opens, by the same key-encryption key
// and for the same server only.
func TestDataKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data-keys")
	kek, next := identity.NewKEK(), identity.NewKEK()
	d := dataKeys(t, path, kek)
	plain, about := []byte("what is secret"), []byte("entry 7")
	boxes := [][]byte{d.Seal(nil, plain, about), d.Seal(nil, plain, about)}
	if bytes.Equal(boxes[0], boxes[1]) || bytes.Contains(boxes[0], plain) || len(boxes[0]) != len(plain)+identity.BoxOverhead {
		t.Error("a box")
	}
	open := func(k identity.Keys) *identity.DataKeys {
		t.Helper()
		d, err := identity.OpenDataKeys(path, trustDomain, serverA, k)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range boxes {
			if got, err := d.Open(b, about); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("box %d: %q, %v", i, got, err)
			}
		}
		return d
	}
	d = open(keys(t, kek))
	boxes = append(boxes, d.Seal(nil, plain, about))

	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"another key":    func() error { _, err := identity.OpenDataKeys(path, trustDomain, serverA, keys(t, next)); return err },
		"another server": func() error { _, err := identity.OpenDataKeys(path, trustDomain, serverB, keys(t, kek)); return err },
		"another domain": func() error {
			_, err := identity.OpenDataKeys(path, "other.example", serverA, keys(t, kek))
			return err
		},
	} {
		if err := try(); !errors.Is(err, identity.ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = identity.OpenDataKeys(path, trustDomain, serverA, keys(t, next))
	wantErr(t, err, "it wants key "+kek.ID()+", and the keys given are "+next.ID())
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a key that does not open has changed the file: %v", err)
	}
	if _, err := identity.NewDataKeys(path, trustDomain, serverA, kek); err == nil {
		t.Error("data keys were replaced")
	}

	// Rotation of the data key and of the key-encryption key, in one step.
	if err := d.Renew(next); err != nil || d.Number() != 2 || d.Oldest() != 1 || d.KEK() != next.ID() {
		t.Errorf("number %d, oldest %d, key %s, %v", d.Number(), d.Oldest(), d.KEK(), err)
	}
	boxes = append(boxes, d.Seal(nil, plain, about))
	if _, err := identity.OpenDataKeys(path, trustDomain, serverA, keys(t, kek)); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("the old key opens: %v", err)
	}
	d = open(keys(t, kek, next))
	if d.KEK() != next.ID() || d.Number() != 2 {
		t.Errorf("key %s, number %d", d.KEK(), d.Number())
	}

	// Whatever is changed does not open.
	for i := range boxes[3] {
		if _, err := d.Open(flip(boxes[3], i), about); !errors.Is(err, identity.ErrSealed) {
			t.Fatalf("flipped at %d: %v", i, err)
		}
		if _, err := d.Open(boxes[3][:i], about); !errors.Is(err, identity.ErrSealed) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := d.Open(boxes[0], []byte("entry 8")); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("about something else: %v", err)
	}
	if _, err := dataKeys(t, "", kek).Open(boxes[0], about); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("another server's: %v", err)
	}
}

// Data keys that nothing needs are forgotten: what they have sealed does not open any
// more, here or after a restart. The one in use, and one that a stream is being written
// with, stay; and no more are made than are kept.
func TestDataKeysAreDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data-keys")
	kek := identity.NewKEK()
	d := dataKeys(t, path, kek)
	first := d.Seal(nil, []byte("one"), nil)
	if n, ok := identity.DataKeyOf(first); !ok || n != 1 {
		t.Errorf("sealed with %d, %v", n, ok)
	}
	var b bytes.Buffer
	stream, err := d.SealTo(&b, nil)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(err)
	check(d.Renew(kek))
	second := d.Seal(nil, []byte("two"), nil)
	check(d.Drop(2, kek))
	if d.Oldest() != 1 {
		t.Error("the key of a stream that is being written is gone")
	}
	_, err = stream.Write([]byte("stream"))
	check(errors.Join(err, stream.Close()))
	if got, err := d.OpenFrom(bytes.NewReader(b.Bytes()), nil); err != nil {
		t.Error(err)
	} else if text, err := io.ReadAll(got); err != nil || string(text) != "stream" {
		t.Errorf("%q, %v", text, err)
	}
	wantErr(t, d.Drop(2, identity.NewKEK()), "sealed with key "+kek.ID())
	check(d.Drop(9, kek)) // not the one in use
	again, err := identity.OpenDataKeys(path, trustDomain, serverA, keys(t, kek))
	check(err)
	for _, d := range []*identity.DataKeys{d, again} {
		if _, err := d.Open(first, nil); !errors.Is(err, identity.ErrSealed) || d.Oldest() != 2 {
			t.Errorf("a key that was dropped opens: %v; the oldest is %d", err, d.Oldest())
		}
		if got, err := d.Open(second, nil); err != nil || string(got) != "two" {
			t.Errorf("%q, %v", got, err)
		}
	}
	for range 70 {
		check(d.Renew(kek))
	}
	if n := d.Number() - d.Oldest() + 1; n != 64 {
		t.Errorf("%d data keys", n)
	}
}

// No nonce is used twice with a key, whoever seals, however many at a time.
func TestNoncesAreNotUsedTwice(t *testing.T) {
	kek := identity.NewKEK()
	d := dataKeys(t, "", kek)
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				if i == 250 {
					if err := d.Renew(kek); err != nil {
						t.Error(err)
					}
				}
				head := string(d.Seal(nil, nil, nil)[:28])
				mu.Lock()
				if seen[head] {
					t.Error("a nonce twice")
				}
				seen[head] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// A stream of any length comes back; one that was cut, swapped, doubled or changed
// anywhere does not, and nothing that was changed is ever given out.
func TestStreams(t *testing.T) {
	const chunk, sealed = 64 << 10, 64<<10 + 16
	d := dataKeys(t, "", identity.NewKEK())
	about := []byte("snapshot")
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3*chunk + 17} {
		plain := make([]byte, size)
		for i := range plain {
			plain[i] = byte(rnd.Uint32())
		}
		var b bytes.Buffer
		w, err := d.SealTo(&b, about)
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(40_000))
			if m, err := w.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		unclosed := bytes.Clone(b.Bytes())
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("written after Close")
		}
		whole := b.Bytes()
		if got := d.PlainSize(int64(len(whole))); got != int64(size) {
			t.Errorf("PlainSize %d of %d", got, size)
		}
		read := func(in []byte, about []byte) ([]byte, error) {
			r, err := d.OpenFrom(bytes.NewReader(in), about)
			if err != nil {
				return nil, err
			}
			return io.ReadAll(r)
		}
		if got, err := read(whole, about); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("size %d: %d bytes, %v", size, len(got), err)
		}
		refuse := func(what string, in, about []byte) {
			t.Helper()
			got, err := read(in, about)
			if !errors.Is(err, identity.ErrSealed) || !bytes.HasPrefix(plain, got) {
				t.Errorf("size %d, %s: %d bytes, %v", size, what, len(got), err)
			}
		}
		refuse("about something else", whole, []byte("snapshop"))
		refuse("not closed", unclosed, about)
		refuse("more at the end", append(bytes.Clone(whole), 0), about)
		for range 40 {
			refuse("cut", whole[:rnd.IntN(len(whole))], about)
			refuse("flipped", flip(whole, rnd.IntN(len(whole))), about)
		}
		const head = 20
		if size > 2*chunk {
			swapped := bytes.Clone(whole)
			copy(swapped[head:], whole[head+sealed:head+2*sealed])
			refuse("doubled", swapped, about)
			copy(swapped[head+sealed:], whole[head:head+sealed])
			refuse("swapped", swapped, about)
			refuse("without its first chunk", append(bytes.Clone(whole[:head]), whole[head+sealed:]...), about)
			refuse("without its last chunk", whole[:head+(size/chunk)*sealed], about)
		}
	}
}

func TestSealedKeyPair(t *testing.T) {
	c := newCluster(t, trustDomain)
	d := dataKeys(t, "", identity.NewKEK())
	path := filepath.Join(t.TempDir(), "pair")
	want := c.server(t, serverA)
	if err := want.SaveSealed(path, d); err != nil {
		t.Fatal(err)
	}
	got, err := identity.LoadSealedKeyPair(path, d)
	if err != nil || !got.Leaf().Equal(want.Leaf()) {
		t.Fatal(err)
	}
	if _, err := identity.LoadSealedKeyPair(path, dataKeys(t, "", identity.NewKEK())); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("by another server's keys: %v", err)
	}
	content, err := os.ReadFile(path)
	if err != nil || bytes.Contains(content, []byte("PRIVATE")) || bytes.Contains(content, scalarOf(t, want.Key)) {
		t.Errorf("in clear, or %v", err)
	}
}

// A statement counts as what it was made: of this digest and purpose, by a server of
// this root, while its certificate lived.
func TestStatements(t *testing.T) {
	c, other := newCluster(t, trustDomain), newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	digest := [32]byte{1, 2, 3}
	sig, by, err := a.SignStatement("backup", digest)
	if err != nil {
		t.Fatal(err)
	}
	root, now := c.root.Certificate(), by.NotBefore.Add(1)
	if server, err := identity.VerifyStatement("backup", digest, sig, by, root, now); err != nil || server != serverA {
		t.Errorf("%s, %v", server, err)
	}
	for name, try := range map[string]func() (string, error){
		"another purpose": func() (string, error) { return identity.VerifyStatement("other", digest, sig, by, root, now) },
		"another digest":  func() (string, error) { return identity.VerifyStatement("backup", [32]byte{1, 2}, sig, by, root, now) },
		"changed":         func() (string, error) { return identity.VerifyStatement("backup", digest, flip(sig, 9), by, root, now) },
		"another root": func() (string, error) {
			return identity.VerifyStatement("backup", digest, sig, by, other.root.Certificate(), now)
		},
		"too late": func() (string, error) {
			return identity.VerifyStatement("backup", digest, sig, by, root, by.NotAfter.Add(1))
		},
		"by an admin": func() (string, error) {
			return identity.VerifyStatement("backup", digest, sig, c.admin(t, "ada").Leaf(), root, now)
		},
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
}
