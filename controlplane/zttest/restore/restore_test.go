//go:build system

package restore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
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

// flags of the servers.
var flags = []string{"--election-timeout", "200ms"}

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
type site struct{ *fleet.Test }

func newSite(t *testing.T) *site {
	t.Helper()
	return &site{fleet.NewTest(t, patience, []string{"ztd", "ztctl", "ztagent"})}
}

// server is one that may come and go.
func (s *site) server(name string, at int) *fleet.Server {
	v := &fleet.Server{Name: name, Host: s.Block.At(at), Flags: flags}
	s.T.Cleanup(func() {
		if v.Running() {
			v.Kill()
		}
	})
	return v
}

func (s *site) ctl(admin string, args ...string) string {
	s.T.Helper()
	out, err := s.Command(s.Context(), "ztctl", append([]string{"--config", s.Path(admin)}, args...)...)
	s.Check(err)
	return out
}

// serial is that of the certificate that an agent has now.
func (s *site) serial(dir string) string {
	s.T.Helper()
	pair, err := identity.LoadKeyPair(filepath.Join(s.Path(dir), "svid.pem"))
	s.Check(err)
	return pair.Leaf().SerialNumber.String()
}

// call is one of web's application, through its Envoy.
func (s *site) call(ctx context.Context, client *http.Client) error {
	return fleet.Get(ctx, client, s.Block.At(21), "orders.shop.mesh", "/")
}

// TestAllServersAreLost: three servers are killed and their folders are never used
// again. One is restored at the address of the first, two join. The Envoys serve all
// the while, the agents renew; a server of before is refused.
func TestAllServersAreLost(t *testing.T) {
	s := newSite(t)
	s.BeginThree(trustDomain, flags...)
	before := s.Servers
	s.KnowsAll(3)
	app, err := zttest.NewHTTPApp("orders", s.Block.At(30)+":8080")
	s.Check(err)
	t.Cleanup(app.Close)
	s.Check(os.WriteFile(s.Path("spec.yaml"), fmt.Appendf(nil, spec, s.Block.At(30)+":8080"), 0o600))
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--no-wait")
	s.AgentWithEnvoy("shop/orders", 22, 22)
	s.AgentWithEnvoy("shop/web", 21, 21)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	call := func(ctx context.Context) error { return s.call(ctx, client) }
	s.Until("web reaches orders", call)
	load := zttest.StartCalls(t.Context(), 1, 5*time.Millisecond, call)
	s.ctl("ztd-1.admin.yaml", "backup", "shop.ztbackup")

	for _, v := range before {
		v.Kill()
	}
	lost := time.Now()
	had := map[string]string{"web": s.serial("web"), "orders": s.serial("orders")}
	key, err := os.ReadFile(s.Path("ztd-1.kek"))
	s.Check(errors.Join(err, os.WriteFile(s.Path("new-1.kek"), key, 0o600)))
	_, err = s.Command(s.Context(), "ztd", "restore", "--from", "shop.ztbackup", "--data-dir", "new-1")
	s.Check(err)
	s.Servers, s.IDs, s.Ports = nil, nil, nil
	first := s.server("new-1", 1)
	s.Check(first.Start(s.Site))
	s.Check(first.Ready(s.Context()))
	s.Check(s.Adopt(s.Context(), first))
	back := time.Since(lost)
	for n := 2; n <= 3; n++ {
		v := s.server(fmt.Sprintf("new-%d", n), n)
		s.Check(s.Join(s.Context(), v))
		s.Check(v.Start(s.Site))
		s.Check(v.Ready(s.Context()))
		s.Check(s.Adopt(s.Context(), v))
	}
	s.Check(s.Converge(s.Context()))

	// One of before comes back, elsewhere, and finds nobody who speaks with it.
	old := s.server("ztd-2", 4)
	s.Check(old.Start(s.Site))
	s.Until("the agents renew", func(context.Context) error {
		for dir, was := range had {
			if s.serial(dir) == was {
				return fmt.Errorf("%s has not renewed", dir)
			}
		}
		return nil
	})
	if _, err := old.Get(s.Context(), "/readyz"); err == nil {
		t.Error("a server of before is ready")
	}
	for _, v := range s.Servers {
		votes, err := v.Group(s.Context())
		s.Check(err)
		if len(votes) != 3 {
			t.Errorf("%s knows %v", v.Name, votes)
		}
	}
	old.Kill()
	// A change reaches the Envoys: they have found the new servers.
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--timeout", "60s")
	passed, err := load.Stop()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d calls passed, 0 failed; the restored server served %v after all were lost", passed, back.Round(100*time.Millisecond))
}
