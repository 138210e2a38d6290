package serve

import (
	"maps"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/xds"
)

func TestFirstFetch(t *testing.T) {
	s := newServer(t)
	s.connected("web-1").silent()
	got := s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	if got.SentRevision != 1 || len(got.Nacks) != 0 || got.AckedAt.IsZero() || got.Since.IsZero() {
		t.Errorf("status %+v", got)
	}
	if n := s.count("zt_serve_pushes_total", "extension"); n != 2 {
		t.Errorf("%v pushes of extensions, want 2", n)
	}
}

// Whoever asks before there is a configuration waits, and then gets all of it.
func TestWaitsForConfiguration(t *testing.T) {
	s := newServer(t)
	c := s.connect("web-1")
	c.subscribe(xds.ClusterType)
	c.subscribe(xds.EndpointType, "svc/a")
	c.subscribe(xds.ListenerType)
	c.subscribe(xds.RuntimeType, xds.GatesName)
	c.subscribe(xds.SecretType, xds.SVIDSecret)
	s.await("web-1")
	s.SetSecrets("web-1", []*xds.Resource{res(xds.SecretType, xds.SVIDSecret, "k1")})
	c.accept(xds.SecretType, "+zt/svid@k1")
	c.silent() // for a part of the rest would be a mistake
	if got := s.status("web-1", func(ProxyStatus) bool { return true }); got.SentRevision != 0 || got.AckedRevision != 0 {
		t.Errorf("status before any configuration: %+v", got)
	}
	s.SetGates("web-1", res(xds.RuntimeType, xds.GatesName, "g1"))
	c.accept(xds.RuntimeType, "+zt/gates@g1")
	s.Set(7, map[string]*xds.Resources{"web-1": target("cluster svc/a@1", "listener out/http@1")})
	cds := c.recvAny(xds.ClusterType, xds.EndpointType)
	c.must(c.Ack(cds[xds.EndpointType])) // empty: the cluster has no endpoints
	c.must(c.Ack(cds[xds.ClusterType]))
	c.accept(xds.ListenerType, "+out/http@1")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 7 })
}

// recvAny receives one response of each type, in any order.
func (c *client) recvAny(types ...string) map[string]*discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	got := map[string]*discoveryv3.DeltaDiscoveryResponse{}
	for range types {
		m, err := c.Recv()
		c.must(err)
		got[m.GetTypeUrl()] = m
	}
	for _, typeURL := range types {
		if got[typeURL] == nil {
			c.t.Fatalf("no response of type %s", typeLabel(typeURL))
		}
	}
	return got
}

// Endpoints wait until they are known at all: a server that has just started
// must not tell proxies that nobody is there.
func TestEndpointsWaitForTheFirstCall(t *testing.T) {
	f := New(Config{})
	s := &stream{fleet: f}
	v := &view{target: base()}
	if s.desired(xds.EndpointType, v).known {
		t.Error("endpoints are answered before they are known")
	}
	f.SetEndpoints(nil)
	d := s.desired(xds.EndpointType, v)
	if !d.known || d.get("svc/a") == nil {
		t.Error("endpoints are not answered after they are known")
	}
	if d.get("svc/other") != nil {
		t.Error("a cluster that is not the proxy's has endpoints")
	}
}

// A proxy that comes back with what it holds is sent nothing, and proves by its
// versions that it is current. One that missed a change is sent that.
func TestReconnect(t *testing.T) {
	s := newServer(t)
	first := s.connected("web-1")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	held := map[string]map[string]string{}
	for _, typeURL := range []string{xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.ExtensionType} {
		held[typeURL] = first.Versions(typeURL)
	}
	resume := func(s *server) *client {
		c := s.connect("web-1")
		c.must(c.Resume(xds.ClusterType, held[xds.ClusterType]))
		c.must(c.Resume(xds.EndpointType, held[xds.EndpointType], "svc/a"))
		c.must(c.Resume(xds.ListenerType, held[xds.ListenerType]))
		c.must(c.Resume(xds.RouteType, held[xds.RouteType], "out/http"))
		c.must(c.Resume(xds.ExtensionType, held[xds.ExtensionType], "gate/http", "policy/http"))
		s.await("web-1")
		s.SetSecrets("web-1", []*xds.Resource{})
		s.SetEndpoints(map[string]*xds.Assignment{"svc/a": xds.Everywhere(res(xds.EndpointType, "svc/a", "e1"))})
		return c
	}

	other := newServer(t)
	c := resume(other)
	other.Set(1, map[string]*xds.Resources{"web-1": base()})
	c.silent()
	other.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 && p.SentRevision == 1 })
	if n := other.count("zt_serve_pushes_total", "") - other.count("zt_serve_pushes_total", "secret"); n != 0 {
		t.Errorf("%v pushes to a proxy that holds everything", n)
	}

	third := newServer(t)
	c = resume(third)
	third.Set(2, map[string]*xds.Resources{"web-1": without(with("extension policy/http@2"), xds.ListenerType, "in/http")})
	got := c.recvAny(xds.ExtensionType, xds.ListenerType)
	for typeURL, want := range map[string]string{xds.ExtensionType: "+policy/http@2", xds.ListenerType: "-in/http"} {
		if says := adsclient.Says(got[typeURL]); says != want {
			t.Errorf("%s: %q, want %q", typeLabel(typeURL), says, want)
		}
		c.must(c.Ack(got[typeURL]))
	}
	third.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 })
	c.silent()
}

func TestUnsubscribe(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	c.unsubscribe(xds.ExtensionType, "policy/http")
	c.silent()
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension policy/http@2", "extension gate/http@2")})
	c.accept(xds.ExtensionType, "+gate/http@2")
	c.silent()
	// Wanted again, it comes, in whatever version the client had.
	c.subscribe(xds.ExtensionType, "policy/http")
	c.accept(xds.ExtensionType, "+policy/http@2")
	c.subscribe(xds.ExtensionType, "policy/http")
	c.accept(xds.ExtensionType, "+policy/http@2")
	c.silent()
}

// A name that the proxy has no right to, or that does not exist, is answered
// once as removed, and comes should it become the proxy's.
func TestUnknownName(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	c.subscribe(xds.ExtensionType, "policy/other")
	c.accept(xds.ExtensionType, "-policy/other")
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension policy/http@2")})
	c.accept(xds.ExtensionType, "+policy/http@2")
	c.silent()
	if n := s.count("zt_serve_foreign_names_total", "extension"); n != 1 {
		t.Errorf("%v foreign names counted, want 1", n)
	}
	s.Set(3, map[string]*xds.Resources{"web-1": with("extension policy/http@2", "extension policy/other@1")})
	c.accept(xds.ExtensionType, "+policy/other@1")
	s.Set(4, map[string]*xds.Resources{"web-1": with("extension policy/http@2")})
	c.accept(xds.ExtensionType, "-policy/other")
	c.silent()
	if n := s.count("zt_serve_foreign_names_total", "extension"); n != 1 {
		t.Errorf("%v foreign names counted after a removal, want 1", n)
	}
	c.subscribe(xds.EndpointType, "svc/other")
	c.accept(xds.EndpointType, "-svc/other")
}

// A revision that changes nothing for a proxy sends it nothing and is ACKed at
// once, with the same value, with an equal one, and without any.
func TestNothingChanged(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	for i, change := range []map[string]*xds.Resources{
		{"web-1": base()}, nil, {"other-1": base()},
	} {
		revision := uint64(i + 2)
		s.Set(revision, change)
		if got := s.Status(); len(got) != 1 || got[0].AckedRevision != revision || got[0].SentRevision != revision {
			t.Errorf("revision %d: status %+v", revision, got)
		}
	}
	s.SetEndpoints(map[string]*xds.Assignment{"svc/a": xds.Everywhere(res(xds.EndpointType, "svc/a", "e1")), "svc/b": xds.Everywhere(res(xds.EndpointType, "svc/b", "e1"))})
	before := s.count("zt_serve_pushes_total", "")
	c.silent()
	if n := s.count("zt_serve_pushes_total", "") - before; n != 1 {
		t.Errorf("%v responses, want only that of the fence", n)
	}
}

func TestEndpointsMove(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.SetEndpoints(map[string]*xds.Assignment{"svc/a": xds.Everywhere(res(xds.EndpointType, "svc/a", "e2")), "svc/b": xds.Everywhere(res(xds.EndpointType, "svc/b", "e2"))})
	c.accept(xds.EndpointType, "+svc/a@e2")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	s.SetEndpoints(map[string]*xds.Assignment{"svc/a": nil})
	empty := xds.Endpoints("svc/a", nil).Version
	c.accept(xds.EndpointType, "+svc/a@"+empty)
	c.silent()
}

// Streams of several instances share resources and do not mix.
func TestManyProxies(t *testing.T) {
	s := newServer(t)
	var all sync.WaitGroup
	names := []string{"web-1", "web-2", "web-3"}
	clients := map[string]*client{}
	for _, name := range names {
		clients[name] = s.connected(name)
	}
	policy := map[string]*xds.Resources{}
	for _, name := range names {
		policy[name] = with("extension policy/http@" + name)
	}
	s.Set(2, policy)
	for name, c := range clients {
		all.Go(func() {
			m, err := c.Recv()
			if err != nil || adsclient.Says(m) != "+policy/http@"+name || c.Ack(m) != nil {
				t.Errorf("%s: received %v, %v", name, m, err)
			}
		})
	}
	all.Wait()
	for name := range maps.Keys(clients) {
		s.status(name, func(p ProxyStatus) bool { return p.AckedRevision == 2 })
	}
	if diff := cmp.Diff(names, s.Connected()); diff != "" {
		t.Error(diff)
	}
}
