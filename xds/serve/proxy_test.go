package serve

import (
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// A stream that found all in place, while a setter replaced the view, does not
// vouch for the new one.
func TestLateReport(t *testing.T) {
	for name, change := range map[string]func(*proxy){
		"target":    func(p *proxy) { p.setTarget(with("route out/http@2"), 1) },
		"endpoints": func(p *proxy) { p.endpointsMoved([]string{"svc/a"}, false, 1) },
		"gates":     func(p *proxy) { p.setGates(res(xds.RuntimeType, xds.GatesName, "g"), 1) },
		"secrets":   func(p *proxy) { p.setSecrets([]*xds.Resource{res(xds.SecretType, xds.SVIDSecret, "k")}, 1) },
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

// The server closes the channel of tokens when it has cancelled the watches.
func TestNoTokenAfterCancel(t *testing.T) {
	out := make(chan cache.DeltaResponse, 2)
	w := &watch{stream: &stream{proxy: New(Config{}).newProxy("web-1")}, out: out}
	w.wakeLocked()
	w.wakeLocked()
	if len(out) != 1 {
		t.Errorf("%d tokens of one watch, want 1", len(out))
	}
	<-out
	w.queued = false
	w.cancel()
	close(out)
	w.wakeLocked() // panics if it sends
}
