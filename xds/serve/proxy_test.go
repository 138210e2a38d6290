package serve

import (
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

func named(r *xds.Resource) map[string]*xds.Resource { return map[string]*xds.Resource{r.Name: r} }

// A stream that found all in place, while a setter replaced the view, does not
// vouch for the new one.
func TestLateReport(t *testing.T) {
	for name, change := range map[string]func(*proxy){
		"target":    func(p *proxy) { p.setTarget(with("route out/http@2"), 1) },
		"endpoints": func(p *proxy) { p.endpointsMoved([]string{"svc/a"}, false, 1) },
		"gates":     func(p *proxy) { p.setGates(named(res(xds.RuntimeType, xds.GatesName, "g")), 1) },
		"secrets":   func(p *proxy) { p.setSecrets(named(res(xds.SecretType, xds.SVIDSecret, "k")), 1) },
	} {
		s := &stream{}
		p := New(Config{}).newProxy("web-1")
		p.join(s)
		p.setTarget(base(), 0)
		seen := p.view
		p.report(s, seen, true, true, nil, 1, time.Time{})
		change(p)
		p.report(s, seen, true, true, nil, 2, time.Time{})
		if got, _ := p.status(2); got.AckedRevision != 1 || got.SentRevision != 1 {
			t.Errorf("%s: %+v", name, got)
		}
		p.report(s, p.view, true, true, nil, 2, time.Time{})
		if got, _ := p.status(2); got.AckedRevision != 2 || got.SentRevision != 2 {
			t.Errorf("%s, reported: %+v", name, got)
		}
	}
}

// What wakes a type many times before it is looked at is one token, and one turn of the
// senders.
func TestOneToken(t *testing.T) {
	f := New(Config{})
	f.senders.limit = 0 // nobody takes them
	s := &stream{fleet: f, ctx: t.Context(), proxy: f.newProxy("web-1")}
	for _, typeURL := range []string{xds.ClusterType, xds.ListenerType} {
		s.watches[indexOf(typeURL)] = &watch{stream: s, typeURL: typeURL}
	}
	s.wakeAllLocked()
	s.wakeAllLocked()
	if len(s.tokens) != 2 || len(f.senders.ready) != 1 {
		t.Errorf("%d tokens of two watches; the stream is ready %d times", len(s.tokens), len(f.senders.ready))
	}
	if w, _, last := s.token(); w.typeURL != xds.ClusterType || last {
		t.Errorf("the first token is of %s, the last one: %t", w.typeURL, last)
	}
	s.wakeAllLocked()
	if w, _, last := s.token(); w.typeURL != xds.ListenerType || last {
		t.Errorf("the second token is of %s, the last one: %t", w.typeURL, last)
	}
	if s.token(); s.rest() {
		t.Error("there is more to be said than was asked for")
	}
}
