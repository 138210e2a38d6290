package xds_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
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

// TestAgain: what is prepared after something else is what is prepared from nothing, also
// for the bytes and versions of listeners that are bound to an address at last.
func TestAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was, is := anyConfig(t), anyConfig(t)
		kept := rapid.SampledFrom([]string{"nothing", "what leads outward", "most"}).Draw(t, "kept")
		switch kept {
		case "what leads outward":
			is.Destinations, is.TCPCalls = was.Destinations, was.TCPCalls
		case "most":
			is = anyEdit(t, was)
		}
		p, err := xds.Prepare(was, instance.Secrets)
		if err != nil {
			t.Fatal(err)
		}
		if p, err = p.Again(is); err != nil {
			t.Fatal(err)
		}
		bound, err := p.For(instance)
		if err != nil {
			t.Fatal(err)
		}
		want, err := xds.Build(is, instance)
		if err != nil {
			t.Fatal(err)
		}
		if err := xds.Consistent(bound); err != nil {
			t.Fatal(err)
		}
		if diff := same(want, bound); diff != "" {
			t.Fatalf("kept %s: %s\n%s", kept, diff, is)
		}
		fresh, err := xds.Prepare(is, instance.Secrets)
		if err != nil {
			t.Fatal(err)
		}
		if fresh.Listeners() != p.Listeners() {
			t.Fatal("the listeners count as others")
		}
	})
}

// anyEdit is a configuration with one thing of each port changed, or none.
func anyEdit(t *rapid.T, c *xds.Config) *xds.Config {
	edited := *c
	edited.Inbound = slices.Clone(c.Inbound)
	for i := range edited.Inbound {
		in := &edited.Inbound[i]
		http := in.Protocol != xds.TCP
		switch rapid.IntRange(0, 5).Draw(t, "edit") {
		case 0:
			in.Gate = append(slices.Clone(in.Gate), xds.GateEntry{ID: id("shop/more"), Key: "zt.more"})
		case 1:
			if http {
				in.Rules = anyRules(t)
			}
		case 2:
			in.Blocks = anyBlocks(t, in.Protocol)
		case 3:
			if http {
				in.Shadow = &xds.Shadow{Rules: anyRules(t)}
			}
		case 4:
			in.Target = "127.0.0.1:9001"
		}
	}
	return &edited
}

// TestAgainTakesWhatHasNotChanged: a changed rule makes a policy, and nothing else: the rest
// are the same values, in the same maps where nothing of a type has changed.
func TestAgainTakesWhatHasNotChanged(t *testing.T) {
	c := &xds.Config{
		TrustDomain: td, Workload: "shop/orders", ID: id("shop/orders"), MaxConnectionAge: time.Minute,
		Inbound: []xds.Inbound{{
			Name: "http", Port: 8080, Target: "127.0.0.1:9000", Protocol: xds.HTTP, Hosts: []string{"orders.shop.mesh"},
			Gate:  []xds.GateEntry{{ID: id("shop/web"), Key: "zt.1"}},
			Rules: []xds.Rule{{Grant: "shop/a", Callers: xds.Callers{IDs: []string{id("shop/web")}}, Methods: []string{"GET"}}},
		}},
		Destinations: []xds.Destination{{Service: "shop/db", Port: "http", ID: id("shop/db"), Protocol: xds.HTTP, Host: "db.shop.mesh", Number: 80}},
	}
	p, err := xds.Prepare(c, instance.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	next := *c
	next.Inbound = slices.Clone(c.Inbound)
	next.Inbound[0].Rules = []xds.Rule{{Grant: "shop/a", Callers: xds.Callers{IDs: []string{id("shop/web")}}, Methods: []string{"PUT"}}}
	again, err := p.Again(&next)
	if err != nil {
		t.Fatal(err)
	}
	was, is := *p.With(nil), *again.With(nil)
	for _, typeURL := range []string{xds.ClusterType, xds.RouteType} {
		if reflect.ValueOf(was[typeURL]).Pointer() != reflect.ValueOf(is[typeURL]).Pointer() {
			t.Errorf("the map of %s is another", typeURL)
		}
	}
	policy := xds.PolicyName("shop/orders", "http")
	for name, r := range is[xds.ExtensionType] {
		if same := was[xds.ExtensionType][name] == r; same == (name == policy) {
			t.Errorf("%s: the same value: %t", name, same)
		}
	}
	if again.Listeners() != p.Listeners() {
		t.Error("the listeners count as others")
	}
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
		{Value: "/a/*/c", Kind: xds.Pattern},
		{Value: "/*/b/*/**", Kind: xds.Pattern},
		{Value: "/*/b", Kind: xds.Pattern},
		{Value: "/a/*", Kind: xds.Pattern},
		{Value: "/**", Kind: xds.Pattern},
	})
	anyClaim = rapid.SampledFrom([]xds.Claim{
		{Path: []string{"sub"}, Kind: xds.StringClaim, Values: []string{"alice", "bob"}},
		{Path: []string{"sub"}, Kind: xds.StringClaim, Values: []string{"carol"}},
		{Path: []string{"realm", "role"}, Kind: xds.StringClaim, Values: []string{"x", "y", "z"}},
		{Path: []string{"https://x"}, Kind: xds.StringClaim, Values: []string{"x"}},
		{Path: []string{"groups"}, Kind: xds.ListClaim, Values: []string{"sre", "dba"}},
		{Path: []string{"ok"}, Kind: xds.BooleanClaim, Values: []string{"true"}},
	})
	anyWindow = rapid.SampledFrom([]xds.Window{
		{Zone: "UTC", Start: 0, End: 1440},
		{Zone: "UTC", Days: []time.Weekday{time.Friday, time.Monday}, Start: 1320, End: 360},
		{Zone: "Europe/Berlin", Start: 540, End: 1020},
	})
)

func anyConfig(t *rapid.T) *xds.Config {
	c := &xds.Config{TrustDomain: td, Workload: "shop/orders", ID: id("shop/orders"), MaxConnectionAge: time.Minute}
	c.Aliases = []string{"old.example"}
	c.Providers = []xds.Provider{provider("one", `{"keys":[]}`), provider("two", `{"keys":[]}`)}
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
			in.Rules = anyRules(t)
			if rapid.Bool().Draw(t, "shadow") {
				in.Shadow = &xds.Shadow{Rules: anyRules(t)}
			}
			in.EncodedPaths = rapid.Bool().Draw(t, "encoded")
		}
		in.Blocks = anyBlocks(t, in.Protocol)
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

func anyRules(t *rapid.T) []xds.Rule {
	var rules []xds.Rule
	for range rapid.IntRange(0, 5).Draw(t, "rules") {
		rules = append(rules, anyRule(t, fmt.Sprintf("shop/g%d", rapid.IntRange(0, 3).Draw(t, "grant"))))
	}
	return rules
}

func anyBlocks(t *rapid.T, p xds.Protocol) []xds.Block {
	var blocks []xds.Block
	for j := range rapid.IntRange(0, 3).Draw(t, "blocks") {
		b := xds.Block{Name: fmt.Sprintf("shop/b%d", j)}
		switch kind := rapid.IntRange(0, 3).Draw(t, "blocked"); {
		case kind == 1:
			b.Callers = &xds.Callers{IDs: []string{id("shop/" + anyName.Draw(t, "who"))}, Prefixes: []string{sas("shop")}}
		case kind == 2:
			b.Callers = &xds.Callers{Domains: []string{"old.example", "other.example"}}
		case kind == 3 && p != xds.TCP:
			b.Users = anyUsers(t)
		}
		blocks = append(blocks, b)
	}
	return blocks
}

func anyUsers(t *rapid.T) *xds.Users {
	u := &xds.Users{Provider: rapid.SampledFrom([]string{"one", "two"}).Draw(t, "provider")}
	if n := rapid.IntRange(0, 3).Draw(t, "claims"); n > 0 {
		u.Claims = rapid.SliceOfN(anyClaim, n, n).Draw(t, "claim")
		for i := range u.Claims {
			u.Claims[i].Values = slices.Clone(u.Claims[i].Values)
		}
	}
	u.MaxAge = time.Duration(rapid.IntRange(0, 1).Draw(t, "age")) * time.Minute
	return u
}

func anyConditions(t *rapid.T) xds.Conditions {
	var c xds.Conditions
	if rapid.Bool().Draw(t, "users") {
		c.Users = anyUsers(t)
	}
	if rapid.Bool().Draw(t, "headers") {
		c.Headers = []xds.Header{{Name: "x-b", Values: []string{"1", "2"}}, {Name: "x-a", Values: []string{"3"}}}
	}
	if rapid.Bool().Draw(t, "windows") {
		c.Windows = rapid.SliceOfN(anyWindow, 1, 3).Draw(t, "window")
		for i := range c.Windows {
			c.Windows[i].Days = slices.Clone(c.Windows[i].Days)
		}
	}
	if rapid.Bool().Draw(t, "sources") {
		c.Sources = []string{"10.0.0.0/8", "2001:db8::/32"}
	}
	if rapid.Bool().Draw(t, "until") {
		c.Until = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if rapid.Bool().Draw(t, "cel") {
		c.CEL = `request.method == "GET"`
	}
	return c
}

func anyRule(t *rapid.T, grant string) xds.Rule {
	r := xds.Rule{Grant: grant, Conditions: anyConditions(t)}
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
