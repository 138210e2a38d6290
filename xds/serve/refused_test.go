package serve

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/xds"
)

// spoil is r, and beside what is in it one listener, one policy and one cluster that
// no Envoy takes. Their names come first in their types.
func spoil(t *testing.T, r *xds.Resources) (*xds.Resources, []string) {
	t.Helper()
	out := xds.Resources{}
	for typeURL, byName := range *r {
		out[typeURL] = maps.Clone(byName)
	}
	var names []string
	add := func(typeURL, name string, m proto.Message) {
		body, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		out[typeURL][name] = &xds.Resource{Type: typeURL, Name: name, Version: "bad", Body: body}
		names = append(names, name)
	}
	add(xds.ListenerType, "a/listener", &listenerv3.Listener{Name: "a/listener"}) // without an address
	add(xds.ClusterType, "a/cluster", &clusterv3.Cluster{Name: "a/cluster", ConnectTimeout: durationpb.New(-time.Second)})
	for _, name := range slices.Sorted(maps.Keys(out[xds.ExtensionType])) {
		if strings.HasPrefix(name, "policy/") {
			broken := *out[xds.ExtensionType][name]
			broken.Version, broken.Body = "bad", &anypb.Any{TypeUrl: broken.Body.GetTypeUrl(), Value: []byte{0xff}}
			out[xds.ExtensionType][name] = &broken
			names = append(names, name)
		}
	}
	return &out, names
}

// TestRefusedAlone: a listener, a cluster and a policy that a real Envoy refuses leave
// everything else of that very proxy moving, then and after; status and metrics show
// them until they are repaired, and they are not sent again and again.
func TestRefusedAlone(t *testing.T) {
	m := newMesh(t, func(m *mesh) *xds.Resources { return m.web("shop/first", 1) })
	if err := m.envoy.Ready(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.acked(1)
	home, _ := m.home()
	clusters := m.stat("cluster_manager.cluster_added")
	for revision, destinations := range []int{2: 3, 3: 5} { // new clusters, routes and endpoints, twice
		if destinations == 0 {
			continue
		}
		bad, names := spoil(t, m.web("shop/first", destinations))
		began := time.Now()
		m.set(uint64(revision), bad)
		var got []string
		if err := m.envoy.Await(m.ctx, func() bool {
			got = nil
			for _, n := range home.Status()[0].Nacks {
				got = append(got, n.Resource)
				if n.Message == "" || n.Version != "bad" || n.When.Before(began) && revision == 2 {
					t.Errorf("%+v", n)
				}
			}
			slices.Sort(got)
			slices.Sort(names)
			return slices.Equal(got, names)
		}); err != nil {
			t.Fatalf("refused: %q, want %q: %v", got, names, err)
		}
		if revision == 2 {
			t.Logf("shown %v after the push: %v", time.Since(began), home.Status()[0].Nacks)
		}
		if err := m.envoy.Await(m.ctx, func() bool {
			body, err := m.envoy.Get(m.ctx, "/config_dump?resource=dynamic_route_configs")
			return err == nil && strings.Contains(body, (*bad)[xds.RouteType][xds.OutboundHTTP].Version) &&
				m.stat("cluster_manager.cluster_added") == clusters+uint64(destinations)-1
		}); err != nil {
			t.Fatalf("what is good does not move: %v", err)
		}
		if n := home.count("zt_serve_refused_resources", ""); int(n) != len(names) || home.count("zt_serve_refusing_proxies", "") != 1 {
			t.Errorf("%v resources are refused by the metric, want %d", n, len(names))
		}
		if s := home.Status()[0]; s.AckedRevision != 1 || s.EnforcedRevision() != 0 {
			t.Errorf("ACKed %d, enforced %d", s.AckedRevision, s.EnforcedRevision())
		}
	}
	if n := home.count("zt_serve_nacks_total", ""); n > 8 { // each once, and once among others
		t.Errorf("%v NACKs of three resources", n)
	}
	m.set(4, m.web("shop/first", 5))
	m.acked(4)
	if n := home.count("zt_serve_refused_resources", ""); n != 0 {
		t.Errorf("%v resources are refused still", n)
	}
}
