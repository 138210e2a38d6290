package envoy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
)

const patience = 30 * time.Second

func TestLifeOfAProcess(t *testing.T) {
	dir, err := os.MkdirTemp("", "zt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	admin := filepath.Join(dir, "admin")
	boot := fmt.Sprintf(`{"node":{"id":"n","cluster":"c"},"admin":{"address":{"pipe":{"path":%q}}}}`, admin)
	var out bytes.Buffer
	p, err := envoy.Start(envoy.Config{Bootstrap: []byte(boot), Dir: dir, Admin: admin, LogLevel: "info", Output: &out})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Stop(patience) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Stat(ctx, "server.live"); err != nil || n != 1 {
		t.Errorf("server.live = %d, %v", n, err)
	}
	if _, err := p.Post(ctx, "/reset_counters"); err != nil {
		t.Error(err)
	}
	if _, err := p.Get(ctx, "/nothing"); err == nil {
		t.Error("an unknown page is no error")
	}
	if err := p.Stop(patience); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Exited():
	default:
		t.Error("stopped and not exited")
	}
	if err := p.Stop(patience); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	if p.Log() == "" || p.Log() != out.String() {
		t.Error("the log and the output differ")
	}
}

func TestBadBootstrap(t *testing.T) {
	p, err := envoy.Start(envoy.Config{Bootstrap: []byte(`{"nonsense":1}`), Dir: t.TempDir(), Admin: "/nothing"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Ready(ctx); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	if err := p.Stop(patience); err == nil {
		t.Error("an Envoy that ended badly is no error")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ZT_ENVOY", filepath.Join(dir, "missing"))
	if _, err := envoy.Find(); err == nil || errors.Is(err, envoy.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	t.Setenv("ZT_ENVOY", "")
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(below)
	if _, err := envoy.Find(); !errors.Is(err, envoy.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	want := filepath.Join(dir, ".tools", "envoy", "bin", "envoy")
	if err := os.MkdirAll(filepath.Dir(want), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(want, nil, 0o700); err != nil { //nolint:gosec // it must be executable
		t.Fatal(err)
	}
	if got, err := envoy.Find(); err != nil || got != want {
		t.Errorf("got %s, %v", got, err)
	}
}
