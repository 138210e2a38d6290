package controlplane

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/decisions"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// TestCuts: connections that were cut add up until their caller is admitted again;
// what a proxy reports is bounded, leaves room for others, and is no other proxy's.
func TestCuts(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	others := newCluster(&cluster{})
	p := newProxies(&proxies{
		cluster: others, moved: others.moved, fleet: serve.New(serve.Config{}),
		full: func() bool { return false }, now: func() time.Time { return now },
	})
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	cut := func(instance, caller string, opened, closed int) {
		p.cut(instance, decisions.Cut{Port: "http", Caller: caller, Opened: at(opened), Closed: at(closed)})
	}
	begin := now
	cut("a", "web", -100, 2)
	cut("a", "web", -50, 1) // reported later
	cut("a", "cart", -50, 1)
	if n, last := p.Cuts("a", "web", "http", begin); n != 2 || !last.Equal(at(2)) {
		t.Errorf("%d cut, the last one at %v", n, last)
	}
	if n, _ := p.Cuts("b", "web", "http", begin); n != 0 {
		t.Errorf("%d of another proxy", n)
	}
	now = now.Add(time.Minute) // admitted again, and cut again
	second := now
	cut("a", "web", -30, 5)
	if n, _ := p.Cuts("a", "web", "http", begin); n != 2 {
		t.Errorf("the first time: %d", n)
	}
	if n, last := p.Cuts("a", "web", "http", second); n != 1 || !last.Equal(at(5)) {
		t.Errorf("the second time: %d, %v", n, last)
	}
	if n, _ := p.Cuts("a", "web", "http", now.Add(time.Second)); n != 0 {
		t.Errorf("after that: %d", n)
	}
	for i := range 2 * maxCutsOf {
		cut("liar", fmt.Sprint(i), -1, 0)
	}
	if n := p.cutsOf["liar"]; n != maxCutsOf {
		t.Errorf("%d of one proxy are kept", n)
	}
	for i := range 2 * maxCuts {
		cut(fmt.Sprintf("i%d", i/maxCutsOf), fmt.Sprint(i), -1, 0)
	}
	if len(p.cuts) != maxCuts {
		t.Errorf("%d are kept", len(p.cuts))
	}
	now = now.Add(2 * cutsForgotten)
	cut("new", "web", -1, 0)
	if n, _ := p.Cuts("new", "web", "http", now); n != 1 || len(p.cuts) != 1 || len(p.cutsOf) != 1 {
		t.Errorf("old ones make no room: %d are kept", len(p.cuts))
	}
}

// TestToldCutsAreBounded: what is kept of what another server tells is no more than it
// keeps itself, whatever it tells and in which order.
func TestToldCutsAreBounded(t *testing.T) {
	begin := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	p := &peer{}
	p.take(&ztv1.WatchProxiesResponse{Delta: true, Held: []*ztv1.HeldProxy{{Proxy: &ztv1.Proxy{Instance: "i"}}}}) // without all of them before
	told := func(n int) *ztv1.HeldCuts {
		at := timestamppb.New(begin.Add(time.Duration(n) * time.Second))
		return &ztv1.HeldCuts{Instance: "i", Caller: fmt.Sprint(n), Port: "http", Episodes: []*ztv1.CutEpisode{{Connections: 1, Last: at, Heard: at}}}
	}
	const many = 3 * maxCuts
	for n := range many {
		p.take(&ztv1.WatchProxiesResponse{Delta: true, Cuts: []*ztv1.HeldCuts{told(n), {Instance: "i", Caller: "never"}}})
	}
	if len(p.cuts) > maxCuts {
		t.Errorf("%d are kept", len(p.cuts))
	}
	if p.cuts[cutKey{"i", fmt.Sprint(many - 1), "http"}] == nil || p.cuts[cutKey{"i", "0", "http"}] != nil {
		t.Error("other ones than the newest are kept")
	}
}
