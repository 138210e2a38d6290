package identity_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

func source(t *testing.T, text string) identity.KeySource {
	t.Helper()
	s, err := identity.ParseKeySource(text)
	if err != nil || s.String() != text {
		t.Fatalf("%s: %s, %v", text, s, err)
	}
	return s
}

// program writes a shell script that may be run.
func program(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kms")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each source gives the keys in their order, and their ids tell them apart.
func TestKeySources(t *testing.T) {
	a, b := identity.NewKEK(), identity.NewKEK()
	both := keys(t, a, b)
	text := string(both.Text().Reveal())
	path := filepath.Join(t.TempDir(), "kek")
	if err := identity.SaveKeys(path, both); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ZT_TEST_KEK", text)
	for _, from := range []string{"file:" + path, "env:ZT_TEST_KEK", "command:/bin/cat " + path, "command:" + program(t, "echo noise >&2; cat "+path)} {
		got, err := source(t, from).Read(t.Context())
		if err != nil {
			t.Errorf("%s: %v", from, err)
		}
		if !slices.Equal(got.IDs(), []string{a.ID(), b.ID()}) || !bytes.Equal(got.First().Reveal(), a.Reveal()) {
			t.Errorf("%s: %v", from, got.IDs())
		}
	}
	if a.ID() == b.ID() || len(a.ID()) != 16 || strings.Contains(text, a.ID()) {
		t.Errorf("ids %s and %s", a.ID(), b.ID())
	}
}

func TestKeySourcesThatFail(t *testing.T) {
	key := strings.TrimSpace(string(identity.NewKEK().Text().Reveal()))
	t.Setenv("ZT_TEST_BAD", key+"0")
	t.Setenv("ZT_TEST_TWICE", key+"\n"+key+"\n")
	for from, want := range map[string]string{
		"file:/nowhere/kek":               "no such file",
		"env:ZT_TEST_UNSET":               "the variable is not set",
		"env:ZT_TEST_BAD":                 "line 1 is not ztkek1:",
		"env:ZT_TEST_TWICE":               "stands twice",
		"command:/nowhere/kms":            "no such file",
		"command:" + program(t, "exit 0"): "line 1 is not",
		"command:" + program(t, "echo no access to the vault >&2; exit 3"): "exit status 3: no access to the vault",
		// What it says in its despair is not shown as it is.
		"command:" + program(t, "echo 'cannot parse "+key+"' >&2; exit 1"): "cannot parse [redacted]",
		"command:" + program(t, "head -c 70000 /dev/zero"):                 "more than 65536 bytes",
	} {
		_, err := source(t, from).Read(t.Context())
		wantErr(t, err, want)
		wantErr(t, err, from)
		if strings.Contains(fmt.Sprint(err), key[7:]) {
			t.Errorf("%s: the error shows the key", from)
		}
	}
	// One that hangs is not waited for, nor what it has started.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := source(t, "command:"+program(t, "sleep 600 & sleep 600")).Read(ctx)
	wantErr(t, err, "no answer in time")
	for _, bad := range []string{"", "kek", key, "file:", "env:", "env:A B", "command: ", "vault:x"} {
		if _, err := identity.ParseKeySource(bad); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// CVE-2023-0690: what others can read is no secret; and a key file is not replaced
// by one that opens nothing of what it has sealed.
func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	if _, err := source(t, "file:"+path).Read(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	first, second := identity.NewKEK(), identity.NewKEK()
	if err := identity.PutKey(path, first); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := identity.PutKey(path, second); err != nil {
		t.Fatal(err)
	}
	got, err := identity.KeyFile(path).Read(t.Context())
	if err != nil || !slices.Equal(got.IDs(), []string{second.ID(), first.ID()}) {
		t.Errorf("%v, %v", got.IDs(), err)
	}
	if err := identity.SaveKeys(path, keys(t, identity.NewKEK())); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key file was replaced: %v", err)
	}
	wantErr(t, identity.SaveKeys(path+"2", identity.Keys{}), "there is none")
	wantErr(t, identity.DropKey(path, "0123456789abcdef"), "has no key")
	if err := identity.DropKey(path, first.ID()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, identity.DropKey(path, second.ID()), "has no other key")
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = identity.KeyFile(path).Read(t.Context())
	wantErr(t, err, "must be a file of mode 0600")
	wantErr(t, identity.PutKey(path, first), "must be a file of mode 0600")
}

func TestWithin(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "data"), 0o700), os.Symlink(filepath.Join(dir, "data"), filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"data/kek": true, "data": true, "data/a/b/kek": true, "link/kek": true, "data/../data/kek": true,
		"data.kek": false, "kek": false, "data/../kek": false, "..data": false, "data/..kek": true,
	} {
		got, err := identity.Within(filepath.Join(dir, "data"), filepath.Join(dir, path))
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", path, got, err)
		}
		if got, err = identity.Within(filepath.Join(dir, "link"), filepath.Join(dir, path)); err != nil || got != want {
			t.Errorf("%s from a link: %v, %v", path, got, err)
		}
	}
}

func TestKEKFrom(t *testing.T) {
	kek := identity.NewKEK()
	same, err := identity.KEKFrom(kek.Reveal())
	if err != nil || same.ID() != kek.ID() {
		t.Errorf("%v", err)
	}
	if strings.Contains(hex.EncodeToString(kek.Reveal()), kek.ID()) {
		t.Error("the id is a part of the key")
	}
}
