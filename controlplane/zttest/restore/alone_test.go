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
	pair, err := identity.LoadKeyPair(filepath.Join(s.Path(dir), "node.pem"))
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
	s.BeginThree(trustDomain, flags...)
	servers := s.Servers
	app, err := zttest.NewHTTPApp("orders", s.Block.At(30)+":8080")
	s.Check(err)
	t.Cleanup(app.Close)
	granted := fmt.Sprintf(spec, s.Block.At(30)+":8080")
	s.Check(os.WriteFile(s.Path("spec.yaml"), []byte(granted), 0o600))
	s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--no-wait")
	s.AgentWithEnvoy("shop/orders", 22, 22)
	s.AgentWithEnvoy("shop/web", 21, 21)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	call := func(ctx context.Context) error { return s.call(ctx, client) }
	s.Until("web reaches orders", call)

	const rounds = 2
	for n := range rounds {
		alone := servers[n]
		// The last change, and nothing after it, takes the grant away.
		s.Check(os.WriteFile(s.Path("none.yaml"), []byte(granted[:strings.LastIndex(granted, "---")]), 0o600))
		s.ctl("ztd-1.admin.yaml", "apply", "-f", "none.yaml", "--timeout", "60s")
		denied := func(ctx context.Context) error { return fleet.Denied(call(ctx)) }
		s.Until("web is denied", denied)
		var before map[string]string
		s.Until("the server tells all", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			at0, err := s.told(ctx, (n+1)%3, "orders")
			if err != nil {
				return err
			}
			if before, err = s.told(ctx, n, "orders"); err == nil && !maps.Equal(before, at0) {
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
		s.Check(alone.Start(s.Site))
		s.Until("a proxy is told by one server alone what it was told before", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			got, err := s.told(ctx, n, "orders")
			if err == nil && !maps.Equal(got, before) {
				t.Errorf("%s alone tells %v, before it told %v", alone.Name, got, before)
			}
			return err
		})
		s.Until("the Envoys come to it", func(ctx context.Context) error {
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
			s.Check(denied(s.Context()))
		}
		if said, err := alone.Get(s.Context(), "/readyz"); err == nil || !strings.Contains(err.Error(), "no leader") {
			t.Errorf("alone it says %q %v", said, err)
		}
		for _, v := range servers {
			if v != alone {
				s.Check(v.Start(s.Site))
			}
		}
		for _, v := range servers {
			s.Check(v.Ready(s.Context()))
		}
		s.ctl("ztd-1.admin.yaml", "apply", "-f", "spec.yaml", "--timeout", "60s")
		s.Until("web reaches orders again", call)
	}
}
