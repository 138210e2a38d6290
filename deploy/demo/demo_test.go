package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemo runs all of it, with binaries of the tree as it is.
func TestDemo(t *testing.T) {
	bin, temp := t.TempDir(), t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin, "github.com/ztmesh/ztmesh/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does, so that its cache serves
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("KEEP", "")
	t.Setenv("TMPDIR", temp)
	var stdout, stderr bytes.Buffer
	began := time.Now()
	if code := command(t.Context(), []string{"--bin", bin}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, &stdout, &stderr)
	}
	t.Logf("took %.1f s", time.Since(began).Seconds())
	if out := stdout.String(); !strings.Contains(out, "\ndemo passed: ") || strings.Contains(out, "FAIL") || strings.Contains(out, "\x1b") {
		t.Errorf("printed:\n%s", out)
	}
	nothingLeft(t, temp)
}

// TestInterrupted ends it in the middle: nothing stays.
func TestInterrupted(t *testing.T) {
	bin, temp := t.TempDir(), t.TempDir()
	// A server that makes no cluster: the first command of the demo lasts for ever.
	for _, name := range []string{"ztd", "ztctl", "ztagent"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho started >&2\nexec sleep 1000\n"), 0o700); err != nil { //nolint:gosec // it must be executable
			t.Fatal(err)
		}
	}
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancel(t.Context())
	out := &onWrite{match: "$ ztd init", do: cancel}
	var stderr bytes.Buffer
	if code := command(ctx, []string{"--bin", bin, "--envoy", "none"}, out, &stderr); code != 130 {
		t.Errorf("exit code %d\n%s", code, &stderr)
	}
	nothingLeft(t, temp)
}

// onWrite calls do once something has been written.
type onWrite struct {
	match string
	do    func()
}

func (o *onWrite) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(o.match)) {
		o.do()
	}
	return len(b), nil
}

func nothingLeft(t *testing.T, temp string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(temp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %s, %v", left, err)
	}
}

// TestUnexpected: one row that is not as expected, or one request that is dropped,
// is an error.
func TestUnexpected(t *testing.T) {
	for _, c := range []struct {
		ok      bool
		dropped int
		want    string
	}{
		{true, 0, ""},
		{false, 0, "1 of 1 rows are not as expected"},
		{true, 2, "2 of 9 requests were dropped"},
	} {
		var out bytes.Buffer
		d := &demo{screen: &screen{w: &out}, counts: counts{sent: 9, dropped: c.dropped}}
		d.record("CALLER,STATUS", []line{{[]string{"shop/web", "200"}, c.ok}})
		got := ""
		if err := d.summary(); err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%+v: %q", c, got)
		}
		if strings.Contains(out.String(), "FAIL") == c.ok {
			t.Errorf("%+v: printed %s", c, &out)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, 0, "make demo KEEP=1"},
		{[]string{"--nonsense"}, 2, "nonsense"},
		{[]string{"now"}, 2, `unknown argument "now"`},
		{[]string{"--bin", "/nothing"}, 1, "make build"},
	} {
		var stdout, stderr bytes.Buffer
		code := command(t.Context(), c.args, &stdout, &stderr)
		if code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: %d, %s", fmt.Sprint(c.args), code, &stderr)
		}
	}
}
