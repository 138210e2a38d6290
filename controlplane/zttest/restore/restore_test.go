//go:build system

package restore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/identity"
)

const (
	patience    = 90 * time.Second
	trustDomain = "restore.example"
)

// spec is web, which may read orders. Certificates live a minute, so that agents renew
// while the test watches.
const spec = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: restore.example, svidTTL: 60s}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http, target: %q}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET]}}
`

// site is everything that one test runs.
type site struct {
	*fleet.Cluster
	t     *testing.T
	block zttest.Block
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		var f *zttest.Failure
		if errors.As(err, &f) {
			err = fmt.Errorf("%w\n--- end of %s\n%s", err, f.Log, zttest.Tail(f.Log, 20))
		}
		s.t.Fatal(err)
	}
}

func (s *site) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *site) path(name string) string { return filepath.Join(s.Dir, name) }

func (s *site) until(what string, ok func(context.Context) error) {
	s.t.Helper()
	s.check(fleet.Until(s.ctx(), what, ok))
}

func (s *site) server(name string, at int) *fleet.Server {
	v := &fleet.Server{Name: name, Host: s.block.At(at), Flags: []string{"--election-timeout", "200ms"}}
	s.t.Cleanup(func() {
		if v.Running() {
			v.Kill()
		}
	})
	return v
}

func (s *site) ctl(admin string, args ...string) string {
	s.t.Helper()
	out, err := s.Command(s.ctx(), "ztctl", append([]string{"--config", s.path(admin)}, args...)...)
	s.check(err)
	return out
}

// agent runs an agent with its Envoy.
func (s *site) agent(workload string, at int) (dir string) {
	s.t.Helper()
	dir = "agent-" + workload
	token, err := s.Token(s.ctx(), "shop/"+workload)
	s.check(err)
	file, err := s.TokenFile(dir, token)
	s.check(err)
	p, err := zttest.Start(zttest.Command{
		Name: dir, Path: s.Program("ztagent"), Dir: s.Dir, Env: s.Env, Log: s.Log(dir),
		Args: []string{
			"run", "--workload", "shop/" + workload, "--token-file", file, "--data-dir", dir,
			"--server", s.Servers[0].Node() + "," + s.Servers[1].Node() + "," + s.Servers[2].Node(),
			"--address", s.block.At(at), "--egress-address", s.block.At(at), "--envoy", os.Getenv("ZT_ENVOY"), "--envoy-concurrency", "1",
		},
	})
	s.check(err)
	s.t.Cleanup(func() { p.Stop(10 * time.Second) })
	s.check(p.Await(s.ctx(), "its certificates", func(context.Context) error {
		b, err := os.ReadFile(p.Log())
		if err == nil && !strings.Contains(string(b), `"msg":"serving"`) {
			err = errors.New("it does not serve")
		}
		return err
	}))
	return dir
}

// serial is that of the certificate that an agent has now.
func (s *site) serial(dir string) string {
	s.t.Helper()
	pair, err := identity.LoadKeyPair(filepath.Join(s.path(dir), "svid.pem"))
	s.check(err)
	return pair.Leaf().SerialNumber.String()
}

// calls are an application's, through its Envoy, without end.
type calls struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	passed atomic.Int64
	mu     sync.Mutex // guards failed
	failed []string
}

func (s *site) call(ctx context.Context, client *http.Client, egress string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+egress+":15001/", nil)
	if err != nil {
		return err
	}
	req.Host = "orders.shop.mesh"
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %q", resp.Status, body)
	}
	return err
}

func (s *site) callOn(egress string) *calls {
	ctx, stop := context.WithCancel(s.t.Context())
	c := &calls{stop: stop}
	c.wg.Go(func() {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			switch err := s.call(ctx, client, egress); {
			case err == nil:
				c.passed.Add(1)
			case ctx.Err() == nil:
				c.mu.Lock()
				c.failed = append(c.failed, err.Error())
				c.mu.Unlock()
			}
		}
	})
	return c
}

// newSite builds the programs into a folder, which is kept if the test fails.
func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "ztrestore")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			_ = os.RemoveAll(dir)
			return
		}
		t.Logf("logs and folders are in %s", dir)
	})
	block, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{&fleet.Cluster{Site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()}}, t, block}
	s.check(s.Build(t.Context(), filepath.Join("..", "..", ".."), "ztd", "ztctl", "ztagent"))
	return s
}

// TestAllServersAreLost: three servers are killed and their folders are never used
// again. One is restored at the address of the first, two join. The Envoys serve all
// the while, the agents renew; a server of before is refused.
func TestAllServersAreLost(t *testing.T) {
	s := newSite(t)
	before := []*fleet.Server{s.server("ztd-1", 1), s.server("ztd-2", 2), s.server("ztd-3", 3)}
	s.check(s.Begin(s.ctx(), trustDomain, before))
	s.until("the credential knows the servers", func(context.Context) error {
		b, err := os.ReadFile(s.path("ztd-1.admin.yaml"))
		if n := strings.Count(string(b), ":7400"); err == nil && n < 3 {
			err = fmt.Errorf("%d of 3", n)
		}
		return err
	})
	app, err := zttest.NewHTTPApp("orders", s.block.At(30)+":8080")
	s.check(err)
	t.Cleanup(func() { app.Close() })
	s.check(os.WriteFile(s.path("spec.yaml"), fmt.Appendf(nil, spec, s.block.At(30)+":8080"), 0o600))
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--no-wait")
	orders, web := s.agent("orders", 22), s.agent("web", 21)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	s.until("web reaches orders", func(ctx context.Context) error { return s.call(ctx, client, s.block.At(21)) })
	load := s.callOn(s.block.At(21))
	s.ctl("ztd-1.admin.yaml", "backup", "shop.ztbackup")

	for _, v := range before {
		v.Kill()
	}
	lost := time.Now()
	had := map[string]string{web: s.serial(web), orders: s.serial(orders)}
	key, err := os.ReadFile(s.path("ztd-1.kek"))
	s.check(errors.Join(err, os.WriteFile(s.path("new-1.kek"), key, 0o600)))
	_, err = s.Command(s.ctx(), "ztd", "restore", "--from", "shop.ztbackup", "--data-dir", "new-1")
	s.check(err)
	s.Servers, s.IDs, s.Ports = nil, nil, nil
	first := s.server("new-1", 1)
	s.check(first.Start(s.Site))
	s.check(first.Ready(s.ctx()))
	s.check(s.Adopt(s.ctx(), first))
	back := time.Since(lost)
	for n := 2; n <= 3; n++ {
		v := s.server(fmt.Sprintf("new-%d", n), n)
		s.check(s.Join(s.ctx(), v))
		s.check(v.Start(s.Site))
		s.check(v.Ready(s.ctx()))
		s.check(s.Adopt(s.ctx(), v))
	}
	s.check(s.Converge(s.ctx()))

	// One of before comes back, elsewhere, and finds nobody who speaks with it.
	old := s.server("ztd-2", 4)
	s.check(old.Start(s.Site))
	s.until("the agents renew", func(context.Context) error {
		for dir, was := range had {
			if s.serial(dir) == was {
				return fmt.Errorf("%s has not renewed", dir)
			}
		}
		return nil
	})
	if _, err := old.Get(s.ctx(), "/readyz"); err == nil {
		t.Error("a server of before is ready")
	}
	for _, v := range s.Servers {
		votes, err := v.Group(s.ctx())
		s.check(err)
		if len(votes) != 3 {
			t.Errorf("%s knows %v", v.Name, votes)
		}
	}
	old.Kill()
	// A change reaches the Envoys: they have found the new servers.
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--timeout", "60s")
	load.stop()
	load.wg.Wait()
	if len(load.failed) > 0 || load.passed.Load() == 0 {
		t.Errorf("%d calls passed, %d failed, such as %s", load.passed.Load(), len(load.failed), load.failed[0])
	}
	t.Logf("%d calls passed, 0 failed; the restored server served %v after all were lost", load.passed.Load(), back.Round(100*time.Millisecond))
}
