package identity_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/identity"
)

func TestToken(t *testing.T) {
	pin := identity.PinOf(newCluster(t, trustDomain).root.Certificate())
	token, err := identity.NewToken(pin)
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	got, err := identity.ParseToken(text)
	if err != nil || got.ID != token.ID || got.Pin != pin || got.Reveal() != text {
		t.Errorf("parsed as %v, %v", got, err)
	}
	if !bytes.Equal(got.Hash(), token.Hash()) || len(token.Hash()) != 32 {
		t.Error("another hash after it was parsed")
	}
	other, err := identity.NewToken(pin)
	if err != nil {
		t.Fatal(err)
	}
	if other.ID == token.ID || bytes.Equal(other.Hash(), token.Hash()) {
		t.Error("two tokens are one")
	}
	if want := "zt1." + token.ID + ".[redacted]"; fmt.Sprint(token) != want {
		t.Errorf("prints %v, want %s", token, want)
	}
	if _, err := identity.NewToken(identity.Pin{}); !errors.Is(err, identity.ErrNoTrust) {
		t.Errorf("a token that pins nothing: %v", err)
	}
}

func TestParseTokenIsStrict(t *testing.T) {
	token, err := identity.NewToken(identity.PinOf(newCluster(t, trustDomain).root.Certificate()))
	if err != nil {
		t.Fatal(err)
	}
	s := token.Reveal()
	p := strings.Split(s, ".")
	bad := []string{
		"", ".", "...", s + ".", s + "\n", " " + s, "zt2" + s[3:], "ZT1" + s[3:], strings.ToUpper(s),
		strings.Join(p[:3], "."), s + ".00", strings.Join([]string{p[0], p[1] + "00", p[2], p[3]}, "."),
		strings.Join([]string{p[0], "", p[2], p[3]}, "."), strings.Join([]string{p[0], p[1], "", p[3]}, "."),
		strings.Join([]string{p[0], p[1], p[2][2:], p[3]}, "."), strings.Join([]string{p[0], p[1], p[2], strings.Repeat("0", 64)}, "."),
	}
	for i := range s {
		bad = append(bad, s[:i]+"g"+s[i+1:], s[:i]+s[i+1:])
	}
	for _, b := range bad {
		_, err := identity.ParseToken(b)
		if !errors.Is(err, identity.ErrToken) {
			t.Errorf("%q: %v", b, err)
		}
		if err != nil && strings.Contains(err.Error(), p[2][:16]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("zt1.0011223344556677." + strings.Repeat("ab", 32) + "." + strings.Repeat("cd", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := identity.ParseToken(s); err == nil && token.Reveal() != s {
			t.Fatalf("%q reveals as %q", s, token.Reveal())
		}
	})
}
