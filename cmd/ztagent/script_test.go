package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
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

// cluster FILE starts a control plane with the spec in FILE, sets SERVER, and
// writes a token for each further argument, a workload, to NAME.token.
func cluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: cluster spec [workload...]")
	}
	log := slog.New(slog.DiscardHandler)
	dir := ts.MkAbs("ztd")
	ctx, cancel := context.WithCancel(context.Background())
	_, err := controlplane.Init(ctx, controlplane.InitConfig{DataDir: dir, TrustDomain: "shop.example", Logger: log})
	ts.Check(err)
	cfg := controlplane.Default()
	cfg.DataDir, cfg.Logger = dir, log
	cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Timing = store.Timing{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 50 * time.Millisecond}
	s, err := controlplane.New(cfg)
	ts.Check(err)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ts.Defer(func() { cancel(); <-done })
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		ts.Fatalf("the server ended: %v", err)
	}
	ts.Setenv("SERVER", s.Addresses().Node)

	conn, err := dialAdmin(filepath.Join(dir, "admin.yaml"), s.Addresses().Admin)
	ts.Check(err)
	defer conn.Close()
	admin := ztv1.NewAdminServiceClient(conn)
	spec := &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: args[0], Content: []byte(ts.ReadFile(args[0]))}}}
	poll(ts, func() bool {
		_, err = admin.Apply(ctx, spec)
		return status.Code(err) != codes.Unavailable
	}, func() string { return err.Error() })
	ts.Check(err)
	for _, workload := range args[1:] {
		resp, err := admin.CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: workload, Ttl: durationpb.New(time.Hour)})
		ts.Check(err)
		_, name, _ := strings.Cut(workload, "/")
		ts.Check(os.WriteFile(ts.MkAbs(name+".token"), []byte(resp.Token), 0o600))
	}
}

func dialAdmin(contexts, addr string) (*grpc.ClientConn, error) {
	all, err := identity.LoadContexts(contexts)
	if err != nil {
		return nil, err
	}
	x, _ := all.Find("")
	roots, err := identity.ParsePEM([]byte(x.Roots))
	if err != nil {
		return nil, err
	}
	pair, err := identity.ParseKeyPair([]byte(string(x.Key) + x.Certificate))
	if err != nil {
		return nil, err
	}
	config, err := identity.ClientConfig(identity.Trust{
		TrustDomain: x.TrustDomain, Now: time.Now,
		Roots:       func() []*x509.Certificate { return roots },
		Certificate: func() (*tls.Certificate, error) { return pair.TLS(), nil },
	})
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
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
	deadline, tick := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("waited in vain: %s", what())
		}
	}
}
