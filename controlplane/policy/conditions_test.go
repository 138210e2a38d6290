package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func stringsOf(values ...string) *ztv1.Strings { return &ztv1.Strings{Values: values} }

// bearer is the token of a user of corp whose claims are the JSON object.
func bearer(t *testing.T, claims string) Token {
	t.Helper()
	token := Token{State: TokenValid, Provider: "corp"}
	if err := json.Unmarshal([]byte(claims), &token.Claims); err != nil {
		t.Fatal(err)
	}
	return token
}

var corp = &Provider{Name: "corp", Claims: map[string]Claim{
	"groups": {"groups", []string{"groups"}, ListClaim},
	"team":   {"team", []string{"org", "team"}, StringClaim},
	"staff":  {"staff", []string{"staff"}, BooleanClaim},
}}

func TestUsers(t *testing.T) {
	users := func(change func(*ztv1.Users)) *ztv1.Users {
		u := &ztv1.Users{Provider: "corp"}
		change(u)
		return u
	}
	claim := func(name string, values ...string) *ztv1.Users {
		return users(func(u *ztv1.Users) { u.Claims = map[string]*ztv1.Strings{name: stringsOf(values...)} })
	}
	recent := users(func(u *ztv1.Users) { u.MaxAge = durationpb.New(time.Minute) })
	at := func(seconds int64) string { return fmt.Sprintf(`{"auth_time": %d}`, noon.Unix()+seconds) }
	for _, c := range []struct {
		what  string
		users *ztv1.Users
		token Token
		want  string // empty: it matches
	}{
		{"any user", users(func(*ztv1.Users) {}), bearer(t, `{}`), ""},
		{"nobody", users(func(*ztv1.Users) {}), Token{}, "needs a user of corp, the request bears none"},
		{"a bad token", users(func(*ztv1.Users) {}), Token{State: TokenInvalid, Provider: "corp"}, "needs a user of corp, the request bears none"},
		{"of another provider", users(func(*ztv1.Users) {}), Token{State: TokenValid, Provider: "acme"}, "needs a user of corp, the token is of acme"},
		{"sub", users(func(u *ztv1.Users) { u.Subjects = []string{"a", "b"} }), bearer(t, `{"sub": "b"}`), ""},
		{
			"another sub", users(func(u *ztv1.Users) { u.Subjects = []string{"a", "b"} }), bearer(t, `{"sub": "c"}`),
			"needs a user of corp with sub in [a, b], the token has [c]",
		},
		{"list", claim("groups", "sre", "dba"), bearer(t, `{"groups": ["x", "sre"]}`), ""},
		{"list without", claim("groups", "sre"), bearer(t, `{"groups": ["dev"]}`), "needs a user of corp with groups in [sre], the token has [dev]"},
		{"empty list", claim("groups", "sre"), bearer(t, `{"groups": []}`), "needs a user of corp with groups in [sre], the token has []"},
		{"a string is no list", claim("groups", "sre"), bearer(t, `{"groups": "sre"}`), "needs a user of corp with groups in [sre], the token has none of this kind"},
		{"items of another type", claim("groups", "1"), bearer(t, `{"groups": [1, ["1"], null]}`), "needs a user of corp with groups in [1], the token has []"},
		{"nested", claim("team", "a"), bearer(t, `{"org": {"team": "a"}}`), ""},
		{"not nested", claim("team", "a"), bearer(t, `{"org": "a", "team": "a"}`), "needs a user of corp with team in [a], the token has none of this kind"},
		{"a list is no string", claim("team", "a"), bearer(t, `{"org": {"team": ["a"]}}`), "needs a user of corp with team in [a], the token has none of this kind"},
		{"a number is no string", claim("team", "1"), bearer(t, `{"org": {"team": 1}}`), "needs a user of corp with team in [1], the token has none of this kind"},
		{"boolean", claim("staff", "true"), bearer(t, `{"staff": true}`), ""},
		{"the other boolean", claim("staff", "true"), bearer(t, `{"staff": false}`), "needs a user of corp with staff in [true], the token has [false]"},
		{"a string is no boolean", claim("staff", "true"), bearer(t, `{"staff": "true"}`), "needs a user of corp with staff in [true], the token has none of this kind"},
		{"null", claim("staff", "false"), bearer(t, `{"staff": null}`), "needs a user of corp with staff in [false], the token has none of this kind"},
		{"undeclared", claim("level", "a"), bearer(t, `{"level": "a"}`), "needs a user of corp with level, which it does not declare"},
		{"acr", users(func(u *ztv1.Users) { u.Acr = []string{"2"} }), bearer(t, `{"acr": "2"}`), ""},
		{"weak acr", users(func(u *ztv1.Users) { u.Acr = []string{"2"} }), bearer(t, `{}`), "needs a user of corp with acr in [2], the token has none of this kind"},
		{"amr", users(func(u *ztv1.Users) { u.Amr = []string{"mfa"} }), bearer(t, `{"amr": ["pwd", "mfa"]}`), ""},
		{"amr as a string", users(func(u *ztv1.Users) { u.Amr = []string{"mfa"} }), bearer(t, `{"amr": "mfa"}`), "needs a user of corp with amr in [mfa], the token has none of this kind"},
		{"just logged in", recent, bearer(t, at(0)), ""},
		{"a minute ago", recent, bearer(t, at(-60)), ""},
		{"longer ago", recent, bearer(t, at(-61)), "needs a user of corp who logged in within 1m0s, not at 2026-06-01T11:58:59Z"},
		{"by a clock ahead", recent, bearer(t, at(3600)), ""},
		{"no auth_time", recent, bearer(t, `{}`), "needs a user of corp who logged in within 1m0s, the token does not say when"},
		{"auth_time of another type", recent, bearer(t, `{"auth_time": "1780315200"}`), "needs a user of corp who logged in within 1m0s, the token does not say when"},
		{"auth_time out of range", recent, bearer(t, `{"auth_time": 1e300}`), "needs a user of corp who logged in within 1m0s, the token does not say when"},
	} {
		cond, ok := newConditions(&ztv1.Caller{Users: c.users}, nil, nil)
		if !ok {
			t.Errorf("%s: not understood", c.what)
			continue
		}
		got := strings.Join(cond.failures(&Request{Token: c.token, Time: noon}, corp), "; ")
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
		if len(cond.failures(&Request{Token: c.token, Time: noon}, nil)) == 0 {
			t.Errorf("%s: matches without a provider", c.what)
		}
	}
	cond, _ := newConditions(&ztv1.Caller{Users: recent}, nil, nil)
	if len(cond.failures(&Request{Token: bearer(t, at(3600))}, corp)) == 0 {
		t.Error("maxAge matches without a time")
	}
}

func TestContext(t *testing.T) {
	env := &ztv1.When{Headers: map[string]*ztv1.Strings{"x-env": stringsOf("a", "a,b", "")}}
	cidrs := &ztv1.When{SourceCidrs: []string{"10.0.0.0/8", "2001:db8::/32", "127.0.0.0/8"}}
	cel := func(text string) *ztv1.When { return &ztv1.When{Cel: text} }
	headers := func(pairs ...string) (out []Header) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, Header{pairs[i], pairs[i+1]})
		}
		return out
	}
	from := func(addr string) Request { return Request{Source: netip.MustParseAddr(addr)} }
	for _, c := range []struct {
		what string
		when *ztv1.When
		r    Request
		want string
	}{
		{"header", env, Request{Headers: headers("x-env", "a")}, ""},
		{"another value", env, Request{Headers: headers("x-env", "A")}, `needs header x-env in [, a, a,b], the request has "A"`},
		{"lines are joined", env, Request{Headers: headers("x-env", "a", "y", "z", "x-env", "b")}, ""},
		{"and are not looked at one by one", env, Request{Headers: headers("x-env", "a", "x-env", "a")}, `needs header x-env in [, a, a,b], the request has "a,a"`},
		{"empty", env, Request{Headers: headers("x-env", "")}, ""},
		{"absent", env, Request{Headers: headers("x-envy", "a")}, "needs header x-env in [, a, a,b], the request has none"},
		{"deleted", env, Request{Headers: headers("x-env", "a", "connection", "close, X-Env")}, "needs header x-env in [, a, a,b], the request has none"},

		{"no address is loopback", cidrs, Request{}, ""},
		{"IPv4", cidrs, from("10.255.0.1"), ""},
		{"another IPv4", cidrs, from("11.0.0.1"), "needs a peer in [10.0.0.0/8, 127.0.0.0/8, 2001:db8::/32], not 11.0.0.1"},
		{"IPv4 in IPv6", cidrs, from("::ffff:10.1.2.3"), ""},
		{"IPv6", cidrs, from("2001:db8::1"), ""},
		{"another IPv6", cidrs, from("2001:db9::1"), "needs a peer in [10.0.0.0/8, 127.0.0.0/8, 2001:db8::/32], not 2001:db9::1"},
		{"a zone", &ztv1.When{SourceCidrs: []string{"fe80::/10"}}, from("fe80::1%eth0"), ""},

		{"cel", cel(`request.method == "GET" && request.url_path == "/a" && request.query == "b=c"`), Request{Method: "GET", Path: "/a?b=c"}, ""},
		{"cel is false", cel(`request.method == "GET"`), Request{Method: "PUT"}, `needs request.method == "GET"`},
		{"cel errs", cel(`request.headers["x"] != "a"`), Request{}, `needs request.headers["x"] != "a", which cannot be told`},
		{"an error that does not matter", cel(`request.headers["x"] == "a" || request.method == "GET"`), Request{Method: "GET"}, ""},
		{"host", cel(`request.host == "orders.shop.mesh"`), Request{Authority: "orders.shop.mesh.:8080"}, ""},
		{"caller", cel(`connection.uri_san_peer_certificate == "spiffe://a/b"`), Request{CallerID: "spiffe://a/b"}, ""},
		{"time", cel(`request.time < timestamp("2026-06-01T12:00:01Z")`), Request{}, ""},
	} {
		cond, ok := newConditions(nil, c.when, nil)
		if !ok {
			t.Errorf("%s: not understood", c.what)
			continue
		}
		c.r.Time = noon
		if got := strings.Join(cond.failures(&c.r, nil), "; "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}

func TestConditionsOfTime(t *testing.T) {
	ended, _ := newConditions(nil, nil, timestamppb.New(noon))
	for at, want := range map[time.Time]string{
		noon.Add(-1): "",
		noon:         "ended at 2026-06-01T12:00:00Z, before 2026-06-01T12:00:00Z",
		{}:           "depends on the time, the request has none",
	} {
		if got := strings.Join(ended.failures(&Request{Time: at}, nil), "; "); got != want {
			t.Errorf("at %s: got %q, want %q", at, got, want)
		}
	}
	night, _ := newConditions(nil, &ztv1.When{Windows: []*ztv1.Window{{Zone: "Europe/Berlin", Start: "22:00", End: "06:30", Days: []string{"sat", "mon"}}}}, nil)
	if got := night.failures(&Request{Time: noon}, nil); !slices.Equal(got, []string{"is for 22:00-06:30 mon,sat Europe/Berlin, not 2026-06-01T12:00:00Z"}) {
		t.Errorf("got %q", got)
	}
	clock, _ := newConditions(nil, &ztv1.When{Cel: `request.time < timestamp("2030-01-01T00:00:00Z")`}, nil)
	if clock.failures(&Request{}, nil) == nil {
		t.Error("an expression about the time matches without one")
	}
}

// TestConditionsNotUnderstood: what spec.Check would refuse is never a condition
// less.
func TestConditionsNotUnderstood(t *testing.T) {
	window := func(zone, start, end string, days ...string) *ztv1.When {
		return &ztv1.When{Windows: []*ztv1.Window{{Zone: "UTC", Start: "00:00", End: "01:00"}, {Zone: zone, Start: start, End: end, Days: days}}}
	}
	for what, when := range map[string]*ztv1.When{
		"a zone":              window("Mars/Olympus", "00:00", "01:00"),
		"the host's zone":     window("Local", "00:00", "01:00"),
		"no zone":             window("", "00:00", "01:00"),
		"an empty window":     window("UTC", "01:00", "01:00"),
		"a day that is none":  window("UTC", "00:00", "01:00", "mon", "noday"),
		"a clock":             window("UTC", "0:00", "01:00"),
		"another":             window("UTC", "00:00", "25:00"),
		"a start at midnight": window("UTC", "24:00", "01:00"),
		"a header of nothing": {Headers: map[string]*ztv1.Strings{"x": {}}},
		"a CIDR":              {SourceCidrs: []string{"10.0.0.0/8", "10.0.0.1"}},
		"bits behind a mask":  {SourceCidrs: []string{"10.0.0.1/8"}},
		"IPv4 in IPv6":        {SourceCidrs: []string{"::ffff:10.0.0.0/104"}},
		"an expression":       {Cel: "true &&"},
		"one without a truth": {Cel: `"a"`},
	} {
		if c, ok := newConditions(nil, when, nil); ok || !c.none() {
			t.Errorf("%s: %+v", what, c)
		}
	}
	for what, users := range map[string]*ztv1.Users{
		"no provider":        {},
		"a claim of nothing": {Provider: "corp", Claims: map[string]*ztv1.Strings{"groups": {}}},
		"no age":             {Provider: "corp", MaxAge: durationpb.New(0)},
		"a negative age":     {Provider: "corp", MaxAge: durationpb.New(-time.Second)},
	} {
		if c, ok := newConditions(&ztv1.Caller{Users: users}, nil, nil); ok || !c.none() {
			t.Errorf("%s: %+v", what, c)
		}
	}
	for what, until := range map[string]*timestamppb.Timestamp{"no moment": {Nanos: -1}, "the zero time": timestamppb.New(time.Time{})} {
		if c, ok := newConditions(nil, nil, until); ok || !c.none() {
			t.Errorf("%s: %+v", what, c)
		}
	}
}

// TestConditionsEqual: each condition makes a difference, and their order none.
func TestConditionsEqual(t *testing.T) {
	window := func(zone string) *ztv1.Window { return &ztv1.Window{Zone: zone, Start: "00:00", End: "01:00"} }
	all := []Conditions{{}}
	add := func(u *ztv1.Users, when *ztv1.When, until *timestamppb.Timestamp) {
		c, ok := newConditions(&ztv1.Caller{Users: u}, when, until)
		if !ok || c.none() {
			t.Fatalf("%v %v %v: %+v, %v", u, when, until, c, ok)
		}
		all = append(all, c)
	}
	for _, u := range []*ztv1.Users{
		{Provider: "a"},
		{Provider: "b"},
		{Provider: "a", Subjects: []string{"x"}},
		{Provider: "a", Acr: []string{"x"}},
		{Provider: "a", Amr: []string{"x"}},
		{Provider: "a", Claims: map[string]*ztv1.Strings{"c": stringsOf("x")}},
		{Provider: "a", Claims: map[string]*ztv1.Strings{"c": stringsOf("y")}},
		{Provider: "a", MaxAge: durationpb.New(1)},
	} {
		add(u, nil, nil)
	}
	for _, w := range []*ztv1.When{
		{Headers: map[string]*ztv1.Strings{"a": stringsOf("x")}},
		{Headers: map[string]*ztv1.Strings{"b": stringsOf("x")}},
		{Windows: []*ztv1.Window{window("UTC")}},
		{Windows: []*ztv1.Window{window("UTC"), window("Asia/Tokyo")}},
		{SourceCidrs: []string{"10.0.0.0/8"}},
		{SourceCidrs: []string{"10.0.0.0/9"}},
		{Cel: "true"},
		{Cel: "!false"},
	} {
		add(nil, w, nil)
	}
	add(nil, nil, timestamppb.New(noon))
	add(nil, nil, timestamppb.New(noon.Add(1)))
	for i, a := range all {
		for j, b := range all {
			if a.equal(b) != (i == j) {
				t.Errorf("%+v and %+v: %v", a, b, i == j)
			}
		}
	}
	one, _ := newConditions(nil, &ztv1.When{Windows: []*ztv1.Window{window("UTC"), window("Asia/Tokyo")}, SourceCidrs: []string{"10.0.0.0/8", "::/0"}}, nil)
	two, _ := newConditions(nil, &ztv1.When{Windows: []*ztv1.Window{window("Asia/Tokyo"), window("UTC"), window("UTC")}, SourceCidrs: []string{"::/0", "10.0.0.0/8"}}, nil)
	if !one.equal(two) {
		t.Errorf("%+v and %+v differ", one, two)
	}
}
