package canaries_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/canaries"
	"github.com/ztmesh/ztmesh/identity"
)

// scalar is the secret of a private key.
func scalar(t testing.TB, key identity.PrivateKey) (secret, der []byte) {
	t.Helper()
	text, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text.Reveal())
	return scalarOf(t, block.Bytes), block.Bytes
}

// scalarOf is that of a key in PKCS #8.
func scalarOf(t testing.TB, der []byte) []byte {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Each of 64 canaries is found in every form that a program may write it in, wherever
// it stands, and even half of it; and where there is none, none is found.
func TestFinder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var all []canaries.Canary
	keys := map[string][]byte{}
	for i := range 64 {
		key, err := identity.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		secret, der := scalar(t, key)
		name := fmt.Sprint("canary ", i)
		all, keys[name] = append(all, canaries.Canary{Name: name, Secret: secret}), der
	}
	f := canaries.NewFinder(all)
	noise := func() []byte {
		b := make([]byte, 1000+rnd.IntN(1000))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for range 500 {
		if got := f.Find("noise", noise(), true); len(got) > 0 {
			t.Fatalf("found in noise: %v", got)
		}
	}
	for _, c := range all {
		der := keys[c.Name]
		for form, text := range map[string]string{
			"raw": string(c.Secret), "hex": hex.EncodeToString(c.Secret), "HEX": fmt.Sprintf("%X", c.Secret),
			"%v": fmt.Sprint(c.Secret), "%q of PEM": fmt.Sprintf("%q", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
			"colons": fmt.Sprintf("%x:%x", c.Secret[:1], c.Secret[1:]), "DER": string(der),
			"PEM":        string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
			"base64":     base64.StdEncoding.EncodeToString(c.Secret),
			"base64url":  base64.URLEncoding.EncodeToString(c.Secret),
			"base64+1":   base64.StdEncoding.EncodeToString(append([]byte("x"), c.Secret...)),
			"base64+2":   base64.RawURLEncoding.EncodeToString(append([]byte("xy"), c.Secret...)),
			"first half": string(c.Secret[:16]), "second half": hex.EncodeToString(c.Secret[16:]),
		} {
			content := append(append(noise(), text...), noise()...)
			got := f.Find("planted", content, false)
			if len(got) == 0 {
				t.Errorf("%s is not found as %s", c.Name, form)
			}
			for _, g := range got {
				if g.Canary != c.Name {
					t.Errorf("%s, as %s, is taken for %s", c.Name, form, g.Canary)
				}
			}
		}
	}
	own := []canaries.Canary{{Name: "own", Secret: all[0].Secret, Own: []string{"agent-1/"}}, {Name: "spec", Secret: all[1].Secret, Disk: true}}
	f = canaries.NewFinder(own)
	if got := f.Find("x/agent-1/node.pem", own[0].Secret, true); len(got) > 0 {
		t.Errorf("an owner's own: %v", got)
	}
	if got := f.Find("x/agent-2/node.pem", own[0].Secret, true); len(got) == 0 {
		t.Error("another's is not found")
	}
	if a, b := f.Find("stdout", own[1].Secret, false), f.Find("disk", own[1].Secret, true); len(a) > 0 || len(b) == 0 {
		t.Errorf("what is in a spec: %v, %v", a, b)
	}
}
