//go:build components

package components_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// opa is Open Policy Agent with its Envoy plugin, at an address.
type opa struct {
	*zttest.Process
	t *testing.T
}

// newOPA runs OPA over files of policy and data.
func newOPA(t *testing.T, address string, files ...string) *opa {
	t.Helper()
	p := start(t, "opa-envoy-plugin", append([]string{
		"run", "--server", "--skip-version-check", "--addr", "unix://" + filepath.Join(mesh.ShortDir(t), "api"),
		"--set", "plugins.envoy_ext_authz_grpc.addr=" + address,
		"--set", "plugins.envoy_ext_authz_grpc.path=ztmesh/authz/decision",
		"--set", "decision_logs.console=true",
	}, files...)...)
	listens(t, address)
	return &opa{p, t}
}

// question is what OPA was asked, as its policy sees it.
type question struct {
	Attributes struct {
		Source, Destination struct{ Principal string }
		Request             struct {
			HTTP struct {
				Method, Path, Host string
				Headers            map[string]string
			}
		}
		MetadataContext struct {
			FilterMetadata map[string]map[string]map[string]any
		}
	}
	Body map[string]any `json:"parsed_body"`
}

// asked is what the decision log holds; OPA writes it before it answers.
func (o *opa) asked() []question {
	o.t.Helper()
	log, err := os.ReadFile(o.Log())
	check(o.t, err)
	var out []question
	for line := range strings.Lines(string(log)) {
		var entry struct {
			DecisionID string    `json:"decision_id"`
			Input      *question // nil: the plugin could not read it, and said no by itself
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.DecisionID != "" && entry.Input != nil {
			out = append(out, *entry.Input)
		}
	}
	return out
}

// page is the documentation's example: its blocks by language.
func page(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "spec", "external-authorizer.md"))
	check(t, err)
	out := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllSubmatch(text, -1) {
		out[string(m[1])] = string(m[2])
	}
	return out
}

// file writes one and returns its path.
func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// authorized is the documentation's example as it runs.
type authorized struct {
	m         *mesh.Mesh
	op        *provider
	authority string // where OPA is to listen
	policy    string // file
	web       *caller
}

func newAuthorized(t *testing.T) *authorized {
	t.Helper()
	m, docs := mesh.New(t, mesh.Config{}), page(t)
	a := &authorized{m: m, authority: m.Loopback() + ":9191", policy: file(t, "policy.rego", docs["rego"])}
	a.op = newProvider(t, m.Loopback()+":9998")
	m.Apply(strings.NewReplacer(
		"127.0.0.1:9080", newApp(t, m), "127.0.0.1:9191", a.authority, "timeout: 1s", "timeout: 3s",
		"https://login.example/keys", a.op.JWKSURI, "https://login.example/", a.op.Issuer,
	).Replace(docs["yaml"]) + exception("plaintext-jwks", "") + exception("reserved-address", ", peers: [127.0.0.0/8]"))
	m.Run("shop/orders").Acked()
	a.web = newCaller(t, m, "shop/web")
	return a
}

const (
	deniedByOPA = "ext_authz_denied"
	noAnswer    = "ext_authz_error"
)

// order is a request for an order of an amount.
func (a *authorized) order(amount any, headers ...string) answer {
	return a.web.call("POST", "/orders", fmt.Sprintf(`{"amount":%v}`, amount), append(headers, "Content-Type", "application/json")...)
}

// TestOPA: the documentation's example says what it says it does. A grant comes
// first, OPA can only narrow, and is told who calls by proof; without it nothing
// passes, and with it again all does.
func TestOPA(t *testing.T) {
	a := newAuthorized(t)
	if got := a.web.call("GET", "/orders/7", ""); got.status != 403 || got.reason != noAnswer || got.got != nil {
		t.Errorf("before it runs: %+v", got)
	}
	o := newOPA(t, a.authority, a.policy)
	a.m.Until("OPA is asked", func() bool { return a.web.call("GET", "/orders/7", "").status == 200 })
	user := bearer(a.op.login("id1", "web").ID)
	a.m.Until("the keys are there", func() bool { return a.order(1, user...).status == 200 })
	body := func(n int) string { return strings.Repeat("x", n) }

	for _, c := range []struct {
		what   string
		got    answer
		status int
		reason string
		limit  []string // what the application is told
	}{
		{"a small order", a.order(100), 200, "", []string{"100"}},
		{"a large one", a.order(101), 403, deniedByOPA, nil},
		{"a large one of a user", a.order(101, user...), 200, "", []string{"1000"}},
		{"too large a one of a user", a.order(1001, user...), 403, deniedByOPA, nil},
		{"one that is none", a.order("null"), 403, deniedByOPA, nil},
		{"a forged limit", a.order(100, "X-Order-Limit", "9"), 200, "", []string{"100"}},
		{"a body that is no JSON", a.web.call("POST", "/orders", "{", "Content-Type", "application/json"), 400, "", nil}, // the plugin's own no
		{"the longest body", a.web.call("GET", "/orders/7", body(1024)), 200, "", nil},
		{"a longer one", a.web.call("GET", "/orders/longer", body(1025)), 413, "", nil},
		{"no grant: another method", a.web.call("DELETE", "/orders/ungranted", ""), 403, "rbac_access_denied_matched_policy[default-deny]", nil},
		{"no grant: another path", a.web.call("GET", "/ungranted", ""), 403, "rbac_access_denied_matched_policy[default-deny]", nil},
		{"no grant: not a user", a.web.call("POST", "/orders/ungranted/refund", ""), 403, "rbac_access_denied_matched_policy[default-deny]", nil},
		{"a token that does not verify", a.web.call("GET", "/orders/ungranted", "", bearer("x.y.z")...), 401, "", nil},
	} {
		if c.got.status != c.status || c.got.reason != c.reason || (c.got.got != nil) != (c.status == 200) {
			t.Errorf("%s: %+v, want %d %s", c.what, c.got, c.status, c.reason)
			continue
		}
		if c.got.got != nil && !slices.Equal(c.got.got.Header["X-Order-Limit"], c.limit) {
			t.Errorf("%s: the application got %v", c.what, c.got.got.Header)
		}
	}
	a.told(o)

	o.Kill()
	if got := a.order(1); got.status != 403 || got.reason != noAnswer || got.got != nil {
		t.Errorf("killed: %+v", got)
	}
	newOPA(t, a.authority, a.policy)
	a.m.Until("OPA is asked again", func() bool { return a.order(1).status == 200 })
}

// told: what OPA was asked about, and with what.
func (a *authorized) told(o *opa) {
	t := o.t
	t.Helper()
	users, bodies := 0, 0
	for _, q := range o.asked() {
		if http := q.Attributes.Request.HTTP; strings.Contains(http.Path, "ungranted") || strings.Contains(http.Path, "longer") {
			t.Errorf("OPA was asked about %s %s", http.Method, http.Path)
		}
		if by := q.Attributes; by.Source.Principal != "spiffe://shop.example/ns/shop/sa/web" ||
			by.Destination.Principal != "spiffe://shop.example/ns/shop/sa/orders" {
			t.Errorf("OPA was told that %q calls %q", by.Source.Principal, by.Destination.Principal)
		}
		if q.Attributes.MetadataContext.FilterMetadata["envoy.filters.http.jwt_authn"]["p_corp"]["sub"] == "id1" {
			users++
		}
		if q.Body["amount"] != nil {
			bodies++
		}
	}
	if users < 3 || bodies < 5 {
		t.Errorf("OPA was told of %d users and %d bodies", users, bodies)
	}
}

// TestOPAMisbehaves: an answer that is late, or would change what a grant has
// allowed, is a no.
func TestOPAMisbehaves(t *testing.T) {
	a := newAuthorized(t)
	silent, err := net.Listen("tcp", a.m.Loopback()+":0") // takes connections and never answers
	check(t, err)
	defer silent.Close()
	newOPA(t, a.authority, filepath.Join("testdata", "misbehaves.rego"),
		file(t, "data.json", fmt.Sprintf(`{"silent": "http://%s/"}`, silent.Addr())))
	a.m.Until("OPA is asked", func() bool { return a.web.call("GET", "/orders/yes", "").status == 200 })
	for name, want := range map[string]struct {
		status int
		reason string
	}{
		"path":              {500, ""},
		"method":            {500, ""},
		"authority":         {500, ""},
		"host":              {500, ""},
		"undeclared":        {500, ""},
		"undeclared-beside": {500, ""},
		"original":          {500, ""},
		"identity":          {500, ""},
		"removal":           {500, ""},
		"query":             {403, "rbac_access_denied_matched_policy[external]"},
		"query-removal":     {403, "rbac_access_denied_matched_policy[external]"},
		"slow":              {403, noAnswer},
		"nonsense":          {403, noAnswer},
		"nothing":           {403, noAnswer},
		"no-such-answer":    {403, noAnswer},
		"no-saying-200":     {200, ""}, // its own answer: the application is not asked
	} {
		got := a.web.call("GET", "/orders/"+name+"?a=b", "")
		if got.status != want.status || got.reason != want.reason || got.got != nil {
			t.Errorf("%s: %+v, want %d %s", name, got, want.status, want.reason)
		}
	}
	if got := a.web.call("GET", "/orders/yes?a=%41&b", ""); got.got == nil || got.got.URI != "/orders/yes?a=%41&b" {
		t.Errorf("a yes among them: %+v", got)
	}
}
