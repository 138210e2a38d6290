package xds_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// judgeCase is one request and how it must be decided: the name of a denial, or a
// status.
type judgeCase struct {
	name, caller string
	request      string
	want         string
}

// ask is a request for the host of orders with further headers, "name: value".
func ask(method, path string, headers ...string) string {
	r := get(method, ordersHost, path)
	for _, h := range headers {
		r = strings.Replace(r, "\r\n", "\r\n"+h+"\r\n", 1)
	}
	return r
}

func judgeAll(t *testing.T, conf *xds.Config, cases []judgeCase) *proxy {
	t.Helper()
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), conf)
	orders.judge(8080, cases)
	return orders
}

func (p *proxy) judge(port uint32, cases []judgeCase) {
	p.t.Helper()
	for _, tt := range cases {
		caller := tt.caller
		if caller == "" {
			caller = "shop/web"
		}
		got := p.raw(port, p.p.svid(p.t, id(caller)), tt.request)
		if v := p.decided(got); v != tt.want {
			p.t.Errorf("%s: %s: got %s (%d %q), want %s", caller, tt.title(), v, got.status, got.reason, tt.want)
		}
	}
}

func (tt judgeCase) title() string {
	if tt.name != "" {
		return tt.name
	}
	first, _, _ := strings.Cut(tt.request, " HTTP/")
	return first
}

// decided reads from an answer who has denied the request; what is allowed, and
// what others than policies refuse, is a status.
func (p *proxy) decided(a answer) string {
	if name, ok := strings.CutPrefix(a.reason, "rbac_access_denied_matched_policy["); ok && a.status == 403 {
		name = strings.TrimSuffix(name, "]")
		if block, ok := strings.CutPrefix(name, "block:shop/"); ok {
			return "block " + block
		}
		return name
	}
	if a.reason == "upgrade_failed" && a.status == 403 {
		return "upgrade"
	}
	return strconv.Itoa(a.status)
}

// judged is a port with these rules, which anybody may connect to.
func judged(target string, rules ...xds.Rule) *xds.Config {
	c := ordersConfig(target, "127.0.0.1:1")
	c.Inbound = c.Inbound[:1]
	c.Inbound[0].Rules = rules
	return c
}

func byWeb() xds.Callers { return xds.Callers{IDs: []string{id("shop/web")}} }

func patterns(list ...string) []xds.Path {
	var out []xds.Path
	for _, p := range list {
		out = append(out, xds.Path{Value: p, Kind: xds.Pattern})
	}
	return out
}

// TestPatterns: "*" is one segment, not empty, wherever it stands.
func TestPatterns(t *testing.T) {
	deep := "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/*/16"
	rule := func(method string, list ...string) xds.Rule {
		return xds.Rule{Grant: "shop/" + strings.ToLower(method), Callers: byWeb(), Methods: []string{method}, Paths: patterns(list...)}
	}
	conf := judged(newApp(t),
		rule("GET", "/a/*/c", "/last/*", "/slash/*/", "/plain", "/rest/**"),
		rule("PUT", "/*/x/*/y", "/m/*/r/**", "/n/*/**", "/a/b/c"),
		rule("POST", deep, "/*", "/w/*/1/*/2/*/3"),
		rule("DELETE", "/**"),
	)
	var cases []judgeCase
	for _, tt := range []struct {
		method string
		yes    string
		no     string
	}{
		{"GET", "/a/b/c /a/b/c?q=/x /a/=/c /a/b%2Dx/c /a/x/../b/c /last/1 /slash/1/ /plain /rest /rest/ /rest/1/2 /a/~:@!$&'()*+,=._-/c", "/a/c /a//c /a/b/c/ /a/b /a/b/c/d /a/b/d /a/b/d?/a/b/c /last /last/ /last/1/ /last/1/2 /slash/1 /slash// /slash/1/2 /plain/ /restx /b/x/c"},
		{"PUT", "/1/x/2/y /m/1/r /m/1/r/ /m/1/r/2/3 /n/1 /n/1/ /n/1/2/3 /a/b/c /a/x/c/y", "/1/x/2/y/ /1/x/y /x/2/y /1/x/2 /m/1/rx /m//r /m/r /n /n/ /a/x/c /m/1/r2/r"},
		{"POST", strings.Replace(deep, "*", "15", 1) + " /one /w/a/1/b/2/c/3", "/ /one/ /one/two " + deep[:len(deep)-3] + " " + strings.Replace(deep, "*", "15/15", 1) + " /w/a/1/b/2/c/4 /w/a/1/b/2/3"},
		{"DELETE", "/ /x /x/ /x/y/z", ""},
	} {
		for _, path := range strings.Fields(tt.yes) {
			cases = append(cases, judgeCase{request: ask(tt.method, path), want: "200"})
		}
		for _, path := range strings.Fields(tt.no) {
			want := "default-deny"
			if normal := strings.ReplaceAll(path, "//", "/"); slices.Contains(strings.Fields(tt.yes), normal) {
				want = "200" // slashes are merged before anything is judged
			}
			cases = append(cases, judgeCase{request: ask(tt.method, path), want: want})
		}
	}
	cases = append(cases,
		judgeCase{name: "a query that is not ASCII", request: ask("GET", "/a/b/c?\xff\xfe"), want: "400"},
		judgeCase{name: "a query that is a path", request: ask("GET", "/a?/b/c"), want: "default-deny"},
		judgeCase{name: "not ASCII", request: ask("GET", "/a/\xc3\xa4/c"), want: "400"},
		judgeCase{name: "a mark", request: ask("POST", "/=/x"), want: "default-deny"},
		judgeCase{name: "a long segment", request: ask("GET", "/a/"+strings.Repeat("x", 8000)+"/c"), want: "200"},
		judgeCase{name: "another caller", caller: "shop/cart", request: ask("GET", "/a/b/c"), want: "default-deny"},
	)
	judgeAll(t, conf, cases)
}

// users is a rule for users of provider one.
func users(grant string, edit func(*xds.Users)) xds.Rule {
	u := &xds.Users{Provider: "one"}
	if edit != nil {
		edit(u)
	}
	return xds.Rule{
		Grant: "shop/" + grant, Callers: byWeb(), Conditions: xds.Conditions{Users: u},
		Paths: []xds.Path{{Value: "/" + grant, Kind: xds.Exact}},
	}
}

func claim(kind xds.ClaimKind, path string, values ...string) xds.Claim {
	return xds.Claim{Path: strings.Split(path, " "), Kind: kind, Values: values}
}

func withClaims(cs ...xds.Claim) func(*xds.Users) { return func(u *xds.Users) { u.Claims = cs } }

// TestUsers: a claim matches by its value and by its type.
func TestUsers(t *testing.T) {
	one, two := newSigner(t, "one"), newSigner(t, "two")
	conf := judged(newApp(t),
		users("any", nil),
		users("sub", withClaims(claim(xds.StringClaim, "sub", "alice", "bob"))),
		users("nested", withClaims(claim(xds.StringClaim, "realm role", "ops"))),
		users("odd", withClaims(claim(xds.StringClaim, "https://x.example/role", "ops"))),
		users("list", withClaims(claim(xds.ListClaim, "groups", "sre", "dba"))),
		users("yes", withClaims(claim(xds.BooleanClaim, "verified", "true"))),
		users("text", withClaims(claim(xds.StringClaim, "level", "5", "true", `["sre"]`, "-"))),
		users("two", withClaims(claim(xds.StringClaim, "dept", "ops", "dev"), claim(xds.StringClaim, "site", "b", "c", "d"), claim(xds.StringClaim, "sub", "alice"))),
		users("age", func(u *xds.Users) { u.MaxAge = time.Minute }),
		users("free", nil),
	)
	conf.Inbound[0].Rules[9].Users = nil
	for i := range 20 { // rules of one caller, path and method that differ in a claim
		r := users("flat", withClaims(claim(xds.StringClaim, "sub", fmt.Sprint("u", i))))
		r.Grant = fmt.Sprint("shop/flat-", i)
		conf.Inbound[0].Rules = append(conf.Inbound[0].Rules, r)
	}
	conf.Providers = []xds.Provider{provider("one", one.jwks()), provider("two", two.jwks())}
	conf.Inbound[0].Blocks = []xds.Block{{Name: "shop/mallory", Users: &xds.Users{
		Provider: "one", Claims: []xds.Claim{claim(xds.StringClaim, "sub", "mallory", "5")},
	}}}

	bearer := func(edit ...any) string { return "Authorization: Bearer " + one.token(t, claims(edit...), nil) }
	now := time.Now()
	other := "Authorization: Bearer " + two.token(t, claims("iss", "https://two.example"), nil)
	var cases []judgeCase
	add := func(path, want string, headers ...string) {
		cases = append(cases, judgeCase{name: fmt.Sprintf("%s (case %d)", path, len(cases)), request: ask("GET", path, headers...), want: want})
	}
	add("/any", "200", bearer())
	add("/any", "default-deny")
	add("/any", "default-deny", other)
	add("/any", "401", "Authorization: Bearer x")
	add("/free", "200")
	add("/free", "200", bearer())
	add("/free", "401", "Authorization: Bearer x")
	add("/sub", "200", bearer())
	add("/sub", "200", bearer("sub", "bob"))
	add("/sub", "default-deny", bearer("sub", "carol"))
	add("/sub", "default-deny", bearer("sub", nil))
	add("/sub", "default-deny", other)
	add("/nested", "200", bearer("realm", map[string]any{"role": "ops"}))
	add("/nested", "default-deny", bearer("realm", map[string]any{"role": []string{"ops"}}))
	add("/nested", "default-deny", bearer("realm role", "ops"))
	add("/nested", "default-deny", bearer("realm", "ops"))
	add("/odd", "200", bearer("https://x.example/role", "ops"))
	add("/odd", "default-deny", bearer("https://x.example/role", "dev"))
	add("/list", "200", bearer("groups", []string{"x", "dba"}))
	add("/list", "default-deny", bearer("groups", []string{"x"}))
	add("/list", "default-deny", bearer("groups", "sre"))
	add("/list", "default-deny", bearer("groups", `["sre"]`))
	add("/list", "default-deny", bearer("groups", []any{[]string{"sre"}}))
	add("/yes", "200", bearer("verified", true))
	add("/yes", "default-deny", bearer("verified", false))
	add("/yes", "default-deny", bearer("verified", "true"))
	add("/yes", "default-deny", bearer("verified", 1))
	add("/text", "200", bearer("level", "5"))
	add("/text", "200", bearer("level", "true"))
	add("/text", "200", bearer("level", `["sre"]`))
	add("/text", "200", bearer("level", "-"))
	add("/text", "default-deny", bearer("level", 5))
	add("/text", "default-deny", bearer("level", true))
	add("/text", "default-deny", bearer("level", []string{"sre"}))
	add("/text", "default-deny", bearer())
	add("/two", "200", bearer("dept", "dev", "site", "d"))
	add("/two", "default-deny", bearer("dept", "dev", "site", "e"))
	add("/two", "default-deny", bearer("dept", "x", "site", "d"))
	add("/two", "default-deny", bearer("dept", "dev", "site", "d", "sub", "bob"))
	add("/age", "200", bearer("auth_time", now.Unix()-10))
	add("/age", "default-deny", bearer("auth_time", now.Unix()-120))
	add("/age", "default-deny", bearer("auth_time", fmt.Sprint(now.Unix())))
	add("/age", "200", bearer("auth_time", float64(now.Unix()-10)+0.5))
	add("/age", "default-deny", bearer("auth_time", true))
	add("/age", "default-deny", bearer("auth_time", []int64{now.Unix()}))
	add("/age", "default-deny", bearer("auth_time", 1e300))
	add("/age", "default-deny", bearer())
	add("/age", "default-deny")
	add("/flat", "200", bearer("sub", "u17"))
	add("/flat", "default-deny", bearer("sub", "u20"))
	add("/free", "block mallory", bearer("sub", "mallory"))
	add("/free", "block mallory", bearer("sub", "5"))
	add("/free", "401", bearer("sub", 5)) // not a subject (RFC 7519, section 4.1.2)
	add("/free", "200", "Authorization: Bearer "+two.token(t, claims("iss", "https://two.example", "sub", "mallory"), nil))
	judgeAll(t, conf, cases)
}

// around is a window of the next and the last d, on the days on which it starts.
func around(t *testing.T, zone string, now time.Time, d time.Duration, days bool) xds.Window {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	check(t, err)
	start, end := now.In(loc).Add(-d), now.In(loc).Add(d)
	w := xds.Window{Zone: zone, Start: start.Hour()*60 + start.Minute(), End: end.Hour()*60 + end.Minute()}
	if days {
		w.Days = []time.Weekday{start.Weekday()}
	}
	return w
}

// TestContext: headers, addresses, time and CEL narrow, and what is absent or errs
// does not match.
func TestContext(t *testing.T) {
	now := time.Now()
	rule := func(name string, c xds.Conditions) xds.Rule {
		return xds.Rule{Grant: "shop/" + name, Callers: byWeb(), Conditions: c, Paths: []xds.Path{{Value: "/" + name, Kind: xds.Rest}}}
	}
	window := func(ws ...xds.Window) xds.Conditions { return xds.Conditions{Windows: ws} }
	past := func(w xds.Window) xds.Window { // the same span, a day or a half away
		w.Days = []time.Weekday{(w.Days[0] + 3) % 7}
		return w
	}
	late := around(t, "UTC", now.Add(4*time.Hour), time.Hour, false)
	cel := func(s string) xds.Conditions { return xds.Conditions{CEL: s} }
	conf := judged(newApp(t),
		rule("header", xds.Conditions{Headers: []xds.Header{{Name: "x-team", Values: []string{"a", "b"}}, {Name: "x-env", Values: []string{"prod"}}}}),
		rule("joined", xds.Conditions{Headers: []xds.Header{{Name: "x-team", Values: []string{"a,b"}}}}),
		rule("here", xds.Conditions{Sources: []string{"10.0.0.0/8", "127.0.0.0/8"}}),
		rule("there", xds.Conditions{Sources: []string{"10.0.0.0/8", "2001:db8::/32"}}),
		rule("before", xds.Conditions{Until: now.Add(time.Hour)}),
		rule("after", xds.Conditions{Until: now.Add(-time.Second)}),
		rule("now", window(late, around(t, "Asia/Kolkata", now, time.Hour, true))),
		rule("berlin", window(around(t, "Europe/Berlin", now, 11*time.Hour, true))),
		rule("always", window(xds.Window{Zone: "UTC", Start: 0, End: 1440})),
		rule("later", window(late)),
		rule("otherday", window(past(around(t, "America/New_York", now, 11*time.Hour, true)))),
		rule("nowhere", window(xds.Window{Zone: "Mars/Olympus", Start: 0, End: 1440})),
		rule("cel", cel(`request.headers["x-n"] == "1" && request.method in ["GET", "PUT"] && request.url_path.startsWith("/cel/") && size(request.query) < 4`)),
		rule("caller", cel(`connection.uri_san_peer_certificate == "`+id("shop/web")+`" && request.host == "`+ordersHost+`"`)),
		rule("has", cel(`has(request.headers.absent) || "x-n" in request.headers`)),
		rule("err", cel(`request.headers["x-n"] == "1" || request.headers["x-m"] == "1"`)),
		rule("hour", cel(`request.time.getHours("UTC") >= 0 && request.time > timestamp("2020-01-01T00:00:00Z") && request.time + duration("1h") > request.time && request.time.getDayOfWeek("Asia/Tokyo") < 7`)),
		rule("all", xds.Conditions{
			Headers: []xds.Header{{Name: "x-team", Values: []string{"a"}}}, Sources: []string{"127.0.0.0/8"},
			Until: now.Add(time.Hour), CEL: `request.method == "GET"`, Windows: []xds.Window{{Zone: "UTC", Start: 0, End: 1440}},
		}),
	)
	// The same caller, path and method: the second rule is tried after the first.
	for _, v := range []string{"one", "two"} {
		r := rule("both", xds.Conditions{Headers: []xds.Header{{Name: "x-v", Values: []string{v}}}})
		r.Grant = "shop/both-" + v
		conf.Inbound[0].Rules = append(conf.Inbound[0].Rules, r)
	}
	var cases []judgeCase
	add := func(want, path string, headers ...string) {
		cases = append(cases, judgeCase{name: fmt.Sprint(path, " ", headers), request: ask("GET", path, headers...), want: want})
	}
	const no = "default-deny"
	add("200", "/header", "X-Team: b", "x-env: prod")
	add("200", "/header", "X-Team:  b  ", "x-env: prod")
	add(no, "/header", "X-Team: b")
	add(no, "/header")
	add(no, "/header", "X-Team: B", "x-env: prod")
	add(no, "/header", "X-Team: a", "X-Team: b", "x-env: prod")
	add(no, "/header", "X-Team: c", "x-env: prod")
	add(no, "/header", "X-Team:", "x-env: prod")
	add("200", "/joined", "X-Team: b", "X-Team: a") // ask puts the last first
	add("200", "/joined", "X-Team: a,b")
	add(no, "/joined", "X-Team: a, b")
	add("200", "/here", "X-Forwarded-For: 192.0.2.1")
	add(no, "/there")
	add(no, "/there", "X-Forwarded-For: 10.0.0.1")
	add("200", "/before")
	add(no, "/after")
	add("200", "/now")
	add("200", "/berlin")
	add("200", "/always")
	add(no, "/later")
	add(no, "/otherday")
	add(no, "/nowhere")
	add("200", "/cel/x?a=b", "x-n: 1")
	add(no, "/cel/x?a=bc", "x-n: 1")
	add(no, "/cel", "x-n: 1")
	add(no, "/cel/x")
	add("200", "/caller")
	add("200", "/has", "x-n: 1")
	add(no, "/has")
	add("200", "/err", "x-n: 1")
	add("200", "/err", "x-m: 1")
	add(no, "/err")
	add("200", "/hour")
	add("200", "/all", "x-team: a")
	add(no, "/all")
	add("200", "/both", "x-v: one")
	add("200", "/both", "x-v: two")
	add(no, "/both", "x-v: three")
	judgeAll(t, conf, cases)
}
