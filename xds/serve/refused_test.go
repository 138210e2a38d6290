package serve

import (
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

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
		out[typeURL][name] = &xds.Resource{Type: typeURL, Name: name, Version: "bad", Body: packed(t, m)}
		names = append(names, name)
	}
	add(xds.ListenerType, "a/listener", &listenerv3.Listener{Name: "a/listener"}) // without an address
	add(xds.ClusterType, "a/cluster", &clusterv3.Cluster{Name: "a/cluster", ConnectTimeout: durationpb.New(-time.Second)})
	for _, name := range slices.Sorted(maps.Keys(out[xds.ExtensionType])) {
		if strings.HasPrefix(name, "policy/") {
			broken := *out[xds.ExtensionType][name]
			broken.Version, broken.Body = "bad", unmade(t, name)
			out[xds.ExtensionType][name] = &broken
			names = append(names, name)
		}
	}
	return &out, names
}

// unmade is a policy that an Envoy can read, and finds last of all that it cannot make:
// of a regular expression that is none.
func unmade(t *testing.T, name string) *anypb.Any {
	t.Helper()
	broken := packed(t, &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Policies: map[string]*rbacconfigv3.Policy{"p": {
		Permissions: []*rbacconfigv3.Permission{{Rule: &rbacconfigv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
			Rule: &matcherv3.PathMatcher_Path{Path: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}},
			}},
		}}}},
		Principals: []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}},
	}}}})
	chain := &filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{
		Filters: []*corev3.TypedExtensionConfig{{Name: "rbac", TypedConfig: broken}},
	}}
	return packed(t, &corev3.TypedExtensionConfig{Name: name, TypedConfig: packed(t, chain)})
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A version that is refused and sent again is refused again: none of the types that are
// repeated counts as ACKed by that. (Of a policy and a secret it would: an Envoy that gets
// the same one twice does not look at it.)
func TestRefusedAgain(t *testing.T) {
	m := newMesh(t, func(m *mesh) *xds.Resources { return m.web("shop/first", 1) })
	if err := m.envoy.Ready(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.acked(1)
	home, _ := m.home()
	wrong := func(typeURL, name string, msg proto.Message) *xds.Resource {
		return &xds.Resource{Type: typeURL, Name: name, Version: "bad", Body: packed(t, msg)}
	}
	cluster := "svc/shop/orders0/http"
	nowhere := xds.Endpoints(cluster, []xds.Endpoint{{Address: "127.0.0.1", Port: 1}})
	var where endpointv3.ClusterLoadAssignment
	if err := nowhere.Body.UnmarshalTo(&where); err != nil {
		t.Fatal(err)
	}
	where.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().Address = "not.an.address"
	home.SetEndpoints(map[string]*xds.Assignment{cluster: xds.Everywhere(wrong(xds.EndpointType, cluster, &where))})
	home.SetGates("web-1", wrong(xds.RuntimeType, xds.GatesName, &runtimev3.Runtime{Name: xds.GatesName, Layer: &structpb.Struct{
		Fields: map[string]*structpb.Value{"zt.x": structpb.NewListValue(&structpb.ListValue{})},
	}}))
	chain, _ := pemOf(t, home.ca.issue(t, "spiffe://test/ns/shop/sa/web"))
	_, key := pemOf(t, home.ca.issue(t, "spiffe://test/ns/shop/sa/web")) // of another certificate
	home.SetSecrets("web-1", []*xds.Resource{xds.SVID(chain, key), home.known("web-1").current().secrets[xds.BundleSecret]})
	bad, _ := spoil(t, m.web("shop/first", 1))
	(*bad)[xds.RouteType][xds.OutboundHTTP] = wrong(xds.RouteType, xds.OutboundHTTP, &routev3.RouteConfiguration{
		Name: xds.OutboundHTTP, VirtualHosts: []*routev3.VirtualHost{{Name: "a", Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: "("}}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}},
		}}}},
	})
	m.set(2, bad)
	for _, label := range []string{"listener", "cluster", "route", "endpoint", "runtime"} {
		if err := m.envoy.Await(m.ctx, func() bool { return home.count("zt_serve_retries_total", label) >= 3 }); err != nil {
			t.Errorf("a refused %s is not sent again: %v", label, err)
		}
	}
	if s := home.Status()[0]; s.AckedRevision > 1 || len(s.Nacks) != 7 {
		t.Errorf("of one resource of each type that is refused: %+v", s)
	}
	for _, label := range []string{"extension", "secret"} {
		if n := home.count("zt_serve_retries_total", label); n != 0 {
			t.Errorf("%s: %v retries", label, n)
		}
	}
}

// TestRefusedAlone: a listener, a cluster and a policy that a real Envoy refuses leave
// everything else of that very proxy moving, then and after; status and metrics show
// them until they are repaired, and that they are sent again makes none of them ACKed.
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
	for _, label := range []string{"listener", "cluster"} {
		if err := m.envoy.Await(m.ctx, func() bool { return home.count("zt_serve_retries_total", label) >= 4 }); err != nil {
			t.Errorf("a refused %s is not sent again: %v", label, err)
		}
	}
	if n := home.count("zt_serve_nacks_total", "extension"); n != 1 {
		t.Errorf("%v NACKs of a policy that no Envoy judges twice", n)
	}
	if s := home.Status()[0]; s.AckedRevision != 1 || len(s.Nacks) != 3 {
		t.Errorf("what was refused again counts as ACKed: %+v", s)
	}
	m.set(4, m.web("shop/first", 5))
	m.acked(4)
	if n := home.count("zt_serve_refused_resources", ""); n != 0 {
		t.Errorf("%v resources are refused still", n)
	}
}

// A listener whose port another process holds is refused; once that has let go of it, it
// is taken without anybody's doing, and the revision is ACKed.
func TestPortTaken(t *testing.T) {
	m := newMesh(t, func(m *mesh) *xds.Resources { return m.web("shop/first", 1) })
	if err := m.envoy.Ready(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.acked(1)
	home, _ := m.home()
	taken, err := net.Listen("tcp", m.instance.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const td = "spiffe://test/ns/shop/sa/"
	m.more = []xds.Inbound{{
		Name: "grpc", Port: uint32(taken.Addr().(*net.TCPAddr).Port), Target: "127.0.0.1:2", Protocol: xds.HTTP, Hosts: []string{"web.shop.mesh"},
		Gate:  []xds.GateEntry{{ID: td + "api", Key: "zt.fedcba9876543210"}},
		Rules: []xds.Rule{{Grant: "shop/first", Callers: xds.Callers{IDs: []string{td + "api"}}}},
	}}
	m.set(2, m.web("shop/first", 1))
	if err := m.envoy.Await(m.ctx, func() bool { return home.count("zt_serve_retries_total", "listener") >= 3 }); err != nil {
		t.Fatalf("not sent again: %v; %+v", err, home.Status())
	}
	s := home.Status()[0]
	if len(s.Nacks) != 1 || !strings.Contains(s.Nacks[0].Message, "in use") || s.AckedRevision != 1 {
		t.Fatalf("while its port is taken: %+v", s)
	}
	t.Logf("refused: %s", s.Nacks[0].Message)
	taken.Close()
	freed := time.Now()
	m.acked(2)
	t.Logf("ACKed %v after the port was free", time.Since(freed))
	conn, err := net.Dial("tcp", taken.Addr().String())
	if err != nil {
		t.Fatalf("it is ACKed, and does not listen: %v", err)
	}
	conn.Close()
}
