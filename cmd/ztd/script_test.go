package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait of a script.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ztd": main})
}

// TestScript runs testdata/script/*.txtar: the command as a process, what it
// prints, the files that it leaves and its exit codes.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			golden, err := filepath.Abs(filepath.Join("..", "..", "controlplane", "testdata"))
			env.Setenv("GOLDEN", golden)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"taken": taken, "ready": ready, "interrupt": interrupt, "private": private,
		},
	})
}

// taken takes a port until the script ends: taken VARIABLE.
func taken(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// ready waits until the server of a folder says in its log, in FILE, that it is
// ready, and logs how long that took: ready FILE.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && bytes.Contains(b, []byte(`"msg":"ready"`)) {
			ts.Logf("ready after %v", time.Since(start).Round(time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("not ready after %v: %s", patience, ts.ReadFile(args[0]))
		case <-tick.C:
		}
	}
}

// interrupt sends SIGTERM to the process whose id FILE holds.
func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	var pid int
	_, err := fmt.Sscan(strings.TrimSpace(ts.ReadFile(args[0])), &pid)
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGTERM))
}

// private wants nobody but the owner to have rights to anything in a folder.
func private(ts *testscript.TestScript, _ bool, args []string) {
	n := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		n++
		if i.Mode().Perm()&0o077 != 0 {
			ts.Fatalf("%s has mode %v", path, i.Mode())
		}
		return nil
	}))
	if n < 6 {
		ts.Fatalf("%d files", n)
	}
}
