package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

// 64 secrets of every kind, printed in every way that Go has: none is seen, in
// any notation.
func TestSecretsAreNeverPrinted(t *testing.T) {
	c := newCluster(t, trustDomain)
	a := c.authority(t, serverA)
	for round := range 16 {
		kek := identity.NewKEK()
		token, err := identity.NewToken(identity.PinOf(c.root.Certificate()))
		if err != nil {
			t.Fatal(err)
		}
		tokenSecret, err := hex.DecodeString(strings.Split(token.Reveal(), ".")[2])
		if err != nil {
			t.Fatal(err)
		}
		pair, err := a.MakeSVID(web, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		scalar := scalarOf(t, pair.Key)
		secret := identity.NewSecret(tokenSecret)
		var current identity.Current
		current.Set(pair)
		canaries := [][]byte{kek.Reveal(), tokenSecret, scalar, scalarOf(t, a.Intermediate().Key)}
		values := []any{kek, &kek, token, &token, secret, &secret, pair.Key, &pair.Key}
		if round == 0 { // these hold whole certificates and take long
			values = append(values, pair, *pair, pair.TLS(), *pair.TLS(), c.root, *c.root, a, &current)
		}
		for _, v := range values {
			refuseCanaries(t, everyPrint(v), v, canaries)
		}
		// A text that YAML must read and write: hidden from what a person would
		// print it by.
		key := identity.ContextKey(hex.EncodeToString(scalar))
		refuseCanaries(t, prints("vsqxXd", key, &key, identity.Context{Key: key}, []identity.Context{{Key: key}}), key, canaries)
		_, err1 := identity.ParseToken(token.Reveal() + "0")
		_, err2 := identity.KEKFrom(kek.Reveal()[1:])
		_, err3 := identity.ParseKeyPair(append([]byte("x"), scalar...))
		err = errors.Join(err1, err2, err3)
		refuseCanaries(t, everyPrint(err), err, canaries)
	}
}

func scalarOf(t *testing.T, k identity.PrivateKey) []byte {
	t.Helper()
	s, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(s.Reveal())
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	b, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func refuseCanaries(t *testing.T, out string, v any, canaries [][]byte) {
	t.Helper()
	for _, c := range canaries {
		for notation, s := range notations(c) {
			if strings.Contains(out, s) {
				t.Errorf("%T shows its secret in %s", v, notation)
			}
		}
	}
}

// everyPrint prints v alone and inside of others.
func everyPrint(v any) string {
	return prints("vsqxXdpt", v, []any{v}, map[string]any{"k": v}, struct{ V any }{v}, struct{ v any }{v}, &struct{ v any }{v}, fmt.Errorf("wrapped: %v", v))
}

// prints uses the verbs, all flags, slog and JSON. Verbs that are wrong for every
// kind here stand for one another: t.
func prints(verbs string, values ...any) string {
	var b bytes.Buffer
	for _, h := range values {
		for _, verb := range verbs {
			for _, flag := range []string{"", "+", "#", " ", "0", "-9"} {
				fmt.Fprintf(&b, "%"+flag+string(verb)+"\n", h)
			}
		}
		fmt.Fprintln(&b, h)
		for _, handler := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(handler).Info("m", "k", h, slog.Group("g", "k", h))
		}
		// What cannot be encoded prints nothing, which is as good.
		_ = json.NewEncoder(&b).Encode(h)
	}
	return b.String()
}

func notations(b []byte) map[string]string {
	return map[string]string{
		"bytes": string(b), "hex": hex.EncodeToString(b), "HEX": strings.ToUpper(hex.EncodeToString(b)),
		"base64": base64.RawStdEncoding.EncodeToString(b)[:40], "base64url": base64.RawURLEncoding.EncodeToString(b)[:40],
		"a decimal list": strings.Trim(fmt.Sprintf("%d", b), "[]"), "a Go literal": strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}"),
		"words":       strings.Trim(fmt.Sprint(new(big.Int).SetBytes(b).Bits()), "[]"),
		"a JSON list": strings.ReplaceAll(strings.Trim(fmt.Sprintf("%d", b), "[]"), " ", ","),
		"a number":    new(big.Int).SetBytes(b).String(), "hex with spaces": fmt.Sprintf("% x", b),
	}
}

// The test above can see a secret when there is one to see.
func TestCanariesAreSeen(t *testing.T) {
	b := identity.NewKEK().Reveal()
	n := new(big.Int).SetBytes(b)
	for _, v := range []any{b, struct{ v []byte }{b}, n, hex.EncodeToString(b)} {
		out := everyPrint(v)
		found := false
		for _, s := range notations(b) {
			found = found || strings.Contains(out, s)
		}
		if !found {
			t.Errorf("%T: not found", v)
		}
	}
}

func TestSecretIsACopy(t *testing.T) {
	in := []byte("secret")
	s := identity.NewSecret(in)
	in[0] = 'x'
	s.Reveal()[1] = 'x'
	if string(s.Reveal()) != "secret" {
		t.Errorf("changed to %q", s.Reveal())
	}
	if !(identity.Secret{}).IsZero() || s.IsZero() {
		t.Error("IsZero")
	}
	if got := fmt.Sprint(s, identity.Secret{}); got != "[redacted] [redacted]" {
		t.Errorf("prints %q", got)
	}
}
