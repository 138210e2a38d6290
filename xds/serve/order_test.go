package serve

import (
	"testing"

	"github.com/ztmesh/ztmesh/xds"
)

// A new destination: the cluster first, the route when the cluster is ACKed. A
// destination that goes: the route first, the cluster when the route is ACKed.
func TestMakeBeforeBreak(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("cluster svc/b@1", "route out/http@2", "listener out/http@2")})
	added := c.recv(xds.ClusterType, "+svc/b@1")
	c.silent() // the cluster is still warming
	c.subscribe(xds.EndpointType, "svc/b")
	b := xds.Endpoints("svc/b", nil)
	c.accept(xds.EndpointType, "+svc/b@"+b.Version)
	c.silent()
	c.must(c.Ack(added))
	for typeURL, m := range c.recvAny(xds.ListenerType, xds.RouteType) {
		c.must(c.Ack(m))
		for _, r := range m.GetResources() {
			if r.GetName() != "out/http" || r.GetVersion() != "2" || len(m.GetResources()) != 1 {
				t.Errorf("%s: %v", typeLabel(typeURL), m)
			}
		}
	}
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 })

	s.Set(3, map[string]*xds.Resources{"web-1": with("route out/http@3", "listener out/http@3")})
	m := c.recvAny(xds.ListenerType, xds.RouteType)
	c.silent() // both lead to the cluster as far as is known
	c.must(c.Ack(m[xds.ListenerType]))
	c.silent()
	if got := s.Status()[0]; got.AckedRevision != 2 || got.SentRevision != 2 {
		t.Errorf("in the midst of revision 3: %+v", got)
	}
	c.must(c.Ack(m[xds.RouteType]))
	c.accept(xds.ClusterType, "-svc/b")
	c.unsubscribe(xds.EndpointType, "svc/b")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 3 })
}

// A listener that goes takes its cluster with it only when it has gone.
func TestRemovedListenerGoesBeforeItsCluster(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": without(without(base(), xds.ListenerType, "in/http"), xds.ClusterType, "app/http")})
	gone := c.recv(xds.ListenerType, "-in/http")
	s.Set(3, map[string]*xds.Resources{"web-1": without(without(with("extension policy/http@3"), xds.ListenerType, "in/http"), xds.ClusterType, "app/http")})
	c.accept(xds.ExtensionType, "+policy/http@3")
	c.silent()
	c.must(c.Ack(gone))
	removed := c.recv(xds.ClusterType, "-app/http")
	c.silent()
	if got := s.Status()[0]; got.SentRevision != 3 || got.AckedRevision != 1 {
		t.Errorf("the removal is not ACKed yet: %+v", got)
	}
	c.must(c.Ack(removed))
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 3 })
}

// A refused listener keeps the cluster that the old one leads to.
func TestRefusedListenerKeepsItsClusters(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": without(with("listener out/http@2"), xds.ClusterType, "svc/a")})
	c.refuse(xds.ListenerType, "+out/http@2", "no")
	c.silent()
	s.Set(3, map[string]*xds.Resources{"web-1": without(with("listener out/http@3"), xds.ClusterType, "svc/a")})
	c.accept(xds.ListenerType, "+out/http@3")
	c.accept(xds.ClusterType, "-svc/a")
	c.silent()
}

// An Envoy that rebuilds a cluster waits for endpoints it has been sent before.
func TestEndpointsFollowTheirCluster(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("cluster svc/a@2")})
	cds := c.recv(xds.ClusterType, "+svc/a@2")
	c.accept(xds.EndpointType, "+svc/a@e1")
	c.must(c.Ack(cds))
	c.silent()
	s.Set(3, map[string]*xds.Resources{"web-1": with("cluster svc/a@2", "cluster app/http@2")})
	c.accept(xds.ClusterType, "+app/http@2")
	c.silent() // svc/a did not change
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 3 })
}

// A cluster that never warms is never ACKed. The update that repairs it comes
// all the same, and so do policy, gates, secrets and endpoints.
func TestNothingUrgentWaits(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	c.subscribe(xds.RuntimeType, xds.GatesName)
	s.Set(2, map[string]*xds.Resources{"web-1": with("cluster svc/a@2", "listener out/http@2")})
	stuck := c.recv(xds.ClusterType, "+svc/a@2")
	c.accept(xds.EndpointType, "+svc/a@e1")

	s.Set(3, map[string]*xds.Resources{"web-1": with("cluster svc/a@2", "listener out/http@2", "extension policy/http@3")})
	c.accept(xds.ExtensionType, "+policy/http@3")
	s.SetGates("web-1", res(xds.RuntimeType, xds.GatesName, "g1"))
	c.accept(xds.RuntimeType, "+zt/gates@g1")
	c.subscribe(xds.SecretType, xds.SVIDSecret)
	c.accept(xds.SecretType, "-zt/svid")
	s.SetSecrets("web-1", []*xds.Resource{res(xds.SecretType, xds.SVIDSecret, "k1")})
	c.accept(xds.SecretType, "+zt/svid@k1")
	s.SetEndpoints(map[string]*xds.Assignment{"svc/a": xds.Everywhere(res(xds.EndpointType, "svc/a", "e2"))})
	c.accept(xds.EndpointType, "+svc/a@e2")

	s.Set(4, map[string]*xds.Resources{"web-1": with("cluster svc/a@4", "listener out/http@2", "extension policy/http@3")})
	repaired := c.recv(xds.ClusterType, "+svc/a@4")
	c.accept(xds.EndpointType, "+svc/a@e2")
	c.must(c.Ack(stuck))
	c.silent()
	c.must(c.Ack(repaired))
	c.accept(xds.ListenerType, "+out/http@2")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 4 })
}

// A removed policy closes at once, before the listener goes and whatever new
// policies there are.
func TestRemovedPolicyIsSaidFirst(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": without(with("extension gate/http@2"), xds.ExtensionType, "policy/http")})
	c.accept(xds.ExtensionType, "-policy/http")
	c.accept(xds.ExtensionType, "+gate/http@2")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 })
}

// One policy per response. The next one does not wait for the ACK, but the next
// version of a policy does: of one policy a proxy that is slow gets the newest only.
func TestOnePolicyPerResponse(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension gate/http@2", "extension policy/http@2")})
	gate := c.recv(xds.ExtensionType, "+gate/http@2")
	policy := c.recv(xds.ExtensionType, "+policy/http@2")
	s.Set(3, map[string]*xds.Resources{"web-1": with("extension gate/http@2", "extension policy/http@3")})
	s.Set(4, map[string]*xds.Resources{"web-1": with("extension gate/http@2", "extension policy/http@4")})
	c.silent()
	c.must(c.Ack(gate))
	c.silent()
	c.must(c.Ack(policy))
	c.accept(xds.ExtensionType, "+policy/http@4")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 4 })
}

// A proxy without clusters is told that there are none: a cold Envoy waits for
// an answer before it goes on.
func TestEmptyTarget(t *testing.T) {
	s := newServer(t)
	c := s.connect("web-1")
	c.subscribe(xds.ClusterType)
	s.await("web-1")
	s.SetSecrets("web-1", []*xds.Resource{})
	s.Set(1, map[string]*xds.Resources{"web-1": target()})
	c.accept(xds.ClusterType, "nothing")
	c.subscribe(xds.ListenerType)
	c.accept(xds.ListenerType, "nothing")
	c.silent()
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 1 })
}
