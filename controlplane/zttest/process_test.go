package zttest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
)

const patience = 30 * time.Second

func start(t *testing.T, script string) *zttest.Process {
	t.Helper()
	p, err := zttest.Start(zttest.Command{
		Name: "sh", Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// says waits until the log of p holds text.
func says(t *testing.T, p *zttest.Process, text string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return p.Await(ctx, text, func(context.Context) error {
		if tail := zttest.Tail(p.Log(), 1); tail != text {
			return errors.New("it says " + tail)
		}
		return nil
	})
}

func TestStop(t *testing.T) {
	p := start(t, `trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done`)
	if err := says(t, p, "up"); err != nil {
		t.Fatal(err)
	}
	p.Stop(patience)
	p.Stop(patience) // again does nothing
	if got := zttest.Tail(p.Log(), 5); got != "up\nbye" {
		t.Errorf("the log is %q", got)
	}
}

// A process that does not end is killed with all of its group.
func TestStopByForce(t *testing.T) {
	p := start(t, `trap '' TERM; sleep 1000 & echo $!; wait; wait`)
	child := ""
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.Await(ctx, "its child", func(context.Context) error {
		if child = zttest.Tail(p.Log(), 1); child == "" {
			return errors.New("no child yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	p.Stop(10 * time.Millisecond)
	select {
	case <-p.Exited():
	default:
		t.Fatal("it goes on")
	}
	for exec.Command("/bin/sh", "-c", "kill -0 "+child).Run() == nil && ctx.Err() == nil {
		// A zombie counts as there, until its new parent looks after it.
		if b, err := os.ReadFile("/proc/" + child + "/stat"); err == nil && strings.Contains(string(b), ") Z ") {
			break
		}
	}
	if ctx.Err() != nil {
		t.Error("its child goes on")
	}
}

func TestAwaitFailures(t *testing.T) {
	p := start(t, "echo first; echo last; exit 3")
	err := says(t, p, "never")
	var f *zttest.Failure
	if !errors.As(err, &f) || f.Log != p.Log() || !strings.Contains(err.Error(), "sh ended while waiting for never: exit status 3") {
		t.Errorf("got %v", err)
	}

	q := start(t, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	err = q.Await(ctx, "rain", func(context.Context) error { cancel(); return errors.New("sunny") })
	if err == nil || err.Error() != "sh: waited in vain for rain: sunny" {
		t.Errorf("got %v", err)
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := zttest.Start(zttest.Command{Name: "nothing", Path: filepath.Join(dir, "nothing"), Log: filepath.Join(dir, "log")}); err == nil || !strings.HasPrefix(err.Error(), "nothing: ") {
		t.Errorf("got %v", err)
	}
	if _, err := zttest.Start(zttest.Command{Path: "/bin/sh", Log: filepath.Join(dir, "no", "log")}); err == nil {
		t.Error("a log that cannot be written is no error")
	}
}

// A process of its own group does not get the signals of a terminal.
func TestOwnGroup(t *testing.T) {
	p := start(t, "exec sleep 1000")
	group, err := syscall.Getpgid(p.PID())
	if err != nil || group != p.PID() {
		t.Errorf("group %d of %d, %v", group, p.PID(), err)
	}
}

func TestApps(t *testing.T) {
	web, err := zttest.NewHTTPApp("orders", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+web.Address()+"/a?b", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-Client-Cert", "Hash=1;URI=spiffe://td/ns/shop/sa/web")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); string(b) != "orders: GET /a?b from spiffe://td/ns/shop/sa/web\n" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}

	tcp, err := zttest.NewTCPApp("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", tcp.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(conn, b); err != nil || b[0] != 'x' {
		t.Errorf("got %q, %v", b, err)
	}
	tcp.Close() // ends open connections, too
	if _, err := conn.Read(b); err == nil {
		t.Error("the connection outlives the application")
	}
}

func TestReadAccess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	const log = `{"level":"INFO","msg":"of the agent"}
[info] of Envoy
{"log":"ztmesh.access.http","listener":"in/http","caller":"spiffe://td/ns/shop/sa/web","status":200,"matched":"grant:shop/a","requestId":"1"}
{"log":"ztmesh.access.tcp","listener":"out/tcp/1","matched":null}
{"log":"ztmesh.access.tcp","list`
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := zttest.ReadAccess(file)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	if a := got[0]; a.Matched != "grant:shop/a" || a.RequestID != "1" || !a.Inbound() || got[1].Inbound() {
		t.Errorf("got %+v", got)
	}
}

func TestBlock(t *testing.T) {
	b, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	if ip := net.ParseIP(b.At(21)); ip == nil || !ip.IsLoopback() || !strings.HasSuffix(b.At(21), ".21") {
		t.Errorf("%s is no address", b.At(21))
	}
}
