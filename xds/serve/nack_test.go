package serve

import (
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ztmesh/ztmesh/xds"
)

func TestNack(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newServer(t, func(c *Config) { c.Now = func() time.Time { return now } })
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension gate/http@bad", "extension policy/http@2")})
	c.refuse(xds.ExtensionType, "+gate/http@bad", "Proto constraint\n\tvalidation \x1b[31mfailed")
	c.accept(xds.ExtensionType, "+policy/http@2") // not touched by the other
	c.silent()                                    // and the bad one is not repeated

	got := s.status("web-1", func(p ProxyStatus) bool { return len(p.Nacks) > 0 && p.SentRevision == 2 })
	want := ProxyStatus{
		Instance: "web-1", Since: now, SentRevision: 2, AckedRevision: 1, AckedAt: now,
		Nacks: []Nack{{
			TypeURL: xds.ExtensionType, Resource: "gate/http", Version: "bad",
			Message: "Proto constraint  validation [31mfailed", When: now,
		}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(ProxyStatus{}, "Sent", "Acked", "Enforced"), cmpopts.IgnoreUnexported(ProxyStatus{})); diff != "" {
		t.Error(diff)
	}
	if n := s.count("zt_serve_nacks_total", "extension"); n != 1 {
		t.Errorf("%v NACKs counted", n)
	}

	// It stays while other revisions pass, and is not ACKed by them.
	s.Set(3, map[string]*xds.Resources{"web-1": with("extension gate/http@bad", "extension policy/http@3")})
	c.accept(xds.ExtensionType, "+policy/http@3")
	c.silent()
	// The fence is no more: until then it asks for what there is not.
	if got := s.status("web-1", func(p ProxyStatus) bool { return p.SentRevision == 3 }); got.AckedRevision != 1 || len(got.Nacks) != 1 {
		t.Errorf("revision 3: %+v", got)
	}

	// A newer version that is accepted clears it.
	s.Set(4, map[string]*xds.Resources{"web-1": with("extension gate/http@4", "extension policy/http@3")})
	c.accept(xds.ExtensionType, "+gate/http@4")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 4 && len(p.Nacks) == 0 })
}

// What was refused and is taken back leaves nothing behind.
func TestNackOfWhatIsRemoved(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("listener in/grpc@bad")})
	c.refuse(xds.ListenerType, "+in/grpc@bad", "no")
	s.status("web-1", func(p ProxyStatus) bool { return len(p.Nacks) == 1 && p.AckedRevision == 1 })
	s.Set(3, map[string]*xds.Resources{"web-1": base()})
	c.accept(xds.ListenerType, "-in/grpc")
	s.status("web-1", func(p ProxyStatus) bool { return len(p.Nacks) == 0 && p.AckedRevision == 3 })
}

// Going back to the version that the proxy holds is sent: it says so by an ACK.
func TestNackThenBack(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("route out/http@bad")})
	c.refuse(xds.RouteType, "+out/http@bad", "no")
	s.Set(3, map[string]*xds.Resources{"web-1": base()})
	c.accept(xds.RouteType, "+out/http@1")
	s.status("web-1", func(p ProxyStatus) bool { return len(p.Nacks) == 0 && p.AckedRevision == 3 })
	c.silent()
}

// A NACK of several resources does not say which. Each is sent again by itself,
// once, and then the answer is about one.
func TestNackOfSeveral(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("cluster app/http@2", "cluster svc/a@bad", "cluster svc/b@2", "listener out/http@2")})
	c.refuse(xds.ClusterType, "+app/http@2 +svc/a@bad +svc/b@2", "one is bad")
	got := c.recvAny(xds.ClusterType, xds.EndpointType) // the endpoints follow svc/a as ever
	c.must(c.Ack(got[xds.EndpointType]))
	c.must(c.Ack(got[xds.ClusterType])) // app/http
	c.refuse(xds.ClusterType, "+svc/a@bad", "this one is bad")
	again := c.recvAny(xds.ClusterType, xds.EndpointType)
	c.must(c.Ack(again[xds.EndpointType]))
	c.must(c.Ack(again[xds.ClusterType]))     // svc/b
	c.accept(xds.ListenerType, "+out/http@2") // what was refused holds nothing back
	c.silent()
	status := s.status("web-1", func(p ProxyStatus) bool { return len(p.Nacks) == 1 })
	if n := status.Nacks[0]; n.Resource != "svc/a" || n.Message != "this one is bad" {
		t.Errorf("%+v", n)
	}
	s.Set(3, map[string]*xds.Resources{"web-1": with("cluster app/http@2", "cluster svc/a@3", "cluster svc/b@2", "listener out/http@2")})
	got = c.recvAny(xds.ClusterType, xds.EndpointType)
	c.must(c.Ack(got[xds.EndpointType]))
	c.must(c.Ack(got[xds.ClusterType]))
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 3 && len(p.Nacks) == 0 })
}

// A nonce that was never sent, of another type, or used before ACKs nothing.
func TestNonces(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	s.Set(2, map[string]*xds.Resources{"web-1": with("extension gate/http@2", "cluster app/http@2")})
	got := c.recvAny(xds.ExtensionType, xds.ClusterType)
	for _, r := range []*discoveryv3.DeltaDiscoveryRequest{
		{TypeUrl: xds.ExtensionType, ResponseNonce: "1"},
		{TypeUrl: xds.ExtensionType, ResponseNonce: "1000000"},
		{TypeUrl: xds.ExtensionType, ResponseNonce: got[xds.ClusterType].GetNonce()},
		{TypeUrl: xds.ClusterType, ResponseNonce: got[xds.ExtensionType].GetNonce()},
	} {
		c.must(c.Send(r))
	}
	c.silent()
	if got := s.Status()[0]; got.AckedRevision != 1 {
		t.Errorf("ACKed by nonces that say nothing: %+v", got)
	}
	c.must(c.Ack(got[xds.ExtensionType]))
	c.must(c.Ack(got[xds.ClusterType]))
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 2 })
}

func TestSanitise(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                    "plain",
		"a\r\nb\x00\x1b[0m":        "a  b[0m",
		"\xff\xfeé":                "é",
		"\u202eevil\u200b":         "evil",
		strings.Repeat("é", 1<<20): strings.Repeat("é", maxMessage/2) + "…",
	} {
		if got := sanitise(in); got != want {
			t.Errorf("%.20q: %.40q, want %.40q", in, got, want)
		}
	}
}
