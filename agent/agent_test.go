package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/agent"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestEnvoy is the whole way: a token, an Envoy that shows the workload's
// certificate, its renewals, the death of the Envoy, and restarts of the agent
// without a token and without a server.
func TestEnvoy(t *testing.T) {
	c := newCluster(t, "60s") // half of it, a minute of backdating included, is over at once: renewed every second
	web := start(t, c.config(t, "shop/web"))
	webDir := web.cfg.DataDir
	web.serving(t)

	cfg := withEnvoy(t, c.config(t, "shop/orders"))
	orders := start(t, cfg)
	who := orders.serving(t)
	addr := net.JoinHostPort(cfg.Address, "8080")
	shown := func() (cert *x509.Certificate) {
		t.Helper()
		mesh.Until(t, "Envoy answers web", func() bool {
			var err error
			cert, err = dial(t, webDir, addr)
			return err == nil
		})
		return cert
	}

	first := shown()
	if got := c.instances("shop/orders"); len(got) != 1 || got[0].Instance != who.Instance || got[0].Address != cfg.Address || !got[0].Connected {
		t.Errorf("registered: %v", got)
	}
	mesh.Until(t, "a renewed certificate is shown", func() bool {
		now := shown()
		return now.SerialNumber.Cmp(first.SerialNumber) != 0 && !now.PublicKey.(*ecdsa.PublicKey).Equal(first.PublicKey)
	})

	pid := orders.envoyPID(t, 1)
	check(t, syscall.Kill(pid, syscall.SIGKILL))
	second := orders.envoyPID(t, 2)
	shown()

	orders.stop()
	if orders.err != nil {
		t.Errorf("stopped: %v", orders.err)
	}
	if alive(pid) || alive(second) {
		t.Error("an Envoy outlives its agent")
	}

	check(t, os.Remove(cfg.TokenFile))
	again := start(t, agent.Config{DataDir: cfg.DataDir, Envoy: cfg.Envoy})
	if now := again.serving(t); now.Instance != who.Instance || now.Address != cfg.Address {
		t.Errorf("after a restart it is %+v, was %+v", now, who)
	}
	shown()
	if got := c.instances("shop/orders"); len(got) != 1 {
		t.Errorf("registered after a restart: %v", got)
	}

	for _, r := range []*running{web, orders, again} {
		if text := r.log.String(); strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, "zt1.") {
			t.Error("a secret in the log")
		}
	}
}

// TestServerDown: an agent starts and serves without a control plane, and renews
// as soon as there is one.
func TestServerDown(t *testing.T) {
	c := newCluster(t, "60s")
	cfg := withEnvoy(t, c.config(t, "shop/orders"))
	r := start(t, cfg)
	r.secrets(t)
	r.stop()
	c.Servers[0].Stop()

	r = start(t, cfg)
	before := r.secrets(t)
	mesh.Until(t, "a renewal fails", func() bool { return len(r.lines("not renewed")) > 0 })
	if now := r.secrets(t); !maps.Equal(now, before) {
		t.Errorf("without a server, secrets change from %v to %v", before, now)
	}
	c.Servers[0].Start()
	mesh.Until(t, "a renewal succeeds", func() bool { return !maps.Equal(r.secrets(t), before) })
	if r.envoyPID(t, 1); len(r.lines("envoy started")) != 1 {
		t.Error("the Envoy was restarted")
	}
}

func TestFilesArePrivate(t *testing.T) {
	c := newCluster(t, "1h")
	r := start(t, c.config(t, "shop/web"))
	r.secrets(t)
	mesh.Until(t, "the enrolment is over", func() bool {
		_, err := os.Stat(filepath.Join(r.cfg.DataDir, "enrolling.json"))
		return errors.Is(err, fs.ErrNotExist)
	})
	want := map[string]bool{
		".": true, "agent.json": true, "bootstrap.json": true, "lock": true, "node.pem": true, "roots.pem": true,
		"sds.sock": true, "svid.pem": true,
	}
	check(t, filepath.WalkDir(r.cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		check(t, err)
		info, err := d.Info()
		check(t, err)
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		name, err := filepath.Rel(r.cfg.DataDir, path)
		if !want[name] {
			t.Errorf("%s is there", name)
		}
		delete(want, name)
		return err
	}))
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	for _, name := range []string{"agent.json", "bootstrap.json"} {
		if b := must(os.ReadFile(filepath.Join(r.cfg.DataDir, name)))(t); strings.Contains(string(b), "PRIVATE KEY") {
			t.Errorf("%s holds a key", name)
		}
	}
}

func TestTokens(t *testing.T) {
	c, other := newCluster(t, "1h"), newCluster(t, "1h")
	used := c.config(t, "shop/web")
	start(t, used).serving(t)
	for _, tt := range []struct {
		name, want string
		change     func(*agent.Config)
	}{
		{"used", "ztctl token create --workload shop/web", func(cfg *agent.Config) { cfg.TokenFile = used.TokenFile }},
		{"for another workload", "ztctl token create --workload shop/orders", func(cfg *agent.Config) { cfg.Workload = "shop/orders" }},
		{"of another cluster", "does not show the pinned root", func(cfg *agent.Config) { cfg.TokenFile = other.tokenFile(t, "shop/web", "") }},
		{"from another address", "is not where this connection comes from", func(cfg *agent.Config) {
			cfg.Servers = []string{relay(t, c.node(), nil)}
		}},
		{"no file", "no such file", func(cfg *agent.Config) { cfg.TokenFile += ".none" }},
		{"no token", "not a token of the form", func(cfg *agent.Config) { check(t, os.WriteFile(cfg.TokenFile, []byte("hello"), 0o600)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := c.config(t, "shop/web")
			tt.change(&cfg)
			r := start(t, cfg)
			if err := r.fails(t); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want one that says %q", err, tt.want)
			}
			if _, err := agent.ReadStatus(cfg.DataDir, time.Now()); !errors.Is(err, agent.ErrNotEnrolled) {
				t.Errorf("status: %v", err)
			}
		})
	}
	if got := c.instances("shop/web"); len(got) != 1 {
		t.Errorf("%d instances are registered", len(got))
	}
}

// TestLostAnswer: the server has enrolled the instance, but the agent dies before
// it hears of it. The next agent is the same instance, with the same token.
func TestLostAnswer(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	cfg.Address = "" // the relay calls from an address of its own
	cut := make(chan struct{})
	direct := cfg.Servers
	cfg.Servers = []string{relay(t, c.node(), cut)}
	r := start(t, cfg)
	select {
	case <-cut:
	case <-time.After(mesh.Patience):
		t.Fatal("no answer came")
	}
	r.stop()
	if _, err := agent.ReadStatus(cfg.DataDir, time.Now()); !errors.Is(err, agent.ErrNotEnrolled) {
		t.Fatalf("status after the crash: %v", err)
	}
	registered := c.instances("shop/web")
	if len(registered) != 1 {
		t.Fatalf("%d instances are registered", len(registered))
	}
	cfg.Servers = direct
	if s := start(t, cfg).serving(t); s.Instance != registered[0].Instance {
		t.Errorf("instance %s, was %s", s.Instance, registered[0].Instance)
	}
	if n := len(c.instances("shop/web")); n != 1 {
		t.Errorf("%d instances are registered", n)
	}
}

// TestEnrolledAgain: an instance that the control plane has given up is enrolled
// again, without a restart, once there is a new token.
func TestEnrolledAgain(t *testing.T) {
	c := newCluster(t, "60s")
	cfg := c.config(t, "shop/web")
	r := start(t, cfg)
	before := r.serving(t)
	mesh.Settled(c.Mesh, "a deregistration", func() (*ztv1.DeregisterInstanceResponse, error) {
		return c.Admin().DeregisterInstance(t.Context(), &ztv1.DeregisterInstanceRequest{Instance: before.Instance})
	})
	mesh.Until(t, "a renewal is refused", func() bool { return len(r.lines("not renewed")) > 0 })
	c.tokenFile(t, "shop/web", cfg.TokenFile)
	mesh.Until(t, "it is registered again", func() bool { return len(c.instances("shop/web")) == 1 })
	if got := c.instances("shop/web")[0].Instance; got != before.Instance {
		t.Errorf("registered as %s, was %s", got, before.Instance)
	}
	r.serving(t)
}

func TestEnded(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	r := start(t, cfg)
	r.serving(t)
	r.stop()

	cfg.Now = func() time.Time { return time.Now().Add(31 * 24 * time.Hour) }
	for name, file := range map[string]string{"the token that was used": cfg.TokenFile, "no token": ""} {
		cfg.TokenFile = file
		if err := start(t, cfg).fails(t); !errors.Is(err, agent.ErrNoToken) || !strings.Contains(err.Error(), "ztctl token create --workload shop/web") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := must(agent.ReadStatus(cfg.DataDir, cfg.Now()))(t)
	if s.Running || s.SVID.SecondsLeft != 0 || s.Node.SecondsLeft != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestDeregister(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	r := start(t, cfg)
	r.serving(t)
	if err := agent.Deregister(t.Context(), agent.Config{DataDir: cfg.DataDir}); !errors.Is(err, agent.ErrRunning) {
		t.Errorf("while it runs: %v", err)
	}
	if err := start(t, cfg).fails(t); !errors.Is(err, agent.ErrRunning) {
		t.Errorf("a second agent: %v", err)
	}
	r.stop()
	check(t, agent.Deregister(t.Context(), agent.Config{DataDir: cfg.DataDir}))
	forgotten(t, c, cfg.DataDir)

	cfg.TokenFile, cfg.DeregisterOnExit = c.tokenFile(t, "shop/web", ""), true
	r = start(t, cfg)
	r.serving(t)
	r.stop()
	check(t, r.err)
	forgotten(t, c, cfg.DataDir)
	if err := agent.Deregister(t.Context(), agent.Config{DataDir: cfg.DataDir}); !errors.Is(err, agent.ErrNotEnrolled) {
		t.Errorf("twice: %v", err)
	}
}

func forgotten(t *testing.T, c cluster, dir string) {
	t.Helper()
	if got := c.instances("shop/web"); len(got) != 0 {
		t.Errorf("registered: %v", got)
	}
	for _, e := range must(os.ReadDir(dir))(t) {
		if e.Name() != "lock" {
			t.Errorf("%s is left over", e.Name())
		}
	}
}

func TestAnotherConfiguration(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	r := start(t, cfg)
	r.serving(t)
	r.stop()
	cfg.Workload, cfg.Address, cfg.EgressAddress = "shop/orders", c.Loopback(), c.Loopback()
	err := start(t, cfg).fails(t)
	for _, want := range []string{"workload shop/web, not shop/orders", "not " + cfg.Address, "not " + cfg.EgressAddress} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// TestPlace: zone and weight may change from one start to the next, and what is not
// said stays as it was.
func TestPlace(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	cfg.Zone = "north"
	placed := func(zone string, weight uint32) {
		t.Helper()
		mesh.Until(t, "it is placed", func() bool {
			in := c.instances("shop/web")[0]
			return in.Zone == zone && in.Weight == weight
		})
	}
	r := start(t, cfg)
	r.serving(t)
	placed("north", 100)
	r.stop()
	cfg.Zone, cfg.Weight = "", 30
	r = start(t, cfg)
	r.serving(t)
	placed("north", 30)
	r.stop()
	cfg.Zone, cfg.Weight = "south", 0
	r = start(t, cfg)
	r.serving(t)
	placed("south", 30)
	mesh.Until(t, "it is noted", func() bool {
		s, err := agent.ReadStatus(cfg.DataDir, time.Now())
		return err == nil && s.Zone == "south" && s.Weight == 30
	})
	r.stop()
}

func TestFirstStartWantsWhatToEnrolAs(t *testing.T) {
	err := start(t, agent.Config{DataDir: mesh.ShortDir(t)}).fails(t)
	for _, want := range []string{"the workload is missing", "the address of a server is missing", "the file with the token is missing"} {
		if !errors.Is(err, agent.ErrNotEnrolled) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestStopWhileNoServerAnswers(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := c.config(t, "shop/web")
	c.Servers[0].Stop()
	r := start(t, cfg)
	mesh.Until(t, "it has tried", func() bool { return len(r.lines("no server enrols now")) > 0 })
	c.Servers[0].Start()
	r.serving(t)
	c.Servers[0].Stop()
}

func TestEnvoyMissing(t *testing.T) {
	cfg := agent.Config{DataDir: mesh.ShortDir(t), Envoy: agent.Envoy{Path: "/nowhere/envoy"}}
	if err := start(t, cfg).fails(t); !strings.Contains(err.Error(), "/nowhere/envoy") {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	_, err := agent.New(agent.Config{
		DataDir: "/" + strings.Repeat("x", 100), Workload: "web", Servers: []string{"ztd-1", ":1", "a:0", "ok:7401"},
		Address: "0.0.0.0", EgressAddress: "10.0.0.1", Envoy: agent.Envoy{Concurrency: -1, LogLevel: "loud", Grace: -1},
		Zone: "North", Weight: 1001,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"too long", `workload "web"`, `server "ztd-1"`, `server ":1"`, `server "a:0"`, `address "0.0.0.0"`,
		`egress address "10.0.0.1"`, "concurrency -1", `log level "loud"`, "grace -1",
		`zone "North"`, "weight 1001",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "ok:7401") {
		t.Errorf("%q blames a good server", err)
	}
	if _, err := agent.New(agent.Config{}); err == nil || !strings.Contains(err.Error(), "data directory is missing") {
		t.Errorf("nothing: %v", err)
	}
}

// A context that has ended before Run is no error, and leaves nothing running.
func TestRunAfterTheEnd(t *testing.T) {
	c := newCluster(t, "1h")
	cfg := withEnvoy(t, c.config(t, "shop/web"))
	a := must(agent.New(cfg))(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check(t, a.Run(ctx))
}
