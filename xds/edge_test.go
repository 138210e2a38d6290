package xds_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// TestValidateEdge: what concerns tokens, authorizers, egress and Exceptions and
// could not be lowered faithfully.
func TestValidateEdge(t *testing.T) {
	whole := func() *xds.Config {
		c := tokenConfig("127.0.0.1:9000", provider("one", `{"keys":[]}`), provider("two", `{"keys":[]}`))
		c.Authorizer = &xds.Authorizer{Target: "127.0.0.1:1", Timeout: time.Second, Headers: []string{"x-a"}}
		self := xds.Callers{IDs: []string{c.ID}}
		c.Egress = []xds.Egress{
			{Service: "shop/stripe", Hosts: []string{"api.stripe.example"}, Port: 443, Protocol: xds.HTTP, Rules: []xds.Rule{{Grant: "shop/pay", Callers: self}}},
			{Service: "shop/ledger", Hosts: []string{"ledger.example"}, Port: 5432, Protocol: xds.TCP},
		}
		c.Inbound[0].Plaintext = []xds.Plaintext{{Exception: "shop/old", CIDRs: []string{"10.0.0.0/8"}, Until: time.Unix(1, 0)}}
		return c
	}
	check(t, whole().Validate())
	for name, tt := range map[string]struct {
		edit func(*xds.Config)
		want string
	}{
		"a provider twice":       {func(c *xds.Config) { c.Providers[1].Name = "one" }, `"one" appears twice`},
		"an issuer twice":        {func(c *xds.Config) { c.Providers[1].Issuer = c.Providers[0].Issuer }, "appears twice"},
		"no issuer":              {func(c *xds.Config) { c.Providers[0].Issuer = "" }, "no issuer"},
		"no audience":            {func(c *xds.Config) { c.Providers[0].Audiences = nil }, "no audience"},
		"no keys":                {func(c *xds.Config) { c.Providers[0].Inline = "" }, "keys are neither"},
		"two sources of keys":    {func(c *xds.Config) { c.Providers[0].URI = "https://a.example/k" }, "or both"},
		"keys of a file":         {func(c *xds.Config) { c.Providers[0].Inline, c.Providers[0].URI = "", "file:///etc/k" }, "is not https"},
		"keys with a user":       {func(c *xds.Config) { c.Providers[0].Inline, c.Providers[0].URI = "", "https://u:p@a.example/k" }, "is not https"},
		"no skew":                {func(c *xds.Config) { c.Providers[0].ClockSkew = 0 }, "clock skew"},
		"a claim with a dot":     {func(c *xds.Config) { c.Providers[0].Headers[0].Path = []string{"a.b"} }, "cannot be told from a nested one"},
		"a header in upper case": {func(c *xds.Config) { c.Strip = []string{"X-User"} }, "is not a name in lower case"},
		"an authorizer afar":     {func(c *xds.Config) { c.Authorizer.Target = "10.0.0.1:80" }, "neither a loopback address"},
		"no deadline":            {func(c *xds.Config) { c.Authorizer.Timeout = 0 }, "timeout 0s"},
		"an expression":          {func(c *xds.Config) { c.Authorizer.Headers = []string{"x-.*"} }, "is not a name in lower case"},
		"another method":         {func(c *xds.Config) { c.Authorizer.Headers = []string{"x-http-method-override"} }, "speaks of another request"},
		"a host twice":           {func(c *xds.Config) { c.Egress[1].Protocol = xds.HTTP; c.Egress[1].Hosts = c.Egress[0].Hosts }, "appears twice"},
		"a host of the mesh": {func(c *xds.Config) {
			c.Destinations = webConfig().Destinations
			c.Egress[0].Hosts = []string{ordersHost}
		}, "appears twice"},
		"every host":             {func(c *xds.Config) { c.Egress[0].Hosts = []string{"*.example"} }, "is not a DNS name"},
		"tcp of several hosts":   {func(c *xds.Config) { c.Egress[1].Hosts = []string{"a.example", "b.example"} }, "has several hosts"},
		"another's rule":         {func(c *xds.Config) { c.Egress[0].Rules[0].Callers.IDs = []string{id("shop/web")} }, "is not for shop/orders"},
		"users outside":          {func(c *xds.Config) { c.Egress[0].Rules[0].Users = &xds.Users{Provider: "one"} }, "are not judged here"},
		"no TLS by a CA":         {func(c *xds.Config) { c.Egress[0].Plaintext, c.Egress[0].CA = true, "x" }, "a CA without TLS"},
		"an open range":          {func(c *xds.Config) { c.Inbound[0].Plaintext[0].CIDRs = nil }, "no addresses"},
		"a range with host bits": {func(c *xds.Config) { c.Inbound[0].Plaintext[0].CIDRs = []string{"10.0.0.1/8"} }, "is not a canonical prefix"},
		"for ever":               {func(c *xds.Config) { c.Inbound[0].Plaintext[0].Until = time.Time{} }, "no end"},
		"plaintext, server-first": {func(c *xds.Config) {
			in := greeterConfig("127.0.0.1:1", "shop/web").Inbound[0]
			in.Plaintext = c.Inbound[0].Plaintext
			c.Inbound = append(c.Inbound, in)
		}, "takes no plaintext"},
		"nobody at the other end": {func(c *xds.Config) { c.Destinations = webConfig().Destinations; c.Destinations[0].ID = "" }, "neither one identity nor several"},
	} {
		c := whole()
		tt.edit(c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
	}
}

// TestPeersOfNobody: a list of nobody is not a list that is not there.
func TestPeersOfNobody(t *testing.T) {
	roots := map[string][]byte{td: []byte("roots")}
	nobody := xds.Peers(greeterConfig("127.0.0.1:1"), "tcp", roots)
	if m, err := nobody.Body.UnmarshalNew(); err != nil || !strings.Contains(string(stableJSON(t, m)), "match_typed_subject_alt_names") {
		t.Errorf("without a matcher: %v, %v", m, err)
	}
	other := xds.Peers(greeterConfig("127.0.0.1:1", "shop/web"), "other", roots)
	if nobody.Version == other.Version || nobody.Name == other.Name {
		t.Error("two ports have one secret")
	}
	if a, b := xds.Peers(greeterConfig("127.0.0.1:1", "shop/web", "shop/cart"), "tcp", roots), xds.Peers(greeterConfig("127.0.0.1:1", "shop/cart", "shop/web"), "tcp", roots); a.Version != b.Version {
		t.Error("the order of peers matters")
	}
}
