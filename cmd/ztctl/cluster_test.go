package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/identity"
)

// patience bounds every wait of a script.
const patience = 30 * time.Second

// world is what one script has started. Everything ends with the script.
type world struct {
	servers   map[string]*runningServer
	envoys    map[string]*envoy.Process
	listeners []net.Listener
}

type runningServer struct {
	*controlplane.Server
	stop func() error
}

type worldKey struct{}

func newWorld(env *testscript.Env) {
	w := &world{servers: map[string]*runningServer{}, envoys: map[string]*envoy.Process{}}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		for _, p := range w.envoys {
			if err := p.Stop(5 * time.Second); err != nil {
				env.T().Log(err)
			}
		}
		for name, s := range w.servers {
			if err := s.stop(); err != nil {
				env.T().Log(name, err)
			}
		}
		for _, l := range w.listeners {
			l.Close()
		}
	})
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// server starts and stops real servers, each in a folder of its name:
//
//	server init NAME             make a cluster, and do not start it
//	server start NAME            start it, making a cluster of one if it is new
//	server join NAME BY TOKENFILE
//	server stop NAME
//
// A running server sets $NAME_ADMIN and $NAME_NODE.
func server(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: server init|start|join|stop NAME")
	}
	w, name := worldOf(ts), args[1]
	dir := ts.MkAbs(name)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch args[0] {
	case "init":
		_, err := controlplane.Init(ctx, controlplane.InitConfig{DataDir: dir, TrustDomain: "shop.example", Logger: slog.New(slog.DiscardHandler)})
		ts.Check(err)
	case "start":
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			server(ts, false, []string{"init", name})
		}
		w.start(ctx, ts, name)
	case "join":
		ts.Check(controlplane.Join(ctx, controlplane.JoinConfig{
			DataDir: dir, Server: w.servers[args[2]].Addresses().Node, Logger: slog.New(slog.DiscardHandler),
			Token: strings.TrimSpace(ts.ReadFile(args[3])),
		}))
		w.start(ctx, ts, name)
	case "stop":
		ts.Check(w.servers[name].stop())
		delete(w.servers, name)
	default:
		ts.Fatalf("no server command %q", args[0])
	}
}

func (w *world) start(ctx context.Context, ts *testscript.TestScript, name string) {
	cfg := controlplane.Default()
	cfg.DataDir = ts.MkAbs(name)
	cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s, err := controlplane.New(cfg)
	ts.Check(err)
	run, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(run) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		ts.Fatalf("server %s: %v", name, err)
	case <-ctx.Done():
		cancel()
		ts.Fatalf("server %s is not ready after %s", name, patience)
	}
	w.servers[name] = &runningServer{s, func() error { cancel(); return <-done }}
	ts.Setenv(name+"_ADMIN", s.Addresses().Admin)
	ts.Setenv(name+"_NODE", s.Addresses().Node)
	if path := filepath.Join(cfg.DataDir, "admin.yaml"); exists(path) {
		await(ctx, ts, func() bool {
			all, err := identity.LoadContexts(path)
			return err == nil && slices.Contains(all.Contexts[0].Servers, s.Addresses().Admin)
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func await(ctx context.Context, ts *testscript.TestScript, done func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			ts.Fatalf("waited %s in vain", patience)
		case <-tick.C:
		}
	}
}

// eventually runs a command until its output, stdout and stderr, matches:
// eventually REGEXP COMMAND...
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually REGEXP COMMAND...")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	await(ctx, ts, func() bool {
		_ = ts.Exec(args[1], args[2:]...) // only what it prints counts
		return re.MatchString(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	})
}

// runEnvoy starts and stops real Envoys from folders that ztctl bootstrap wrote:
// envoy start|stop FOLDER.
func runEnvoy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: envoy start|stop FOLDER")
	}
	w, dir := worldOf(ts), ts.MkAbs(args[1])
	switch args[0] {
	case "start":
		p, err := envoy.Start(envoy.Config{
			Bootstrap: []byte(ts.ReadFile(filepath.Join(dir, bootstrapFile))), Dir: ts.Getenv("WORK"), Admin: filepath.Join(dir, "admin.sock"),
		})
		ts.Check(err)
		w.envoys[dir] = p
	case "stop":
		ts.Check(w.envoys[dir].Stop(5 * time.Second))
		delete(w.envoys, dir)
	default:
		ts.Fatalf("no envoy command %q", args[0])
	}
}

// port finds a port of an address that is free, or takes one until the script
// ends: port free|taken VARIABLE ADDRESS.
func port(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: port free|taken VARIABLE ADDRESS")
	}
	l, err := net.Listen("tcp", net.JoinHostPort(args[2], "0"))
	ts.Check(err)
	_, number, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[1], number)
	if args[0] == "free" {
		ts.Check(l.Close())
		return
	}
	w := worldOf(ts)
	w.listeners = append(w.listeners, l)
}

// expand replaces ${VARIABLE} in files.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: expand FILE...")
	}
	for _, f := range args {
		ts.Check(os.WriteFile(ts.MkAbs(f), []byte(os.Expand(ts.ReadFile(f), ts.Getenv)), 0o600))
	}
}
