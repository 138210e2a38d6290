package serve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// strange asks for so many names that nobody has.
func strange(n int) *discoveryv3.DeltaDiscoveryRequest {
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.ExtensionType, ResourceNamesSubscribe: make([]string, n)}
	for i := range n {
		r.ResourceNamesSubscribe[i] = fmt.Sprintf("nobody/%x", rand.Uint64())
	}
	return r
}

// Who asks for names that are not its own is slow by as much; names of its own cost
// nothing.
func TestStrangeNamesAreSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeevish(t)
		own := []string{}
		for i := range 20_000 {
			own = append(own, fmt.Sprintf("route r%d@1", i))
		}
		p.set(1, own...)
		p.told(0)
		began := time.Now()
		ask := func(r *discoveryv3.DeltaDiscoveryRequest) time.Duration {
			p.requests <- r
			// It is taken when the next one is.
			p.requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.RouteType}
			synctest.Wait()
			return time.Since(began)
		}
		mine := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.RouteType}
		for i := range 20_000 {
			mine.ResourceNamesSubscribe = append(mine.ResourceNamesSubscribe, fmt.Sprintf("r%d", i))
		}
		if d := ask(mine); d != 0 {
			t.Errorf("20,000 names of its own took %v", d)
		}
		if d := ask(strange(2_000)); d != 0 {
			t.Errorf("2,000 names of nobody's took %v", d)
		}
		d := ask(strange(40_000))
		if d < 150*time.Second || d > 200*time.Second { // 200 a second
			t.Errorf("40,000 more took %v", d)
		}
		// To ask for another one has all of them looked through.
		if again := ask(strange(1)) - d; again < 3*time.Second || again > 4*time.Second {
			t.Errorf("one more took %v", again)
		}
	})
}

// BenchmarkStrangeNames is what one request for as many names as may be costs: when it is
// taken, answered and told of, and then for each further request.
func BenchmarkStrangeNames(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		f := New(Config{Retain: true, Admission: Admission{Requests: 1e12}})
		f.senders.limit = 0
		f.Set(1, map[string]*xds.Resources{"web-1": base()})
		s := &stream{fleet: f, instance: "web-1", ctx: b.Context(), end: func(error) {}, answered: func() {}, transport: &pipe{ctx: context.Background()}}
		if err := s.join(); err != nil {
			b.Fatal(err)
		}
		r := strange(maxNames - 1)
		r.Node = &corev3.Node{Id: "web-1"}
		b.StartTimer()
		s.price(r)
		if err := s.heed(r); err != nil {
			b.Fatal(err)
		}
		if m := s.respond(); len(m.GetRemovedResources()) != maxNames-1 {
			b.Fatalf("%d names are answered", len(m.GetRemovedResources()))
		}
		s.tell()
	}
}
