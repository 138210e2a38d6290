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

// TestDemo runs the real thing, with binaries of the tree as it is: once all of it,
// and once until it is interrupted.
func TestDemo(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin, "github.com/ztmesh/ztmesh/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does, so that its cache serves
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("KEEP", "1")
	for _, c := range []struct {
		name, until string
		code        int
		want        string
	}{
		{"whole", "Everything goes on running", 0, "\ndemo passed: "},
		{"interrupted", "--message again", 130, "$ envoy -c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Not t.TempDir: sockets need a short path.
			temp, err := os.MkdirTemp("", "zt")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(temp) })
			t.Setenv("TMPDIR", temp)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stdout, began := &until{text: c.until, do: cancel}, time.Now()
			var stderr bytes.Buffer
			if code := command(ctx, []string{"--bin", bin}, stdout, &stderr); code != c.code {
				t.Fatalf("exit code %d\n%s\n%s", code, stdout, &stderr)
			}
			t.Logf("took %.1f s", time.Since(began).Seconds())
			out := stdout.String()
			if !strings.Contains(out, c.want) || strings.Contains(out, "FAIL") || strings.Contains(out, "\x1b") {
				t.Errorf("printed:\n%s", out)
			}
			nothingLeft(t, temp)
		})
	}
}

// until is a buffer that does something once a text has been written.
type until struct {
	bytes.Buffer
	text string
	do   func()
}

func (u *until) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(u.text)) {
		u.do()
	}
	return u.Buffer.Write(b)
}

// nothingLeft: no file, and (where /proc tells) no process that works in temp.
func nothingLeft(t *testing.T, temp string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(temp, "*"))
	if err != nil || len(files) > 0 {
		t.Errorf("left behind: %s, %v", files, err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Error(err)
	}
	for _, p := range processes {
		if dir, err := os.Readlink(p); err == nil && strings.HasPrefix(dir, temp) {
			t.Errorf("left behind: %s", p)
		}
	}
}

// TestUnexpected: whatever is not as expected is an error, and named.
func TestUnexpected(t *testing.T) {
	for _, c := range []struct {
		ok     bool
		failed []string
		want   string
	}{
		{true, nil, ""},
		{false, nil, "not as expected:\n  shop/web | 200"},
		{true, []string{"2 of 9 requests were dropped"}, "2 of 9 requests were dropped"},
	} {
		var out bytes.Buffer
		d := &demo{screen: &screen{w: &out}, counts: counts{failed: c.failed}}
		d.record("CALLER,STATUS", []line{{cells: []string{"shop/web", "200"}, ok: c.ok}})
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
