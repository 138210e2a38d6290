//go:build system

package restore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// told is what a server tells a proxy that comes for the first time: type and name →
// version.
func (s *site) told(ctx context.Context, at int, dir string) (map[string]string, error) {
	pair, err := identity.LoadKeyPair(filepath.Join(s.path(dir), "node.pem"))
	if err != nil {
		return nil, err
	}
	uri, err := identity.URI(pair.Leaf())
	if err != nil {
		return nil, err
	}
	conn, err := s.Ports[at].AsNode(pair)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := uri[strings.LastIndex(uri, "/")+1:]
	client, err := adsclient.Open(ctx, conn, id)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, of := range []struct {
		typeURL string
		names   []string
	}{
		{xds.ClusterType, nil},
		{xds.EndpointType, []string{xds.ClusterName("shop/orders", "http")}},
		{xds.ListenerType, nil},
		{xds.ExtensionType, []string{xds.PolicyName("shop/orders", "http"), xds.GateName("shop/orders", "http")}},
	} {
		if err := client.Subscribe(of.typeURL, of.names...); err != nil {
			return nil, err
		}
		m, err := client.Recv()
		if err != nil {
			return nil, err
		}
		for _, r := range m.GetResources() {
			out[of.typeURL+" "+r.GetName()] = r.GetVersion()
		}
		if err := client.Ack(m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// TestOneServerAlone: a grant is taken away, three servers are killed, and one is started,
// without a quorum. It tells a proxy what it told before, and the Envoy that comes to it
// never lets a call through. With the others back, writes go on.
func TestOneServerAlone(t *testing.T) {
	s := newSite(t)
	servers := []*fleet.Server{s.server("ztd-1", 1), s.server("ztd-2", 2), s.server("ztd-3", 3)}
	s.check(s.Begin(s.ctx(), trustDomain, servers))
	app, err := zttest.NewHTTPApp("orders", s.block.At(30)+":8080")
	s.check(err)
	t.Cleanup(func() { app.Close() })
	granted := fmt.Sprintf(spec, s.block.At(30)+":8080")
	s.check(os.WriteFile(s.path("spec.yaml"), []byte(granted), 0o600))
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--no-wait")
	orders := s.agent("orders", 22)
	s.agent("web", 21)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	call := func(ctx context.Context) error { return s.call(ctx, client, s.block.At(21)) }
	s.until("web reaches orders", call)

	const rounds = 2
	for n := range rounds {
		alone := servers[n]
		// The last change, and nothing after it, takes the grant away.
		s.check(os.WriteFile(s.path("none.yaml"), []byte(granted[:strings.LastIndex(granted, "---")]), 0o600))
		s.ctl("ztd-1.admin.yaml", "apply", "-f", "none.yaml", "--timeout", "60s")
		denied := func(ctx context.Context) error {
			if err := call(ctx); err == nil || !strings.HasPrefix(err.Error(), "403 ") {
				return fmt.Errorf("not denied: %v", err)
			}
			return nil
		}
		s.until("web is denied", denied)
		var before map[string]string
		s.until("the server tells all", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			at0, err := s.told(ctx, (n+1)%3, orders)
			if err != nil {
				return err
			}
			if before, err = s.told(ctx, n, orders); err == nil && !maps.Equal(before, at0) {
				err = errors.New("two servers do not tell the same")
			}
			return err
		})
		if len(before) < 4 {
			t.Fatalf("it tells only %v", before)
		}
		for _, v := range servers {
			v.Kill()
		}
		s.check(alone.Start(s.Site))
		s.until("a proxy is told by one server alone what it was told before", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			got, err := s.told(ctx, n, orders)
			if err == nil && !maps.Equal(got, before) {
				t.Errorf("%s alone tells %v, before it told %v", alone.Name, got, before)
			}
			return err
		})
		s.until("the Envoys come to it", func(ctx context.Context) error {
			if err := call(ctx); err == nil {
				t.Errorf("%s alone, an Envoy has let a call through", alone.Name)
			}
			metrics, err := alone.Get(ctx, "/metrics")
			if err == nil && !strings.Contains(metrics, "\nzt_serve_connected_proxies 2\n") {
				err = errors.New("two are not connected")
			}
			return err
		})
		for range 50 {
			s.check(denied(s.ctx()))
		}
		if said, err := alone.Get(s.ctx(), "/readyz"); err == nil || !strings.Contains(err.Error(), "no leader") {
			t.Errorf("alone it says %q %v", said, err)
		}
		for _, v := range servers {
			if v != alone {
				s.check(v.Start(s.Site))
			}
		}
		for _, v := range servers {
			s.check(v.Ready(s.ctx()))
		}
		s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--timeout", "60s")
		s.until("web reaches orders again", call)
	}
}
