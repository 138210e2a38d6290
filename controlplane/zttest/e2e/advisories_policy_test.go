package e2e_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/xds"
)

// bazaar is orders with a port for each way in, and every condition that a request
// can try to get around.
const bazaar = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec:
  serves:
  - {name: http, port: 8080, protocol: http, target: %[1]q}
  - {name: ws, port: 8081, protocol: http, target: %[1]q, upgrades: [websocket]}
  - {name: enc, port: 8082, protocol: http, target: %[1]q, allowEncodedPaths: true}
  - {name: old, port: 8083, protocol: http, target: %[1]q}
  - {name: raw, port: 9000, protocol: tcp, target: %[2]q}
---
apiVersion: ztmesh.dev/v1alpha1
kind: IdentityProvider
metadata: {namespace: mesh, name: corp}
spec: {issuer: "https://corp.example", audiences: [ztmesh], jwks: {inline: %[3]q}, claims: [{name: team}], forward: {headers: {x-user: sub}}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: IdentityProvider
metadata: {namespace: mesh, name: partner}
spec: {issuer: "https://partner.example", audiences: [ztmesh], jwks: {inline: %[4]q}, claims: [{name: team}], forward: {headers: {x-ally: sub}}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: public}
spec: {from: {workloads: [web]}, to: {services: [orders], ports: [http, ws, enc, old], paths: [/public/**]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: tenant}
spec: {from: {workloads: [web]}, to: {services: [orders], ports: [http], paths: [/tenant]}, when: {headers: {x-tenant: [red]}}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: sre}
spec: {from: {workloads: [web], users: {provider: corp, claims: {team: [sre]}}}, to: {services: [orders], ports: [http], paths: [/sre]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: partners}
spec: {from: {workloads: [web], users: {provider: partner, subjects: [ada]}}, to: {services: [orders], ports: [http], paths: [/partners]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: star}
spec: {from: {workloads: [web]}, to: {services: [orders], ports: [http], methods: [GET], paths: [/star/*/read]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: live}
spec: {from: {workloads: [web]}, to: {services: [orders], ports: [ws], paths: [/live], upgrades: [websocket]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: raw}
spec: {from: {workloads: [web]}, to: {services: [orders], ports: [raw]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: shop, name: scraper}
spec: {finding: plaintext, subject: "orders:old", peers: [127.0.0.0/8], owner: shop, reason: test, until: 2099-01-01T00:00:00Z}
`

// The ports of bazaar and the hosts of those that are for HTTP.
const (
	httpPort, wsPort, encPort, oldPort, rawPort = 8080, 8081, 8082, 8083, 9000
	wsOrders, encOrders, oldOrders              = "ws." + orders, "enc." + orders, "old." + orders
)

// TestAdvisoriesOfPolicy tries to get around each condition of the language by how
// a request is spelled, at every kind of listener.
func TestAdvisoriesOfPolicy(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	app := newWitness(t, m)
	text := fmt.Sprintf(bazaar, app.target, m.NewTCPApp(), specgen.JWKS("corp"), specgen.JWKS("partner"))
	m.Apply(text)
	s := stranger{m: m, spec: text, in: m.Run("shop/orders").Acked(), caller: m.Run("shop/web").Acked(), as: m.EnrolAgent("shop/web").SVID, app: app}
	reach := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	m.Until("web reaches orders", func() bool {
		got, err := s.caller.Call(reach, http.MethodGet, orders, "/public/a")
		return err == nil && got.Status == 200
	})
	t.Run("CVE-2024-10005 paths at every listener", s.paths)
	t.Run("CVE-2021-39155 ISTIO-2021-008 hosts", s.hosts)
	t.Run("CVE-2020-25017 CVE-2021-32777 repeated headers", s.repeated)
	t.Run("CVE-2021-32777 ISTIO-2021-001 spellings of Authorization", s.authorization)
	t.Run("CVE-2020-16844 tcp principals", s.principals)
	t.Run("CVE-2025-64763 early data of upgrades", s.earlyData)
	t.Run("CVE-2022-21656 CVE-2022-21657 misused certificates", s.misused)
	t.Run("segments of paths", s.segments)
	t.Run("bytes of plaintext", s.plaintext)
	t.Run("Blocks of who has two names", s.blocked)
}

// stranger is admitted, and hostile.
type stranger struct {
	m          *mesh.Mesh
	spec       string
	in, caller *mesh.Instance // of orders and of web
	as         *tls.Certificate
	app        *witness
}

// plain sends a request without TLS.
func (s *stranger) plain(address, request string) (mesh.Answer, error) {
	c, err := net.DialTimeout("tcp", address, mesh.Patience)
	if err != nil {
		return mesh.Answer{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(mesh.Patience)); err != nil {
		return mesh.Answer{}, err
	}
	got, err := mesh.Exchange(c, request)
	if err != nil {
		got = s.in.Ended(err)
	}
	return got, nil
}

// http2 sends headers, "name: value", of a GET over HTTP/2.
func (s *stranger) http2(port uint32, host, path string, headers ...string) mesh.Answer {
	h, err := s.in.DialHTTP2(port, s.as)
	if err != nil {
		return s.in.Ended(err)
	}
	defer h.Close()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: host}, {Name: ":path", Value: path},
	}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		fields = append(fields, hpack.HeaderField{Name: strings.ToLower(name), Value: value})
	}
	got, err := h.Do(true, fields)
	if err != nil {
		got = s.in.Ended(err)
	}
	return got
}

// paths: the path that is judged is the path that the application gets, at every
// kind of listener; what cannot be made canonical goes nowhere.
func (s *stranger) paths(t *testing.T) {
	long := strings.Repeat("a", 20<<10)
	cases := map[string]string{} // from what is sent to what is judged; "": nothing is
	for _, paths := range map[string]map[string]string{
		"CVE-2021-39156 CVE-2021-32779 fragments": {
			"/public/a#/../../admin": "", "/admin#/public/a": "", "/public/a#": "", "/public/a?x#y": "", "/public/a%23/../admin": "/public/admin", "/public/a%23b": "",
		},
		"CVE-2021-29492 escaped slashes": {
			"/public/..%2fadmin": "", "/public%2F..%2Fadmin": "", "/public/..%5cadmin": "", "/public%5C..%5Cadmin": "", `/public/..\admin`: "/admin", `\public\..\admin`: "",
		},
		"CVE-2019-9900 NUL": {"/public/a\x00": "", "/public/a%00": "", "/public/a\x00/../admin": "", "/public/\x00/../../admin": ""},
		"CVE-2019-9901 dot segments": {
			"/public/../admin": "/admin", "/public/./../admin": "/admin", "/public/%2e%2e/admin": "/admin", "/public/.%2E/admin": "/admin",
			"//public/../admin": "/admin", "/admin/../public/a": "/public/a", "/public/a/..": "/public/", "/public/../../../admin": "/admin",
		},
		"CVE-2020-8595 queries": {"/admin?/public/a": "/admin?/public/a", "/public/a?/../../admin": "/public/a?/../../admin", "/public?x": "/public?x", "/admin?%2e": "/admin?%2e"},
		"CVE-2026-26205 CVE-2023-33189 what was matched": {
			"/public/x/../a": "/public/a", "/public//a": "/public/a", "///public/a": "/public/a", "/public/%61": "/public/a", "/%70ublic/a": "/public/a", "/PUBLIC/a": "/PUBLIC/a",
			"/public/..;/admin": "/admin", "/public/;/../admin": "/public/admin", "/public/;/admin": "", "/public/%252e%252e/admin": "", "/public/%3b/../../admin": "/admin", "/public/%3b/admin": "", "/public/%c0%ae%c0%ae/admin": "", "/public/" + long: "/public/" + long,
		},
	} {
		for path, judged := range paths {
			cases[path] = judged
		}
	}
	ways := map[string]struct {
		send func(path string) mesh.Answer
		host string
		any  bool // the Exception names no paths
	}{
		"inbound by HTTP/1.1": {func(path string) mesh.Answer { return s.in.Raw(httpPort, s.as, mesh.Request("GET", orders, path)) }, orders, false},
		"inbound by HTTP/2":   {func(path string) mesh.Answer { return s.in.RawHTTP2(httpPort, s.as, "GET", orders, path) }, orders, false},
		"egress": {func(path string) mesh.Answer {
			got, err := s.plain(s.caller.At(xds.EgressPort), mesh.Request("GET", orders, path))
			if err != nil {
				t.Error(err)
			}
			return got
		}, orders, false},
		"plaintext": {func(path string) mesh.Answer {
			got, err := s.plain(s.in.At(oldPort), mesh.Request("GET", oldOrders, path))
			if err != nil {
				t.Error(err)
			}
			return got
		}, oldOrders, true},
	}
	for way, w := range ways {
		together(cases, func(path, judged string) {
			got := w.send(path)
			opened := judged != "" && (w.any || strings.HasPrefix(judged, "/public"))
			if line := got.RequestLine(); opened != (got.Status == 200) || opened && line != "GET "+judged+" "+w.host {
				t.Errorf("%s: %.80q: %d %q, and the application got %.80q", way, path, got.Status, got.Reason, line)
			}
		})
	}
}

// hosts: however a host is spelled, it is judged as what it names.
func (s *stranger) hosts(t *testing.T) {
	egress := func(request string) mesh.Answer {
		got, err := s.plain(s.caller.At(xds.EgressPort), request)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	inbound := func(request string) mesh.Answer { return s.in.Raw(httpPort, s.as, request) }
	ways := map[string]func(string) mesh.Answer{"inbound": inbound, "egress": egress}
	names := map[string]bool{ // whether it is one of orders
		orders: true, "ORDERS.SHOP.MESH": true, "Orders.shop.Mesh": true, orders + ".": true, orders + ":80": true, orders + ":8081": true,
		orders + ".:443": true, "orders.shop.mesh..": false, orders + ":x": false, "": false,
		orders + ",x": false, "x@" + orders: false, orders + "@evil": false, "[::1]": false, "127.0.0.1": false,
		"admin.shop.mesh": false, orders + ".evil": false, "evil." + orders: false, orders + "\t": true, "0rders.shop.mesh": false, orders + "%2e": false, orders + "/": false,
	}
	for way, send := range ways {
		together(names, func(host string, known bool) {
			for path, status := range map[string]int{"/public/a": 200, "/admin": 403} {
				got := send(mesh.Request("GET", host, path))
				if known && got.Status != status || !known && got.Status == 200 {
					t.Errorf("%s: host %q, %s: %+v", way, host, path, got)
				}
			}
		})
		together(map[string]int{
			"GET http://" + orders + "/public/a HTTP/1.1\r\nHost: admin.shop.mesh\r\n\r\n":                         200,
			"GET http://ORDERS.shop.mesh:99/public/a HTTP/1.1\r\nHost: x\r\n\r\n":                                  200,
			"GET http://" + orders + "/public/../admin HTTP/1.1\r\nHost: " + orders + "\r\n\r\n":                   403,
			"GET http://" + orders + "/admin HTTP/1.1\r\nHost: " + orders + "\r\n\r\n":                             403,
			"GET http://evil/public/a HTTP/1.1\r\nHost: " + orders + "\r\n\r\n":                                    0,
			"GET http://x@" + orders + "/public/a HTTP/1.1\r\nHost: " + orders + "\r\n\r\n":                        200, // Envoy drops the user before it reads the host
			"GET /public/a HTTP/1.1\r\nHost: " + orders + "\r\nHost: admin.shop.mesh\r\n\r\n":                      0,
			"GET /public/a HTTP/1.1\r\nHost: admin.shop.mesh\r\nHost: " + orders + "\r\n\r\n":                      0,
			"GET /public/a HTTP/1.1\r\n\r\n":                                                                       0,
			"GET /public/a HTTP/1.1\r\nHost: admin.shop.mesh\r\nX-Forwarded-Host: " + orders + "\r\n\r\n":          0,
			"GET /admin HTTP/1.1\r\nHost: " + orders + "\r\nX-Envoy-Original-Path: /public/a\r\n\r\n":              403,
			"GET /admin HTTP/1.1\r\nHost: " + orders + "\r\nX-Original-Url: /public/a\r\nX-Rewrite-Url: /\r\n\r\n": 403,
			"CONNECT " + orders + ":80 HTTP/1.1\r\nHost: " + orders + "\r\n\r\n":                                   0,
		}, func(request string, want int) {
			if got := send(request); want != 0 && got.Status != want || want == 0 && got.Status == 200 {
				t.Errorf("%s: %q: %+v, want %d", way, request, got, want)
			}
		})
	}
}

// repeated: several headers of one name are one value, joined by commas, and an
// application that takes one of them is not told what was not judged.
func (s *stranger) repeated(t *testing.T) {
	cases := map[string]struct {
		headers []string
		allowed bool
	}{
		"none":                 {nil, false},
		"the one":              {[]string{"x-tenant: red"}, true},
		"in upper case":        {[]string{"X-TENANT: red"}, true},
		"twice":                {[]string{"x-tenant: red", "x-tenant: red"}, false},
		"the wrong one last":   {[]string{"x-tenant: red", "x-tenant: blue"}, false},
		"the wrong one first":  {[]string{"x-tenant: blue", "x-tenant: red"}, false},
		"an empty one first":   {[]string{"x-tenant: ", "x-tenant: red"}, false},
		"an empty one last":    {[]string{"x-tenant: red", "x-tenant: "}, false},
		"a list":               {[]string{"x-tenant: red,blue"}, false},
		"a comma":              {[]string{"x-tenant: red,"}, false},
		"another spelling":     {[]string{"x-tenant: RED"}, false},
		"quoted":               {[]string{`x-tenant: "red"`}, false},
		"with a parameter":     {[]string{"x-tenant: red;q=1"}, false},
		"of a similar name":    {[]string{"x-tenant2: red"}, false},
		"with underscores":     {[]string{"x_tenant: red"}, false},
		"and with underscores": {[]string{"x-tenant: red", "x_tenant: blue"}, false},
		"as Connection":        {[]string{"x-tenant: red", "connection: x-tenant"}, false},
	}
	together(cases, func(what string, c struct {
		headers []string
		allowed bool
	},
	) {
		for way, got := range map[string]mesh.Answer{
			"HTTP/1.1": s.in.Raw(httpPort, s.as, mesh.Request("GET", orders, "/tenant", c.headers...)),
			"HTTP/2":   s.http2(httpPort, orders, "/tenant", c.headers...),
		} {
			if c.allowed != (got.Status == 200) {
				t.Errorf("%s by %s: %+v", what, way, got)
			}
		}
	})
	in1 := func(lines string) mesh.Answer {
		return s.in.Raw(httpPort, s.as, "GET /tenant HTTP/1.1\r\nHost: "+orders+"\r\n"+lines+"\r\n")
	}
	for lines, allowed := range map[string]bool{
		"x-tenant:red\r\n": true, "x-tenant: \tred \t\r\n": true, "x-tenant: re\r\n d\r\n": false, "x-tenant:\r\n red\r\n": true, "x-tenant : red\r\n": false, "x-tenant: blue\r\n x-tenant: red\r\n": false, "x-tenant: red\rx-tenant: blue\r\n": false, "x-tenant: red\x00\r\n": false, "x-tenant: red\v\r\n": false, "x-tenant: red\xa0\r\n": false,
	} {
		if got := in1(lines); allowed != (got.Status == 200) {
			t.Errorf("%q: %+v", lines, got)
		}
	}
	chunked := "POST /tenant HTTP/1.1\r\nHost: " + orders + "\r\nTransfer-Encoding: chunked\r\nTrailer: x-tenant, authorization\r\n\r\n1\r\nx\r\n0\r\nx-tenant: red\r\nx-user: root\r\nauthorization: Bearer x\r\n\r\n"
	if got := s.in.Raw(httpPort, s.as, chunked); got.Status == 200 {
		t.Errorf("in a trailer: %+v", got)
	}
	if got := s.in.Raw(httpPort, s.as, strings.Replace(chunked, "/tenant", "/public/a", 1)); got.Status != 200 || strings.Contains(got.Body, "Bearer") || strings.Contains(got.Body, "root") {
		t.Errorf("trailers of what is allowed: %+v", got)
	}
}

// authorization: a user is who one exact line of Authorization proves, of the one
// provider that a grant names; whoever seems to bear another token is denied.
func (s *stranger) authorization(t *testing.T) {
	sre := specgen.Token("corp", map[string]any{"sub": "ada", "team": "sre"})
	dev := specgen.Token("corp", map[string]any{"sub": "eve", "team": "dev"})
	ally := specgen.Token("partner", map[string]any{"sub": "ada", "team": "sre"})
	const nobody, denied = "", "denied"
	lines := func(values ...string) (out []string) {
		for _, v := range values {
			out = append(out, "authorization: "+v)
		}
		return out
	}
	for what, c := range map[string]struct {
		headers  []string
		user     string // as the application hears of it at /public/a
		sre, own bool   // whether /sre and /partners are open
	}{
		"none":                            {nil, nobody, false, false},
		"basic":                           {lines("Basic YTpi"), nobody, false, false},
		"a user of corp":                  {lines("Bearer " + sre), "ada", true, false},
		"of another team":                 {lines("Bearer " + dev), "eve", false, false},
		"a user of partner":               {lines("Bearer " + ally), "ada", false, true},
		"two users":                       {lines("Bearer "+dev, "Bearer "+sre), denied, false, false},
		"two users of two providers":      {lines("Bearer "+ally, "Bearer "+sre), denied, false, false},
		"the same twice":                  {lines("Bearer "+sre, "Bearer "+sre), denied, false, false},
		"an empty one first":              {lines("", "Bearer "+sre), "ada", true, false},
		"an empty one last":               {lines("Bearer "+sre, ""), "ada", true, false},
		"basic first":                     {lines("Basic YTpi", "Bearer "+sre), denied, false, false},
		"basic last":                      {lines("Bearer "+sre, "Basic YTpi"), denied, false, false},
		"a bad one first":                 {lines("Bearer x", "Bearer "+sre), denied, false, false},
		"a bad one last":                  {lines("Bearer "+sre, "bearer x"), denied, false, false},
		"a list":                          {lines("Bearer " + sre + ",Bearer " + dev), denied, false, false},
		"a comma":                         {lines("Bearer " + sre + ","), denied, false, false},
		"a parameter":                     {lines("Bearer " + sre + ";x"), denied, false, false},
		"in lower case":                   {lines("bearer " + sre), denied, false, false},
		"in mixed case":                   {lines("bEARER " + sre), denied, false, false},
		"a tab":                           {lines("Bearer\t" + sre), denied, false, false},
		"two spaces":                      {lines("Bearer  " + sre), denied, false, false},
		"no space":                        {lines("Bearer" + sre), denied, false, false},
		"a colon":                         {lines("Bearer: " + sre), denied, false, false},
		"quoted":                          {lines(`Bearer "` + sre + `"`), denied, false, false},
		"as token=":                       {lines("Bearer token=" + sre), denied, false, false},
		"within another scheme":           {lines("Negotiate Bearer " + sre), denied, false, false},
		"the token alone":                 {lines(sre), nobody, false, false},
		"another scheme":                  {lines("JWT " + sre), nobody, false, false},
		"DPoP":                            {lines("DPoP " + sre), nobody, false, false},
		"cut":                             {lines("Bearer " + sre[:len(sre)-2]), denied, false, false},
		"padded":                          {lines("Bearer " + sre + "=="), denied, false, false},
		"with more of RFC 6750 after it":  {lines("Bearer " + sre + "~" + dev), denied, false, false},
		"a fourth part":                   {lines("Bearer " + sre + ".x"), denied, false, false},
		"a header of corp's over partner": {lines("Bearer " + sre[:strings.Index(sre, ".")] + ally[strings.Index(ally, "."):]), denied, false, false},
		"another header":                  {[]string{"proxy-authorization: Bearer " + sre, "x-authorization: Bearer " + sre, "x-forwarded-access-token: " + sre}, nobody, false, false},
		"a cookie":                        {[]string{"cookie: access_token=" + sre}, nobody, false, false},
		"a forged user":                   {[]string{"x-user: ada", "X-User: ada", "x-ally: ada"}, nobody, false, false},
		"a forged user beside a real one": {append(lines("Bearer "+dev), "x-user: ada", "x-ally: ada"), "eve", false, false},
	} {
		for way, send := range map[string]func(path string) mesh.Answer{
			"HTTP/1.1": func(path string) mesh.Answer {
				return s.in.Raw(httpPort, s.as, mesh.Request("GET", orders, path, c.headers...))
			},
			"HTTP/2": func(path string) mesh.Answer { return s.http2(httpPort, orders, path, c.headers...) },
		} {
			if got := send("/sre"); c.sre != (got.Status == 200) {
				t.Errorf("%s by %s: /sre: %+v", what, way, got)
			}
			if got := send("/partners?access_token=" + ally); c.own != (got.Status == 200) {
				t.Errorf("%s by %s: /partners: %+v", what, way, got)
			}
			got := send("/public/a")
			if (c.user == denied) == (got.Status == 200) {
				t.Errorf("%s by %s: %+v", what, way, got)
				continue
			}
			users := [2]string{heard(got, "X-User"), heard(got, "X-Ally")}
			want := [2]string{c.user, ""}
			if c.own {
				want = [2]string{"", c.user}
			}
			if c.user != denied && users != want {
				t.Errorf("%s by %s: the application hears of the users %q: %+v", what, way, users, got)
			}
		}
	}
	for _, request := range []string{
		"Authorization : Bearer " + sre + "\r\n",
		"Authorization: Bearer " + sre + "\x00\r\n", "Authorization: Bearer " + sre + "\r\n x\r\n", "X: y\nAuthorization: Bearer " + sre + "\rX: z\r\n",
	} {
		if got := s.in.Raw(httpPort, s.as, "GET /sre HTTP/1.1\r\nHost: "+orders+"\r\n"+request+"\r\n"); got.Status == 200 {
			t.Errorf("%.60q: %+v", request, got)
		}
	}
}

// heard is what the application was sent of a header.
func heard(a mesh.Answer, name string) string {
	for line := range strings.Lines(a.Body) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSuffix(value, "\n")
		}
	}
	return ""
}
