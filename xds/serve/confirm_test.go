package serve

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// reading is what an Envoy shows that works by what is set for it, but for the types
// that are left out.
func (s *server) reading(instance string, without ...string) Reading {
	p := s.known(instance)
	p.mu.Lock()
	v := p.view
	p.mu.Unlock()
	versions := func(m map[string]*xds.Resource) map[string]string {
		out := map[string]string{"left/by/a/drain": "1"}
		for name, r := range m {
			out[name] = r.Version
		}
		return out
	}
	r := Reading{Digests: map[string]string{}, Live: map[string]map[string]string{}}
	for _, typeURL := range []string{xds.ListenerType, xds.ClusterType, xds.RouteType, xds.ExtensionType, xds.RuntimeType} {
		if slices.Contains(without, typeURL) {
			continue
		}
		switch typeURL {
		case xds.ListenerType, xds.ClusterType:
			shown := versions((*v.target)[typeURL])
			delete(shown, "left/by/a/drain")
			r.Digests[typeURL] = xds.Digest(shown)
		case xds.RuntimeType:
			r.Live[typeURL] = versions(v.gates)
		default:
			r.Live[typeURL] = versions((*v.target)[typeURL])
		}
	}
	return r
}

// TestConfirm: a proxy enforces what its agent has read after the ACK, and nothing
// else is taken for it: not a part, not what is warming, not what was read before.
func TestConfirm(t *testing.T) {
	s := newServer(t)
	c := s.connected("web-1")
	gates := xds.Gates([]string{"zt.a"})
	s.SetGates("web-1", gates)
	c.subscribe(xds.RuntimeType, xds.GatesName)
	c.accept(xds.RuntimeType, "+"+xds.GatesName+"@"+gates.Version)
	var seen uint64
	s.until("an ACK to confirm", func() (ok bool) {
		seen, ok = s.Unconfirmed("web-1")
		return ok
	})
	for what, r := range map[string]Reading{
		"listeners":  s.reading("web-1", xds.ListenerType),
		"clusters":   s.reading("web-1", xds.ClusterType),
		"routes":     s.reading("web-1", xds.RouteType),
		"extensions": s.reading("web-1", xds.ExtensionType),
		"runtimes":   s.reading("web-1", xds.RuntimeType),
		"out/http":   {Warming: []string{"out/http"}},
	} {
		if s.Confirm("web-1", seen, r) {
			t.Errorf("enforced without %s", what)
		}
		if got := s.Status()[0]; got.EnforcedRevision() != 0 || !slices.Contains(got.Differs, what) {
			t.Errorf("%s: %+v", what, got)
		}
	}
	long := Reading{Warming: make([]string, 1000)}
	for i := range long.Warming {
		long.Warming[i] = strings.Repeat("\x1b", 10_000)
	}
	s.Confirm("web-1", seen, long)
	if d := s.Status()[0].Differs; len(d) > maxDiffers+5 || len(strings.Join(d, "")) > (maxDiffers+5)*(maxDiffersName+3) {
		t.Errorf("%d names are kept", len(d))
	}
	if s.Confirm("web-1", seen-1, s.reading("web-1")) || s.Confirm("web-1", seen+1, s.reading("web-1")) || s.Confirm("other", seen, s.reading("web-1")) {
		t.Error("a reading of another time, or of another proxy, confirms")
	}
	if !s.Confirm("web-1", seen, s.reading("web-1")) {
		t.Fatalf("not enforced: %v", s.Status()[0].Differs)
	}
	if _, ok := s.Unconfirmed("web-1"); ok {
		t.Error("it is asked again")
	}
	// A revision that changes nothing for it is enforced at once; one that does is not,
	// even if the proxy comes to hold what it held before.
	s.Set(2, nil)
	if got := s.Status()[0]; got.EnforcedRevision() != 2 || len(got.Differs) != 0 {
		t.Errorf("revision 2: %+v", got)
	}
	old := s.reading("web-1")
	s.Set(3, map[string]*xds.Resources{"web-1": with("extension policy/http@3")})
	if got := s.Status()[0]; got.EnforcedRevision() != 2 {
		t.Errorf("revision 3, before its ACK: %+v", got)
	}
	c.accept(xds.ExtensionType, "+policy/http@3")
	s.status("web-1", func(p ProxyStatus) bool { return p.AckedRevision == 3 })
	again, _ := s.Unconfirmed("web-1")
	if again == seen || s.Confirm("web-1", seen, s.reading("web-1")) || s.Confirm("web-1", again, old) {
		t.Error("what was read before the ACK confirms")
	}
	if got := s.Status()[0]; got.EnforcedRevision() != 2 {
		t.Errorf("revision 3, unread: %+v", got)
	}
	if !s.Confirm("web-1", again, s.reading("web-1")) || s.Status()[0].EnforcedRevision() != 3 {
		t.Errorf("revision 3: %+v", s.Status()[0])
	}
	spans := s.Status()[0].Enforced.Spans
	if len(spans) != 2 || spans[0].Until != 2 || spans[1].Until != 0 {
		t.Errorf("spans: %+v", spans)
	}
}

// TestSpans: the past is bounded, and says so.
func TestSpans(t *testing.T) {
	var p progress
	for r := range uint64(100) {
		p.start(time.Unix(1, 0))
		p.stop(r)
	}
	if got := p.told(); len(got.Spans) != maxSpans || !got.Forgotten || got.Spans[maxSpans-1].Until != 99 || got.Current {
		t.Errorf("%+v", got)
	}
	given := p.told().Spans
	p.start(time.Unix(1, 0))
	p.stop(500)
	if given[maxSpans-1].Until != 99 {
		t.Error("what was given away has changed")
	}
}

// TestTakeChanged: the one reader hears of each proxy that has changed, and of no
// other, however many there are.
func TestTakeChanged(t *testing.T) {
	s := newServer(t)
	for _, i := range []string{"web-1", "web-2", "web-3"} {
		s.connected(i)
		s.status(i, func(p ProxyStatus) bool { return p.AckedRevision == 1 })
	}
	s.TakeChanged()
	s.Set(2, map[string]*xds.Resources{"web-2": with("extension policy/http@2"), "web-3": base()})
	if r, changed := s.TakeChanged(); r != 2 || !slices.Equal(changed, []string{"web-2"}) {
		t.Errorf("revision %d changed %v", r, changed)
	}
}
