package xds_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/xds"
)

// TestAnyConfig: whatever is valid builds, refers to nothing that is missing,
// and has the same bytes in any order.
func TestAnyConfig(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := anyConfig(t)
		if err := c.Validate(); err != nil {
			t.Fatalf("%v\n%s", err, c)
		}
		r, err := xds.Build(c, instance)
		if err != nil {
			t.Fatalf("%v\n%s", err, c)
		}
		if err := xds.Consistent(r); err != nil {
			t.Fatalf("%v\n%s", err, c)
		}
		shuffleConfig(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)), c) //nolint:gosec // repeatable
		again, err := xds.Build(c, instance)
		if err != nil {
			t.Fatal(err)
		}
		if diff := same(r, again); diff != "" {
			t.Fatalf("%s\n%s", diff, c)
		}
	})
}

var (
	anyName     = rapid.SampledFrom([]string{"a", "b", "c", "web", "x-1"})
	anyProtocol = rapid.SampledFrom([]xds.Protocol{xds.HTTP, xds.HTTP2, xds.GRPC, xds.TCP})
	anyMethods  = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GET", "POST", "PUT"}), 1, 3, rapid.ID)
	anyPath     = rapid.SampledFrom([]xds.Path{
		{Value: "/", Kind: xds.Exact},
		{Value: "/", Kind: xds.Rest},
		{Value: "/a", Kind: xds.Exact},
		{Value: "/a", Kind: xds.Rest},
		{Value: "/a/b", Kind: xds.Rest},
		{Value: "/a/b", Kind: xds.Exact},
		{Value: "/a/", Kind: xds.OneSegment},
		{Value: "/a/", Kind: xds.Exact},
	})
)

func anyConfig(t *rapid.T) *xds.Config {
	c := &xds.Config{TrustDomain: td, Workload: "shop/orders", ID: id("shop/orders"), MaxConnectionAge: time.Minute}
	for i, name := range rapid.SliceOfNDistinct(anyName, 0, 3, rapid.ID).Draw(t, "ports") {
		in := xds.Inbound{
			Name: name, Port: uint32(8000 + i), Target: "127.0.0.1:9000", //nolint:gosec // small
			Protocol: anyProtocol.Draw(t, "protocol"),
		}
		for j, who := range rapid.SliceOfNDistinct(anyName, 0, 4, rapid.ID).Draw(t, "gate") {
			in.Gate = append(in.Gate, xds.GateEntry{ID: id("shop/" + who), Key: fmt.Sprintf("zt.%d", j)})
		}
		if in.Protocol != xds.TCP {
			in.Hosts = []string{"orders.shop.mesh", name + ".orders.shop.mesh"}
			for j := range rapid.IntRange(0, 5).Draw(t, "rules") {
				in.Rules = append(in.Rules, anyRule(t, fmt.Sprintf("shop/g%d", j)))
			}
		}
		c.Inbound = append(c.Inbound, in)
	}
	for i, name := range rapid.SliceOfNDistinct(anyName, 0, 3, rapid.ID).Draw(t, "destinations") {
		c.Destinations = append(c.Destinations, xds.Destination{
			Service: "shop/" + name, Port: "p", ID: id("shop/" + name), Protocol: anyProtocol.Draw(t, "speaks"),
			Host: name + ".shop.mesh", Number: 80,
		})
		if c.Destinations[i].Protocol == xds.TCP {
			c.TCPCalls = append(c.TCPCalls, xds.TCPCall{LocalPort: uint32(5000 + i), Service: "shop/" + name, Port: "p"}) //nolint:gosec // small
		}
	}
	return c
}

func anyRule(t *rapid.T, grant string) xds.Rule {
	r := xds.Rule{Grant: grant}
	switch rapid.IntRange(0, 2).Draw(t, "callers") {
	case 0:
		for _, who := range rapid.SliceOfN(anyName, 1, 3).Draw(t, "ids") {
			r.Callers.IDs = append(r.Callers.IDs, id("shop/"+who))
		}
	case 1:
		r.Callers.Prefixes = []string{sas("shop"), sas(anyName.Draw(t, "namespace"))}
	default:
		r.Callers.Any = true
	}
	if rapid.Bool().Draw(t, "by method") {
		r.Methods = anyMethods.Draw(t, "methods")
	}
	if rapid.Bool().Draw(t, "by path") {
		r.Paths = rapid.SliceOfN(anyPath, 1, 3).Draw(t, "paths")
	}
	return r
}
