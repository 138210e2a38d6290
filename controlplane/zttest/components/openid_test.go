//go:build components

package components_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// provider is the OpenID provider of tools/oidc. Its users are id1 and id2, its
// clients, which are the audiences of tokens, web and api.
type provider struct {
	t       *testing.T
	address string
	*zttest.Process

	Issuer                string `json:"issuer"`
	AuthorizationEndpoint string `json:"authorization_endpoint"`
	TokenEndpoint         string `json:"token_endpoint"`
	JWKSURI               string `json:"jwks_uri"`
}

// newProvider runs a provider and reads its metadata (OpenID Connect Discovery).
func newProvider(t *testing.T, address string) *provider {
	t.Helper()
	p := &provider{t: t, address: address, Process: start(t, "oidc", address)}
	listens(t, address)
	resp, err := http.Get("http://" + address + "/.well-known/openid-configuration")
	check(t, err)
	defer resp.Body.Close()
	check(t, json.NewDecoder(resp.Body).Decode(p))
	return p
}

// resolver leads every name to one address.
type resolver struct{ address atomic.Value }

func (r *resolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{r.address.Load().(netip.Addr)}, nil
}

// tokens are what a client gets for a login.
type tokens struct {
	ID     string `json:"id_token"`
	Access string `json:"access_token"` // opaque
}

// redirect is where the provider sends its users back to; nothing is there.
const redirect = "http://localhost:9999/auth/callback"

// login is what a person's browser and a client do: the authorization code flow
// (OpenID Connect Core, section 3.1) with the provider's own form.
func (p *provider) login(user, client string) tokens {
	t := p.t
	t.Helper()
	jar, err := cookiejar.New(nil)
	check(t, err)
	browser := &http.Client{Jar: jar, Timeout: mesh.Patience, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), redirect) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(p.AuthorizationEndpoint + "?" + url.Values{
		"client_id": {client}, "redirect_uri": {redirect}, "response_type": {"code"}, "scope": {"openid"}, "state": {"x"},
	}.Encode())
	check(t, err)
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	check(t, err)
	form := regexp.MustCompile(`(?s)<form method="POST" action="([^"]+)".*name="id" value="([^"]+)"`).FindSubmatch(page)
	if form == nil {
		t.Fatalf("no form to log in with: %s\n%s", resp.Status, page)
	}
	host, _, _ := strings.Cut(p.address, ":")
	resp, err = browser.PostForm(strings.TrimSuffix(p.Issuer, "/")+html.UnescapeString(string(form[1])), url.Values{
		"id":       {html.UnescapeString(string(form[2]))},
		"username": {map[string]string{"id1": "test-user@" + host, "id2": "test-user2"}[user]},
		"password": {"verysecure"},
	})
	check(t, err)
	resp.Body.Close()
	back, err := resp.Location()
	check(t, err)
	code := back.Query().Get("code")
	if code == "" || back.Query().Get("state") != "x" {
		t.Fatalf("sent back to %s", back)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.TokenEndpoint, strings.NewReader(url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect},
	}.Encode()))
	check(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(client, "secret")
	resp, err = http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	var out tokens
	check(t, json.NewDecoder(resp.Body).Decode(&out))
	if resp.StatusCode != http.StatusOK || strings.Count(out.ID, ".") != 2 || out.Access == "" {
		t.Fatalf("tokens: %s, %+v", resp.Status, out)
	}
	return out
}

// spec is orders, which web may call as users of the provider; orders is told of
// them.
func (p *provider) spec(app string) string {
	return fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, target: %q, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: id1-reads}
spec: {from: {workloads: [web], users: {provider: corp, subjects: [id1]}}, to: {services: [orders], paths: [/orders/*]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: everybody-has-a-page}
spec:
  from: {workloads: [web], users: {provider: corp, claims: {client: [web]}, amr: [pwd], maxAge: 1h}}
  to: {services: [orders], paths: [/me]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: by-key-card}
spec: {from: {workloads: [web], users: {provider: corp, amr: [hwk]}}, to: {services: [orders], paths: [/vault]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: IdentityProvider
metadata: {namespace: mesh, name: corp}
spec:
  issuer: %q
  audiences: [web]
  jwks: {uri: %q}
  claims: [{name: client, path: [azp]}]
  forward: {headers: {x-user: sub, x-client: client}}
`, app, p.Issuer, p.JWKSURI) + openGrant
}

const openGrant = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: open}
spec: {from: {workloads: [web]}, to: {services: [orders], paths: [/open]}}
`

// exception accepts, for an hour, that the provider is on this machine or has no
// TLS.
func exception(finding, peers string) string {
	return fmt.Sprintf(`---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: mesh, name: %s}
spec: {finding: %[1]s, subject: corp%s, owner: test, reason: the provider is on this machine, until: %q}
`, finding, peers, soon())
}

// bearer are the headers of a request with a token.
func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// TestOpenIDProvider: who has logged in at a real provider may what is granted to
// that user; nobody else may, and no token that is not for this mesh is believed.
// The keys come by the spec's URI alone, and outlive their provider.
func TestOpenIDProvider(t *testing.T) {
	names := &resolver{}
	m := mesh.New(t, mesh.Config{Tune: func(c *controlplane.Config) {
		c.Resolution = controlplane.Resolution{Resolver: names, Interval: 100 * time.Millisecond}
	}})
	here := m.Loopback()
	names.address.Store(netip.MustParseAddr(here))
	op := newProvider(t, here+":9998")
	base := op.spec(newApp(t, m))

	// Keys without TLS and reserved addresses are refused at apply, and a name that
	// leads to such an address at each resolution.
	_, err := m.Admin().Apply(t.Context(), &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(base)}}})
	for _, finding := range []string{"plaintext-jwks", "reserved-address"} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(status.Convert(err).Details()), finding) {
			t.Errorf("without an Exception %s: %v\n%v", finding, err, status.Convert(err).Details())
		}
	}
	base = strings.Replace(base, op.JWKSURI, "http://login.example:9998"+strings.TrimPrefix(op.JWKSURI, "http://"+op.address), 1)
	base += exception("plaintext-jwks", "")
	m.Apply(base)
	orders, web := m.Run("shop/orders").Acked(), newCaller(t, m, "shop/web")
	one, two := op.login("id1", "web"), op.login("id2", "web")
	m.Until("the address of the keys is refused", func() bool {
		return m.Servers[0].Metric("zt_controlplane_refused_addresses_total") > 0
	})
	if a := web.call("GET", "/orders/7", "", bearer(one.ID)...); a.status != 401 {
		t.Errorf("without its keys: %+v", a)
	}
	base += exception("reserved-address", ", peers: [127.0.0.0/8]")
	m.Apply(base)
	m.Until("the keys are there", func() bool { return web.call("GET", "/orders/7", "", bearer(one.ID)...).status == 200 })
	if n := stat(t, orders, "cluster.jwks/corp.upstream_rq_200"); n == 0 {
		t.Error("the keys did not come by their cluster")
	}

	op.verdicts(web, one, two)
	op.forwards(web, orders, m.Certificate("spiffe://shop.example/ns/shop/sa/web"), one, two)

	base = strings.Replace(base, "x-client: client}", "x-client: client}, token: true", 1)
	m.Apply(base)
	m.Until("the keys are there again", func() bool { return web.call("GET", "/orders/7", "", bearer(one.ID)...).status == 200 })
	if a := web.call("GET", "/orders/7", "", bearer(one.ID)...); a.got == nil || a.got.Header.Get("Authorization") != "Bearer "+one.ID {
		t.Errorf("the token is not forwarded: %+v", a)
	}
	op.outage(m, orders, base, one)
}

// verdicts: what each token is good for.
func (p *provider) verdicts(web *caller, one, two tokens) {
	p.t.Helper()
	elsewhere := p.login("id1", "api")
	head, signature := one.ID[:strings.LastIndex(one.ID, ".")], one.ID[strings.LastIndex(one.ID, "."):]
	_, ofTwo, _ := strings.Cut(two.ID, ".")
	swapped := head[:strings.Index(head, ".")+1] + ofTwo[:strings.LastIndex(ofTwo, ".")] + signature
	const denied = "rbac_access_denied_matched_policy[default-deny]"
	for _, c := range []struct {
		who, path string
		headers   []string
		status    int
		reason    string // what it begins with; a 401 has none
	}{
		{"who is granted it", "/orders/7", bearer(one.ID), 200, ""},
		{"who is granted it, another path", "/orders/7/items", bearer(one.ID), 403, denied},
		{"another user", "/orders/7", bearer(two.ID), 403, denied},
		{"nobody", "/orders/7", nil, 403, denied},
		{"a user of another client", "/orders/7", bearer(elsewhere.ID), 403, "jwt_authn_access_denied"},
		{"an access token", "/orders/7", bearer(one.Access), 401, ""},
		{"claims of another token", "/orders/7", bearer(swapped), 401, ""},
		{"no signature", "/orders/7", bearer(head + "."), 401, ""},
		{"a token in the query", "/orders/7?access_token=" + one.ID, nil, 403, denied},
		{"two tokens", "/orders/7", append(bearer(one.ID), bearer(two.ID)...), 401, ""},
		{"a claim, the login and its time", "/me", bearer(one.ID), 200, ""},
		{"the same of another user", "/me", bearer(two.ID), 200, ""},
		{"nobody", "/me", nil, 403, denied},
		{"a login of another kind", "/vault", bearer(one.ID), 403, denied},
		{"nobody", "/open", nil, 200, ""},
		{"a user", "/open", bearer(two.ID), 200, ""},
		{"a user of another client", "/open", bearer(elsewhere.ID), 403, "jwt_authn_access_denied"},
		{"an access token", "/open", bearer(one.Access), 401, ""},
	} {
		a := web.call("GET", c.path, "", c.headers...)
		if a.status != c.status || !strings.HasPrefix(a.reason, c.reason) || (a.got != nil) != (c.status == 200) {
			p.t.Errorf("%s at %s: %+v, want %d %s", c.who, c.path, a, c.status, c.reason)
		}
	}
}

// forwards: the application is told of the user by the proxy, and by nobody else;
// whoever calls, with a proxy or without one, it is not told what they made up.
func (p *provider) forwards(web *caller, orders *mesh.Instance, svid *tls.Certificate, one, two tokens) {
	p.t.Helper()
	forged := []string{"X-User", "root", "x-client", "root"}
	ways := map[string]func(path string, headers ...string) answer{
		"by its proxy":    func(path string, headers ...string) answer { return web.call("GET", path, "", headers...) },
		"without a proxy": func(path string, headers ...string) answer { return direct(orders, svid, path, headers...) },
	}
	for way, call := range ways {
		for _, c := range []struct {
			path         string
			headers      []string
			user, client []string
		}{
			{"/orders/7", bearer(one.ID), []string{"id1"}, []string{"web"}},
			{"/orders/7", append(bearer(one.ID), forged...), []string{"id1"}, []string{"web"}},
			{"/me", append(bearer(two.ID), forged...), []string{"id2"}, []string{"web"}},
			{"/open", nil, nil, nil},
			{"/open", forged, nil, nil},
			{"/open", append(forged, "Authorization", "Basic cm9vdDo="), nil, nil},
		} {
			a := call(c.path, c.headers...)
			if a.got == nil {
				p.t.Errorf("%s %s: %+v", way, c.path, a)
				continue
			}
			h := a.got.Header
			if !slices.Equal(h["X-User"], c.user) || !slices.Equal(h["X-Client"], c.client) {
				p.t.Errorf("%s %s with %v: the application got %v", way, c.path, c.headers, h)
			}
			if token := h.Get("Authorization"); strings.HasPrefix(token, "Bearer") {
				p.t.Errorf("%s %s: the application got the token", way, c.path)
			}
		}
	}
}

// outage: a proxy that has the keys goes on without their provider, one that has
// not believes no token and delays nothing else; it has the keys of the provider
// that comes back, and only these.
func (p *provider) outage(m *mesh.Mesh, orders *mesh.Instance, base string, one tokens) {
	p.t.Helper()
	svid := m.Certificate("spiffe://shop.example/ns/shop/sa/web")
	ask := func(in *mesh.Instance, path string, headers ...string) int {
		return direct(in, svid, path, headers...).status
	}
	p.Kill()
	if n := ask(orders, "/orders/7", bearer(one.ID)...); n != 200 {
		p.t.Errorf("by keys that are known: %d", n)
	}
	m.Apply(base + strings.NewReplacer("name: open", "name: more", "/open", "/more").Replace(openGrant))
	if n := ask(orders, "/more"); n != 200 {
		p.t.Errorf("by a grant that is new: %d", n)
	}
	if n := ask(orders, "/orders/7", bearer(one.ID)...); n != 200 {
		p.t.Errorf("by keys that are known, after an edit of a grant: %d", n)
	}
	fresh := m.Run("shop/orders").Acked()
	if n := ask(fresh, "/orders/7", bearer(one.ID)...); n != 401 {
		p.t.Errorf("by keys that nobody has: %d", n)
	}
	if n := ask(fresh, "/open"); n != 200 {
		p.t.Errorf("without a token: %d", n)
	}
	m.Until("a proxy has asked in vain for the keys", func() bool {
		return stat(p.t, fresh, "cluster.jwks/corp.upstream_cx_connect_fail") > 0
	})
	back := newProvider(p.t, p.address)
	again := back.login("id1", "web")
	m.Until("a proxy has the new keys", func() bool { return ask(fresh, "/orders/7", bearer(again.ID)...) == 200 })
	if n := ask(fresh, "/orders/7", bearer(one.ID)...); n != 401 {
		p.t.Errorf("by a key that is no more: %d", n)
	}
}

// direct asks orders as who has a certificate and no proxy.
func direct(orders *mesh.Instance, svid *tls.Certificate, path string, headers ...string) answer {
	lines := make([]string, 0, len(headers)/2)
	for i := 0; i < len(headers); i += 2 {
		lines = append(lines, headers[i]+": "+headers[i+1])
	}
	a := orders.Raw(8080, svid, mesh.Request("GET", ordersHost, path, lines...))
	return read(a.Status, a.Reason, []byte(a.Body), nil)
}

// stat is a counter of an Envoy.
func stat(t *testing.T, in *mesh.Instance, name string) int {
	t.Helper()
	body, err := in.Get(t.Context(), "/stats?filter=^"+regexp.QuoteMeta(name)+"$")
	check(t, err)
	_, value, _ := strings.Cut(strings.TrimSpace(body), ": ")
	n, err := strconv.Atoi(value)
	if err != nil {
		t.Fatalf("statistic %s: %q", name, body)
	}
	return n
}
