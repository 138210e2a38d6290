package xds_test

import (
	"fmt"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/ztmesh/ztmesh/xds"
)

// groups renders an assignment: "priority/zone: address=weight …".
func groups(t *testing.T, r *xds.Resource) string {
	t.Helper()
	var cla endpointv3.ClusterLoadAssignment
	if err := r.Body.UnmarshalTo(&cla); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, g := range cla.Endpoints {
		line := fmt.Sprintf("%d/%s:", g.Priority, g.GetLocality().GetZone())
		for _, e := range g.LbEndpoints {
			line += " " + e.GetEndpoint().Address.GetSocketAddress().Address
			if w := e.GetLoadBalancingWeight(); w != nil {
				line += fmt.Sprintf("=%d", w.Value)
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestAssign(t *testing.T) {
	plain := func(a, zone string) xds.Endpoint { return xds.Endpoint{Address: a, Port: 1, Zone: zone} }
	heavy := func(a, zone string, w uint32) xds.Endpoint {
		return xds.Endpoint{Address: a, Port: 1, Zone: zone, Weight: w}
	}
	for name, c := range map[string]struct {
		eps  []xds.Endpoint
		want map[string]string // by the caller's zone
	}{
		"none":    {nil, map[string]string{"": "", "n": ""}},
		"no zone": {[]xds.Endpoint{plain("b", ""), plain("a", "")}, map[string]string{"": "0/: a b", "n": "0/: a b"}},
		"all in one zone": {
			[]xds.Endpoint{plain("b", "n"), plain("a", "n")},
			map[string]string{"": "0/n: a b", "n": "0/n: a b", "s": "0/n: a b"},
		},
		"two zones and none": {
			[]xds.Endpoint{plain("a", "s"), plain("b", "n"), plain("c", "")},
			map[string]string{"": "0/: c; 0/n: b; 0/s: a", "n": "1/: c; 0/n: b; 1/s: a", "s": "1/: c; 1/n: b; 0/s: a", "w": "0/: c; 0/n: b; 0/s: a"},
		},
		"weights": {
			[]xds.Endpoint{heavy("a", "n", 300), plain("b", "n"), heavy("c", "s", 1)},
			map[string]string{"": "0/n: a=300 b=100; 0/s: c=1", "s": "1/n: a=300 b=100; 0/s: c=1"},
		},
		"equal weights are none": {[]xds.Endpoint{heavy("a", "", 7), heavy("b", "", 7)}, map[string]string{"": "0/: a b"}},
		"the default is one":     {[]xds.Endpoint{heavy("a", "", 100), plain("b", "")}, map[string]string{"": "0/: a b"}},
	} {
		a := xds.Assign("svc/shop/orders/http", c.eps)
		for zone, want := range c.want {
			if got := groups(t, a.For(zone)); got != want {
				t.Errorf("%s, in zone %q: %s, want %s", name, zone, got, want)
			}
		}
	}
}

// TestAssignmentsChange: that is what decides whether proxies are told.
func TestAssignmentsChange(t *testing.T) {
	base := []xds.Endpoint{{Address: "a", Port: 1, Zone: "n"}, {Address: "b", Port: 1, Zone: "s"}}
	was := xds.Assign("c", base)
	for name, change := range map[string]func(e *xds.Endpoint){
		"address": func(e *xds.Endpoint) { e.Address = "x" },
		"port":    func(e *xds.Endpoint) { e.Port = 2 },
		"zone":    func(e *xds.Endpoint) { e.Zone = "w" },
		"weight":  func(e *xds.Endpoint) { e.Weight = 2 },
	} {
		eps := []xds.Endpoint{base[0], base[1]}
		change(&eps[0])
		if was.Equal(xds.Assign("c", eps)) {
			t.Errorf("another %s is no change", name)
		}
	}
	if !was.Equal(xds.Assign("c", []xds.Endpoint{base[1], base[0]})) {
		t.Error("another order is a change")
	}
}
