package main

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ztagent": func() { os.Exit(run()) },
	})
}

// TestScript runs testdata/script/*.txtar: the real command, beside a real
// control plane and a real Envoy.
func TestScript(t *testing.T) {
	binary, err := envoy.Find()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			// A directory whose path leaves room for the names of sockets.
			state, err := os.MkdirTemp("", "zt")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(state) })
			env.Values[testKey{}] = env.T() // a testing.TB: testscript.Run says so
			env.Setenv("STATE", state)
			env.Setenv("ENVOY", binary)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"cluster": cluster,
			"envoys":  envoys,
			"term":    term,
			"until":   until,
		},
	})
}

// testKey is that of the test that a script is.
type testKey struct{}

// cluster FILE starts a control plane with the spec in FILE, sets SERVER, and
// writes a token for each further argument, a workload, to NAME.token.
func cluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: cluster spec [workload...]")
	}
	m := mesh.New(ts.Value(testKey{}).(testing.TB), mesh.Config{})
	ts.Setenv("SERVER", m.Servers[0].Addresses().Node)
	m.Submit(ts.ReadFile(args[0]))
	for _, workload := range args[1:] {
		_, name, _ := strings.Cut(workload, "/")
		ts.Check(os.WriteFile(ts.MkAbs(name+".token"), []byte(m.Token(workload)), 0o600))
	}
}

// envoys N waits until exactly N processes run with the bootstrap of $STATE.
func envoys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: envoys N")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	bootstrap := filepath.Join(ts.Getenv("STATE"), "bootstrap.json")
	have := 0
	poll(ts, func() bool {
		pids, err := processes(bootstrap)
		ts.Check(err)
		have = len(pids)
		return have == want
	}, func() string { return fmt.Sprintf("%d envoys, not %d", have, want) })
}

// term sends SIGTERM to the agent whose Envoy runs: testscript's kill cannot.
func term(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: term")
	}
	pids, err := processes(filepath.Join(ts.Getenv("STATE"), "bootstrap.json"))
	ts.Check(err)
	if len(pids) != 1 {
		ts.Fatalf("%d envoys", len(pids))
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
	ts.Check(err)
	// pid (command) state parent
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	ts.Check(err)
	ts.Check(syscall.Kill(parent, syscall.SIGTERM))
}

// processes are those with this argument. One that has ended, and whose parent
// has not asked yet, has none.
func processes(arg string) (pids []int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		return nil, fmt.Errorf("no processes in /proc: %w", err)
	}
	for _, dir := range dirs {
		raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(raw), "\x00"+arg+"\x00") {
			continue // it is another one, or gone
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// until PATH waits for a file, or for somebody who listens on a socket.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: until path")
	}
	poll(ts, func() bool {
		info, err := os.Stat(args[0])
		if err != nil || info.Mode().Type() != fs.ModeSocket {
			return err == nil
		}
		conn, err := net.Dial("unix", args[0])
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, func() string { return "no " + args[0] })
}

func poll(ts *testscript.TestScript, ok func() bool, what func() string) {
	deadline, tick := time.After(mesh.Patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("waited in vain: %s", what())
		}
	}
}
