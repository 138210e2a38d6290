package identity_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ztmesh/ztmesh/identity"
)

func contextOf(name string) identity.Context {
	return identity.Context{
		Name: name, TrustDomain: "shop.example", Servers: []string{"127.0.0.1:7400", "[::1]:7400"},
		Roots: "roots\n", Certificate: "chain\n", Key: "hush-hush\n",
	}
}

func TestContextsRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "contexts.yaml")
	want := &identity.Contexts{}
	want.Put(contextOf("dev"))
	want.Put(contextOf("prod"))
	if want.Current != "dev" {
		t.Fatalf("current = %q, want the first context", want.Current)
	}
	if err := identity.SaveContexts(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := identity.LoadContexts(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	for p, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != mode {
			t.Fatalf("%s: mode %v, %v; want %v", p, info.Mode().Perm(), err, mode)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".tmp-*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestSaveContextsTightensMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contexts.yaml")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := identity.SaveContexts(path, &identity.Contexts{}); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.LoadContexts(path); err != nil {
		t.Fatal(err)
	}
}

func TestLoadContextsRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, content, want string
		mode                fs.FileMode
		is                  error
	}{
		{name: "readable by others", mode: 0o640, is: identity.ErrContextsMode, want: "0640"},
		{name: "unknown key", content: "currant: x\n", mode: 0o600, want: "currant"},
		{name: "duplicate key", content: "current: a\ncurrent: b\n", mode: 0o600, want: "already defined"},
		{name: "two documents", content: "current: ''\n---\ncurrent: ''\n", mode: 0o600, want: "more than one document"},
		{name: "current is missing", content: "current: x\n", mode: 0o600, want: `"x"`},
		{name: "all that is wrong", content: "contexts: [{name: a, servers: [h]}, {name: a}]\n", mode: 0o600, want: "server \"h\" is not host:port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "contexts.yaml")
			if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
				t.Fatal(err)
			}
			_, err := identity.LoadContexts(path)
			if err == nil || !strings.Contains(err.Error(), tc.want) || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Fatalf("err = %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := identity.LoadContexts(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
}

func TestContextsFindRemove(t *testing.T) {
	c := &identity.Contexts{}
	c.Put(contextOf("a"))
	c.Put(contextOf("b"))
	b := contextOf("b")
	b.TrustDomain = "other.example"
	c.Put(b)
	if got, ok := c.Find("b"); !ok || got.TrustDomain != "other.example" || len(c.Contexts) != 2 {
		t.Fatalf("b = %v, %v", got, ok)
	}
	if got, ok := c.Find(""); !ok || got.Name != "a" {
		t.Fatalf("current = %v, %v", got, ok)
	}
	if !c.Remove("a") || c.Remove("a") || c.Current != "" {
		t.Fatalf("after removal: %v", c)
	}
	if _, ok := c.Find(""); ok {
		t.Fatal("a removed context is still current")
	}
}

func TestContextHidesItsKey(t *testing.T) {
	x := contextOf("a")
	asJSON, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(x), fmt.Sprintf("%+v %#v %s", x, x, x.Key), string(asJSON)} {
		if strings.Contains(s, "hush") {
			t.Errorf("shows the key: %s", s)
		}
	}
}

func TestParseKey(t *testing.T) {
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	secret, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	got, err := identity.ParseKey(secret.Reveal())
	if err != nil || !key.Public().(*ecdsa.PublicKey).Equal(got.Public()) {
		t.Fatalf("another key came back: %v", err)
	}
	for _, bad := range [][]byte{nil, []byte("key"), append(secret.Reveal(), secret.Reveal()...)} {
		if _, err := identity.ParseKey(bad); err == nil {
			t.Errorf("accepted %d bytes that are not one key", len(bad))
		}
	}
}
