package identity_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ztmesh/ztmesh/identity"
)

func TestRootSealing(t *testing.T) {
	c := newCluster(t, trustDomain)
	kek := identity.NewKEK()
	sealed, err := c.root.Seal(kek)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.root.Seal(kek)
	if err != nil || bytes.Equal(sealed, again) {
		t.Errorf("two sealings are equal, or %v", err)
	}
	if bytes.Contains(sealed, scalarOfRoot(t, c.root, kek)) {
		t.Error("the key stands in what is sealed")
	}
	root, err := identity.OpenRoot(c.root.Certificate(), sealed, keys(t, kek), c.signing())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.IssueAdmin(newKey(t).Public(), "ada")
	if err != nil {
		t.Fatal(err)
	}
	if err := chain[0].CheckSignatureFrom(c.root.Certificate()); err != nil {
		t.Errorf("the opened root is another: %v", err)
	}
}

// keys is a set of keys.
func keys(t testing.TB, list ...identity.KEK) identity.Keys {
	t.Helper()
	k, err := identity.NewKeys(list...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// scalarOfRoot unseals by hand, as OpenRoot does.
func scalarOfRoot(t *testing.T, root *identity.Root, kek identity.KEK) []byte {
	t.Helper()
	sealed, err := root.Seal(kek)
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys(t, kek).Open("root-key", root.TrustDomain(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	return der.Reveal()
}

func TestSealedStaysSealed(t *testing.T) {
	c, other := newCluster(t, trustDomain), newCluster(t, "other.example")
	same := newCluster(t, trustDomain)
	kek := identity.NewKEK()
	sealed, err := c.root.Seal(kek)
	if err != nil {
		t.Fatal(err)
	}
	cert := c.root.Certificate()
	_, err = identity.OpenRoot(cert, sealed, keys(t, identity.NewKEK()), c.signing())
	if !errors.Is(err, identity.ErrSealed) {
		t.Errorf("opened by another key: %v", err)
	}
	_, err = identity.OpenRoot(other.root.Certificate(), sealed, keys(t, kek), c.signing())
	if !errors.Is(err, identity.ErrSealed) {
		t.Errorf("opened for another trust domain: %v", err)
	}
	_, err = identity.OpenRoot(same.root.Certificate(), sealed, keys(t, kek), c.signing())
	wantErr(t, err, "for another key")
	_, err = identity.OpenRoot(c.admin(t, "ada").Leaf(), sealed, keys(t, kek), c.signing())
	wantErr(t, err, "not a certificate authority")
	_, err = identity.OpenRoot(cert, sealed, identity.Keys{}, c.signing())
	wantErr(t, err, "wants key "+kek.ID())
	_, err = c.root.Seal(identity.KEK{})
	wantErr(t, err, "no key-encryption key")
	if _, err = keys(t, kek).Open("secret", trustDomain, sealed); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("opened for another purpose: %v", err)
	}
	for i := range sealed {
		for _, damaged := range [][]byte{flip(sealed, i), sealed[:i]} {
			if _, err := keys(t, kek).Open("root-key", trustDomain, damaged); !errors.Is(err, identity.ErrSealed) {
				t.Fatalf("damaged at %d: %v", i, err)
			}
		}
	}
	// The parts of what is bound do not run into each other.
	box, err := kek.Seal("ab", "c", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys(t, kek).Open("a", "bc", box); !errors.Is(err, identity.ErrSealed) {
		t.Errorf("opened: %v", err)
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

func TestKeyPairFile(t *testing.T) {
	c := newCluster(t, trustDomain)
	path := filepath.Join(t.TempDir(), "node.pem")
	for range 2 { // the second replaces the first
		want := c.server(t, serverA)
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
		got, err := identity.LoadKeyPair(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Chain) != 3 || !got.Leaf().Equal(want.Leaf()) || !got.NotAfter().Equal(want.NotAfter()) {
			t.Error("another key pair was read")
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := identity.LoadKeyPair(path)
	wantErr(t, err, "must be a file of mode 0600")

	a, b := c.admin(t, "ada"), c.admin(t, "bob")
	_, err = identity.NewKeyPair(a.Key, b.Chain)
	wantErr(t, err, "for another key")
	_, err = identity.NewKeyPair(a.Key, nil)
	wantErr(t, err, "no certificate")
	_, err = identity.ParseKeyPair(identity.EncodePEM(a.Chain))
	wantErr(t, err, "not a private key")
}

func TestCertificateEncodings(t *testing.T) {
	chain := newCluster(t, trustDomain).server(t, serverA).Chain
	fromDER, err := identity.ParseDER(identity.DER(chain))
	if err != nil || !bytes.Equal(identity.EncodePEM(fromDER), identity.EncodePEM(chain)) {
		t.Errorf("DER: %v", err)
	}
	text := identity.EncodePEM(chain)
	fromPEM, err := identity.ParsePEM(append(text, '\n'))
	if err != nil || len(fromPEM) != 3 {
		t.Errorf("PEM: %d, %v", len(fromPEM), err)
	}
	for _, bad := range []string{"", "\n", "x", string(text) + "x", string(text[:len(text)-2]), "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"} {
		if _, err := identity.ParsePEM([]byte(bad)); err == nil {
			t.Errorf("%.40q is taken for certificates", bad)
		}
	}
	if _, err := identity.ParseDER([][]byte{{1}}); err == nil {
		t.Error("bad DER is taken")
	}
}
