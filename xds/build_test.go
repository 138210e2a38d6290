package xds_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/xds"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden builds every case of testdata: config.yaml and instance.yaml are
// given, every other file is what Build makes of them. A bootstrap's case has
// bootstrap.yaml instead.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	check(t, err)
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			check(t, err)
			got := &txtar.Archive{Comment: ar.Comment}
			for _, f := range ar.Files {
				if strings.HasSuffix(f.Name, ".yaml") {
					got.Files = append(got.Files, f)
				}
			}
			got.Files = append(got.Files, render(t, ar)...)
			if *update {
				check(t, os.WriteFile(file, txtar.Format(got), 0o600))
				return
			}
			if diff := cmp.Diff(string(txtar.Format(ar)), string(txtar.Format(got))); diff != "" {
				t.Errorf("differs (-golden +built); go test ./xds -update rewrites:\n%s", diff)
			}
		})
	}
}

func render(t *testing.T, ar *txtar.Archive) []txtar.File {
	t.Helper()
	if b := input(ar, "bootstrap.yaml"); b != nil {
		var boot xds.BootstrapConfig
		decode(t, b, &boot)
		out, err := xds.Bootstrap(boot)
		check(t, err)
		return []txtar.File{{Name: "bootstrap.json", Data: out}}
	}
	var conf xds.Config
	var in xds.Instance
	decode(t, input(ar, "config.yaml"), &conf)
	decode(t, input(ar, "instance.yaml"), &in)
	r, err := xds.Build(&conf, in)
	check(t, err)
	check(t, xds.Consistent(r))
	var files []txtar.File
	for _, res := range r.All() {
		m, err := res.Body.UnmarshalNew()
		check(t, err)
		kind := res.Type[strings.LastIndexByte(res.Type, '.')+1:]
		files = append(files, txtar.File{Name: kind + " " + res.Name, Data: stableJSON(t, m)})
	}
	return files
}

func input(ar *txtar.Archive, name string) []byte {
	for _, f := range ar.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	check(t, d.Decode(v))
}

func stableJSON(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	check(t, err)
	var out bytes.Buffer
	check(t, json.Indent(&out, b, "", "  "))
	out.WriteByte('\n')
	return out.Bytes()
}

var instance = xds.Instance{ID: "i-1", Address: "127.0.0.21", Egress: "127.0.0.11", Secrets: xds.FromADS}

// both is a workload that serves and calls.
func both() *xds.Config {
	c := ordersConfig("127.0.0.1:9000", "127.0.0.1:9001")
	web := webConfig()
	c.Destinations, c.TCPCalls = web.Destinations, web.TCPCalls
	return c
}

func mustBuild(t testing.TB, c *xds.Config) *xds.Resources {
	t.Helper()
	r, err := xds.Build(c, instance)
	check(t, err)
	check(t, xds.Consistent(r))
	return r
}

// same compares names, versions and bytes.
func same(a, b *xds.Resources) string {
	return cmp.Diff(flatten(a), flatten(b))
}

func flatten(r *xds.Resources) map[string]string {
	out := map[string]string{}
	for _, res := range r.All() {
		out[res.Type+" "+res.Name] = res.Version + " " + hex.EncodeToString(res.Whole().GetValue())
	}
	return out
}

func TestSameBytes(t *testing.T) {
	want := mustBuild(t, both())
	for range 20 {
		if diff := same(want, mustBuild(t, both())); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestOrderCarriesNoMeaning(t *testing.T) {
	want := mustBuild(t, both())
	for seed := range uint64(50) {
		c := both()
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a seed that can be repeated
		shuffleConfig(r, c)
		before := c.YAML()
		if diff := same(want, mustBuild(t, c)); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		if c.YAML() != before {
			t.Fatal("Build changed its input")
		}
	}
}

func shuffleConfig(r *rand.Rand, c *xds.Config) {
	shuffle(r, c.Inbound)
	shuffle(r, c.Destinations)
	shuffle(r, c.TCPCalls)
	for i := range c.Inbound {
		in := &c.Inbound[i]
		in.Gate = slices.Clone(in.Gate)
		shuffle(r, in.Gate)
		shuffle(r, in.Hosts)
		shuffleRules(r, in.Rules)
		if in.Shadow != nil {
			shuffleRules(r, in.Shadow.Rules)
		}
		shuffle(r, in.Blocks)
		for _, b := range in.Blocks {
			if b.Callers != nil {
				shuffle(r, b.Callers.IDs)
				shuffle(r, b.Callers.Prefixes)
				shuffle(r, b.Callers.Domains)
			}
			shuffleUsers(r, b.Users)
		}
	}
}

func shuffleRules(r *rand.Rand, rules []xds.Rule) {
	shuffle(r, rules)
	for i := range rules {
		u := &rules[i]
		shuffle(r, u.Methods)
		shuffle(r, u.Paths)
		shuffle(r, u.Callers.IDs)
		shuffle(r, u.Callers.Prefixes)
		shuffle(r, u.Sources)
		shuffle(r, u.Headers)
		for j := range u.Headers {
			shuffle(r, u.Headers[j].Values)
		}
		shuffle(r, u.Windows)
		for j := range u.Windows {
			shuffle(r, u.Windows[j].Days)
		}
		shuffleUsers(r, u.Users)
	}
}

func shuffleUsers(r *rand.Rand, u *xds.Users) {
	if u == nil {
		return
	}
	shuffle(r, u.Claims)
	for i := range u.Claims {
		shuffle(r, u.Claims[i].Values)
	}
}

func shuffle[T any](r *rand.Rand, s []T) {
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

// TestPolicyEditTouchesOnlyPolicy: what a grant says travels by ECDS alone.
func TestPolicyEditTouchesOnlyPolicy(t *testing.T) {
	want, c := flatten(mustBuild(t, both())), both()
	c.Inbound[0].Rules = append(c.Inbound[0].Rules, xds.Rule{Grant: "shop/new", Callers: xds.Callers{Any: true}})
	c.Inbound[0].Gate = append(c.Inbound[0].Gate, xds.GateEntry{ID: id("new/comer"), Key: "zt.new"})
	changed := map[string]bool{}
	for name, b := range flatten(mustBuild(t, c)) {
		if want[name] != b {
			changed[name] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{
		xds.ExtensionType + " policy/shop/orders/http": true,
		xds.ExtensionType + " gate/shop/orders/http":   true,
	}, changed); diff != "" {
		t.Error(diff)
	}
}

// TestOutboundIsShared: callers with one egress address are told the same, save
// the name in the refusal.
func TestOutboundIsShared(t *testing.T) {
	a, c := mustBuild(t, webConfig()), webConfig()
	c.Workload, c.ID, c.MaxConnectionAge = "shop/cart", id("shop/cart"), time.Hour
	b := mustBuild(t, c)
	for _, res := range a.All() {
		if res.Type == xds.RouteType {
			continue
		}
		if o := b.Get(res.Type, res.Name); o == nil || o.Version != res.Version {
			t.Errorf("%s is not shared", res.Name)
		}
	}
}

func TestConsistent(t *testing.T) {
	for name, tt := range map[string]struct {
		typeURL, resource string
		edit              func(proto.Message) // nil: the resource is taken away
		want              string
	}{
		"no routes":           {xds.RouteType, "out/http", nil, "out/http: refers to out/http, which is missing"},
		"no policy":           {xds.ExtensionType, "policy/shop/orders/http", nil, "in/http: refers to policy/shop/orders/http, which is missing"},
		"no gate":             {xds.ExtensionType, "gate/shop/orders/tcp", nil, "in/tcp: refers to gate/shop/orders/tcp, which is missing"},
		"no application":      {xds.ClusterType, "app/http", nil, "in/http: refers to app/http, which is missing"},
		"no tcp application":  {xds.ClusterType, "app/tcp", nil, "in/tcp: refers to app/tcp, which is missing"},
		"no callee":           {xds.ClusterType, "svc/shop/orders/http", nil, "out/http: refers to svc/shop/orders/http, which is missing"},
		"no tcp callee":       {xds.ClusterType, "svc/shop/orders/tcp", nil, "out/tcp/15432: refers to svc/shop/orders/tcp, which is missing"},
		"an orphan":           {xds.ListenerType, "in/tcp", nil, "gate/shop/orders/tcp: no listener refers to it"},
		"another name inside": {xds.RouteType, "out/http", func(m proto.Message) { m.(*routev3.RouteConfiguration).Name = "x" }, "out/http: its body has another name"},
		"another secret": {xds.ClusterType, "svc/shop/orders/http", func(m proto.Message) {
			editTLS(m.(*clusterv3.Cluster), func(u *tlsv3.UpstreamTlsContext) {
				u.CommonTlsContext.TlsCertificateSdsSecretConfigs[0].Name = "zt/other"
			})
		}, "svc/shop/orders/http: refers to secret zt/other, which nobody serves"},
		"an impatient secret": {xds.ClusterType, "svc/shop/orders/http", func(m proto.Message) {
			editTLS(m.(*clusterv3.Cluster), func(u *tlsv3.UpstreamTlsContext) {
				u.CommonTlsContext.TlsCertificateSdsSecretConfigs[0].SdsConfig.InitialFetchTimeout = nil
			})
		}, "svc/shop/orders/http: takes configuration from elsewhere than ADS"},
		"endpoints of another": {xds.ClusterType, "svc/shop/orders/http", func(m proto.Message) {
			m.(*clusterv3.Cluster).EdsClusterConfig.ServiceName = "svc/shop/payments/http"
		}, "svc/shop/orders/http: endpoints are not those of its own name"},
		"an open gate": {xds.ListenerType, "in/tcp", func(m proto.Message) {
			m.(*listenerv3.Listener).FilterChains[0].Filters[0].GetConfigDiscovery().DefaultConfig = nil
		}, "in/tcp: gate/shop/orders/tcp is not closed while its resource is missing"},
		"routes from elsewhere": {xds.ListenerType, "out/http", func(m proto.Message) {
			cfg := m.(*listenerv3.Listener).FilterChains[0].Filters[0].GetTypedConfig()
			hcm := &hcmv3.HttpConnectionManager{}
			if err := cfg.UnmarshalTo(hcm); err != nil {
				panic(err)
			}
			hcm.GetRds().ConfigSource.ConfigSourceSpecifier = nil
			if err := cfg.MarshalFrom(hcm); err != nil {
				panic(err)
			}
		}, "out/http: takes configuration from elsewhere than ADS"},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustBuild(t, both())
			res := r.Get(tt.typeURL, tt.resource)
			if res == nil {
				t.Fatalf("no %s", tt.resource)
			}
			delete((*r)[tt.typeURL], tt.resource)
			if tt.edit != nil {
				m, err := res.Body.UnmarshalNew()
				check(t, err)
				tt.edit(m)
				(*r)[tt.typeURL][tt.resource] = seal(t, tt.resource, m)
			}
			err := xds.Consistent(r)
			if err == nil || !slices.Contains(strings.Split(err.Error(), "\n"), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("filed wrongly", func(t *testing.T) {
		r := mustBuild(t, both())
		res := *r.Get(xds.ClusterType, "app/http")
		res.Version = "x"
		(*r)[xds.ClusterType]["app/http"] = &res
		(*r)[xds.RouteType]["app/grpc"] = r.Get(xds.ClusterType, "app/grpc")
		(*r)[xds.SecretType] = map[string]*xds.Resource{"zt/svid": xds.SVID(nil, nil)}
		err := xds.Consistent(r)
		for _, want := range []string{"app/http: version is x", "app/grpc: a " + xds.ClusterType + " is filed as " + xds.RouteType, "zt/svid: " + xds.SecretType + " does not belong here"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
		}
	})
}

func editTLS(c *clusterv3.Cluster, edit func(*tlsv3.UpstreamTlsContext)) {
	u := &tlsv3.UpstreamTlsContext{}
	if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(u); err != nil {
		panic(err)
	}
	edit(u)
	if err := c.GetTransportSocket().GetTypedConfig().MarshalFrom(u); err != nil {
		panic(err)
	}
}

// seal is a resource whose hash is right, whatever is in it.
func seal(t *testing.T, name string, m proto.Message) *xds.Resource {
	t.Helper()
	body, err := anypb.New(m)
	check(t, err)
	sum := sha256.Sum256(body.GetValue())
	return &xds.Resource{Type: body.GetTypeUrl(), Name: name, Version: hex.EncodeToString(sum[:16]), Body: body}
}

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*xds.Config)
		want string
	}{
		"empty":                 {func(c *xds.Config) { *c = xds.Config{} }, `trust domain "" is not a DNS name`},
		"foreign id":            {func(c *xds.Config) { c.ID = "spiffe://other/ns/a/sa/b" }, "is not of trust domain"},
		"no age":                {func(c *xds.Config) { c.MaxConnectionAge = 0 }, "max connection age 0s is not positive"},
		"two ports of one name": {func(c *xds.Config) { c.Inbound[1].Name = "http" }, `"http" appears twice`},
		"one port twice":        {func(c *xds.Config) { c.Inbound[1].Port = 8080 }, "port 8080 appears twice"},
		"target elsewhere":      {func(c *xds.Config) { c.Inbound[0].Target = "10.0.0.1:80" }, "neither a loopback address"},
		"no protocol":           {func(c *xds.Config) { c.Inbound[0].Protocol = "udp" }, `protocol "udp" is unknown`},
		"no hosts":              {func(c *xds.Config) { c.Inbound[0].Hosts = nil }, "no hosts"},
		"every host":            {func(c *xds.Config) { c.Inbound[0].Hosts = []string{"*"} }, `host "*" is not a DNS name`},
		"rules of tcp":          {func(c *xds.Config) { c.Inbound[2].Rules = c.Inbound[0].Rules }, "a tcp port has no methods, paths or upgrades"},
		"two ids in one":        {func(c *xds.Config) { c.Inbound[0].Gate[0].ID += "," + id("a/b") }, "is not of a known trust domain"},
		"a foreign key":         {func(c *xds.Config) { c.Inbound[0].Gate[0].Key = "envoy.x" }, "does not begin with zt."},
		"a key twice":           {func(c *xds.Config) { c.Inbound[0].Gate[0].Key = c.Inbound[0].Gate[1].Key }, "appears twice"},
		"no callers":            {func(c *xds.Config) { c.Inbound[0].Rules[0].Callers = xds.Callers{} }, "no callers"},
		"a prefix too short":    {func(c *xds.Config) { c.Inbound[0].Rules[0].Callers.Prefixes = []string{"spiffe://" + td} }, "is not a namespace"},
		"an open prefix":        {func(c *xds.Config) { c.Inbound[0].Rules[0].Callers.Prefixes = []string{sas("shop") + "w"} }, "is not a namespace"},
		"no methods":            {func(c *xds.Config) { c.Inbound[0].Rules[0].Methods = []string{} }, "an empty list of methods"},
		"no paths":              {func(c *xds.Config) { c.Inbound[0].Rules[0].Paths = []xds.Path{} }, "an empty list of paths"},
		"CONNECT":               {func(c *xds.Config) { c.Inbound[0].Rules[0].Methods = []string{"CONNECT"} }, "not a method that can be granted"},
		"an encoded path":       {path("/a%2f", xds.Exact), "is not a canonical path"},
		"dots":                  {path("/a/../b", xds.Exact), "is not a canonical path"},
		"two slashes":           {path("/a//b", xds.Exact), "is not a canonical path"},
		"rest with a slash":     {path("/a/", xds.Rest), "is not a canonical path"},
		"a segment too deep":    {path("/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/", xds.OneSegment), "is not a canonical path"},
		"no kind of path":       {path("/a", ""), "is not a canonical path"},
		"one host twice":        {func(c *xds.Config) { c.Destinations[1].Host = c.Destinations[0].Host }, "appears twice"},
		"the egress port":       {func(c *xds.Config) { c.TCPCalls[0].LocalPort = xds.EgressPort }, "local port is taken"},
		"tcp to http":           {func(c *xds.Config) { c.TCPCalls[0].Port = "http" }, "is not a tcp port"},
	} {
		c := both()
		tt.edit(c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
		if r, berr := xds.Build(c, instance); berr == nil || r != nil {
			t.Errorf("%s: built", name)
		}
	}
	check(t, both().Validate())
	if err := (xds.Instance{}).Validate(); err == nil {
		t.Error("an empty instance is valid")
	}
	if _, err := xds.Bootstrap(xds.BootstrapConfig{}); err == nil {
		t.Error("an empty bootstrap is valid")
	}
}

func path(value string, kind xds.PathKind) func(*xds.Config) {
	return func(c *xds.Config) { c.Inbound[0].Rules[0].Paths = []xds.Path{{Value: value, Kind: kind}} }
}

func TestSmallResources(t *testing.T) {
	a := []xds.Endpoint{{Address: "10.0.0.2", Port: 1}, {Address: "10.0.0.1", Port: 1}, {Address: "10.0.0.2", Port: 1}}
	b := []xds.Endpoint{{Address: "10.0.0.1", Port: 1}, {Address: "10.0.0.2", Port: 1}}
	if xds.Endpoints("svc/a/b/c", a).Version != xds.Endpoints("svc/a/b/c", b).Version {
		t.Error("endpoints depend on order")
	}
	if xds.Endpoints("svc/a/b/c", nil).Version == xds.Endpoints("svc/a/b/d", nil).Version {
		t.Error("two clusters have one version")
	}
	if !xds.Assign("svc/a/b/c", a).Equal(xds.Assign("svc/a/b/c", b)) || xds.Assign("svc/a/b/c", a).Equal(nil) {
		t.Error("assignments are compared wrongly")
	}
	if xds.Gates([]string{"zt.a", "zt.b"}).Version != xds.Gates([]string{"zt.b", "zt.a", "zt.a"}).Version {
		t.Error("gates depend on order")
	}
	for _, r := range []*xds.Resource{xds.SVID([]byte("c"), []byte("k")), xds.Bundle(map[string][]byte{td: []byte("r")}), xds.Node(nil, nil), xds.ControlBundle(td, nil)} {
		if r.Type != xds.SecretType || r.Version == "" || !strings.HasPrefix(r.Name, "zt/") {
			t.Errorf("%+v", r)
		}
	}
	if _, err := xds.File(xds.Gates(nil), xds.SVID(nil, nil)); err == nil {
		t.Error("a file of two types")
	}
}

func BenchmarkBuild(b *testing.B) {
	c := both()
	for b.Loop() {
		if _, err := xds.Build(c, instance); err != nil {
			b.Fatal(err)
		}
	}
}

// TestGateKey pins the keys: servers of two versions must agree on them, and a
// key that changed would open what is closed.
func TestGateKey(t *testing.T) {
	const web = "spiffe://shop.example/ns/shop/sa/web"
	if got := xds.GateKey("shop/orders", "http", web); got != "zt.efad8251ad435fc9ec20bcb305b03ee1" {
		t.Errorf("got %s", got)
	}
	seen := map[string]bool{}
	for _, key := range []string{
		xds.GateKey("shop/orders", "http", web), xds.GateKey("shop/orders", "http2", web), xds.GateKey("shop/orders", "http", web+"2"),
		xds.GateKey("sho/porders", "http", web),
	} {
		if seen[key] || !strings.HasPrefix(key, "zt.") {
			t.Errorf("key %s is not of its own", key)
		}
		seen[key] = true
	}
}
