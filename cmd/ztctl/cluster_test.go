package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store"
)

// world is what one script has started. Everything ends with the script.
type world struct {
	t         testing.TB
	mesh      *mesh.Mesh // from the first start of a server
	servers   map[string]*mesh.Server
	envoys    map[string]*envoy.Process
	listeners []net.Listener
}

type worldKey struct{}

func newWorld(env *testscript.Env) {
	// The test is a testing.TB: testscript.Run says so.
	w := &world{t: env.T().(testing.TB), servers: map[string]*mesh.Server{}, envoys: map[string]*envoy.Process{}}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		for _, p := range w.envoys {
			if err := p.Stop(5 * time.Second); err != nil {
				env.T().Log(err)
			}
		}
		for _, l := range w.listeners {
			l.Close()
		}
	})
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// server starts and stops the servers of one cluster, each in a folder of its name:
//
//	server init NAME             make a cluster, and do not start it
//	server start NAME            make a cluster of one
//	server join NAME TOKENFILE
//	server restore NAME BACKUP   make a new cluster of a backup of one that is stopped
//	server stop NAME
//
// A running server sets $NAME_NODE.
func server(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: server init|start|join|restore|stop NAME")
	}
	w, name := worldOf(ts), args[1]
	switch args[0] {
	case "init":
		_, err := controlplane.Init(w.t.Context(), controlplane.InitConfig{
			DataDir: ts.MkAbs(name), TrustDomain: "shop.example", Logger: slog.New(slog.DiscardHandler),
		})
		ts.Check(err)
	case "start":
		// The timing of production: others will join.
		w.mesh = mesh.New(w.t, mesh.Config{Tune: func(c *controlplane.Config) { c.Timing = store.Timing{} }})
		w.started(ts, name, w.mesh.Servers[0])
	case "join":
		w.started(ts, name, w.mesh.Join(strings.TrimSpace(ts.ReadFile(args[2]))))
	case "restore":
		of := w.mesh.Servers[0]
		s := w.mesh.Restore(ts.MkAbs(args[2]), of.Keys())
		w.servers[name] = s
		// Its admins have the credential of before.
		all, err := identity.LoadContexts(controlplane.DefaultAdminFile(of.Dir))
		ts.Check(err)
		all.Contexts[0].Servers = []string{s.Addresses().Admin}
		ts.Check(identity.SaveContexts(controlplane.DefaultAdminFile(ts.MkAbs(name)), all))
	case "stop":
		w.servers[name].Stop()
	default:
		ts.Fatalf("no server command %q", args[0])
	}
}

func (w *world) started(ts *testscript.TestScript, name string, s *mesh.Server) {
	w.servers[name] = s
	ts.Check(os.Symlink(s.Dir, ts.MkAbs(name)))
	ts.Check(os.Symlink(controlplane.DefaultAdminFile(s.Dir), controlplane.DefaultAdminFile(ts.MkAbs(name))))
	ts.Setenv(name+"_NODE", s.Addresses().Node)
	path := controlplane.DefaultAdminFile(s.Dir)
	if _, err := os.Stat(path); err == nil {
		w.mesh.Until("the credential names the server", func() bool {
			all, err := identity.LoadContexts(path)
			return err == nil && slices.Contains(all.Contexts[0].Servers, s.Addresses().Admin)
		})
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
	mesh.Until(worldOf(ts).t, "output matches "+args[0], func() bool {
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
			Bootstrap: []byte(ts.ReadFile(filepath.Join(dir, bootstrapFile))), Dir: dir, Admin: filepath.Join(dir, "admin.sock"),
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

// loopback sets variables to loopback addresses of the script's own:
// loopback VARIABLE...
func loopback(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: loopback VARIABLE...")
	}
	for _, name := range args {
		ts.Setenv(name, worldOf(ts).mesh.Loopback())
	}
}

// runApp runs an application that answers every request, and sets a variable
// to its address: app VARIABLE.
func runApp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: app VARIABLE")
	}
	ts.Setenv(args[0], worldOf(ts).mesh.NewApp())
}

// request sends a request through the egress of a proxy and checks the status of the
// answer; with until, again and again:
// request [until] STATUS METHOD EGRESS-ADDRESS HOST PATH.
func request(ts *testscript.TestScript, neg bool, args []string) {
	again := len(args) > 0 && args[0] == "until"
	if again {
		args = args[1:]
	}
	if neg || len(args) != 5 {
		ts.Fatalf("usage: request [until] STATUS METHOD EGRESS-ADDRESS HOST PATH")
	}
	want := regexp.MustCompile("^(" + args[0] + ")$")
	ask := func() string {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(args[2], strconv.Itoa(spec.EgressPort)), mesh.Patience)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		a, err := mesh.Exchange(c, mesh.Request(args[1], args[3], args[4]))
		if err != nil {
			return err.Error()
		}
		return strconv.Itoa(a.Status)
	}
	if again {
		mesh.Until(worldOf(ts).t, strings.Join(args, " "), func() bool { return want.MatchString(ask()) })
	} else if got := ask(); !want.MatchString(got) {
		ts.Fatalf("%s: %s", strings.Join(args[1:], " "), got)
	}
}
