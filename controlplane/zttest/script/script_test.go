package script_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
)

const shop = `what it shows
-- shop.yaml --
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec:
  serves: [{name: http, port: 8080, protocol: http}]
-- decisions --
namespace shop
`

func TestParse(t *testing.T) {
	s, err := script.Parse("x", []byte(shop+`
# a remark
allow a -> web:http GET /x?y host web.shop.mesh by g2, other/g1
deny - -> other/db TCP because transport
allow spiffe://x/y -> q GRPC p.S/M because health
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Comment != "what it shows" || s.TrustDomain != script.DefaultTrustDomain || len(s.Docs) != 1 || len(s.Lines) != 3 {
		t.Fatalf("got %+v", s)
	}
	web := policy.Request{
		CallerID: "spiffe://shop.example/ns/shop/sa/a", Service: spec.Ref{Namespace: "shop", Name: "web"},
		Port: "http", Method: "GET", Path: "/x?y", Authority: "web.shop.mesh",
		Time: script.Noon,
	}
	if l := s.Lines[0]; !reflect.DeepEqual(l.Request, web) || !l.Allow || l.Number != 4 || len(l.By) != 2 || l.By[0].String() != "other/g1" {
		t.Errorf("first line is %+v", l)
	}
	db := policy.Request{Service: spec.Ref{Namespace: "other", Name: "db"}, TCP: true, Time: script.Noon}
	if l := s.Lines[1]; !reflect.DeepEqual(l.Request, db) || l.Allow || l.Because != policy.ReasonTransport {
		t.Errorf("second line is %+v", l)
	}
	grpc := policy.Request{CallerID: "spiffe://x/y", Service: spec.Ref{Namespace: "shop", Name: "q"}, Method: "POST", Path: "/p.S/M", Time: script.Noon}
	if l := s.Lines[2]; !reflect.DeepEqual(l.Request, grpc) || !l.GRPC || l.Because != policy.ReasonHealth {
		t.Errorf("third line is %+v", l)
	}
}

func TestClauses(t *testing.T) {
	const users = `-- users --
ada:
  provider: corp
  sub: ada
  acr: gold
  amr: [pwd, otp]
  authAge: 5m
  claims: {groups: [sre], org: {unit: payments}, staff: true}
`
	s, err := script.Parse("x", []byte(strings.Replace(shop, "-- decisions --", users+"-- decisions --", 1)+`
allow a -> web GET / as ada header x-a=1 header x-b= from 10.1.2.3 host h upgrade websocket by g
allow - -> web GET / plaintext because exception:shop/x
deny a -> web GET / as ada token expired authorizer denies
deny a -> web GET / as ada token none at 2026-03-29T01:30:00Z
`))
	if err != nil {
		t.Fatal(err)
	}
	first := policy.Request{
		CallerID: "spiffe://shop.example/ns/shop/sa/a", Service: spec.Ref{Namespace: "shop", Name: "web"}, Method: "GET", Path: "/",
		Authority: "h", Headers: []policy.Header{{Name: "x-a", Value: "1"}, {Name: "x-b"}}, Source: netip.MustParseAddr("10.1.2.3"),
		Upgrade: "websocket", Time: script.Noon,
		Token: policy.Token{State: policy.TokenValid, Provider: "corp", Claims: map[string]any{
			"sub": "ada", "acr": "gold", "amr": []any{"pwd", "otp"}, "auth_time": float64(script.Noon.Unix() - 300),
			"groups": []any{"sre"}, "org": map[string]any{"unit": "payments"}, "staff": true,
		}},
	}
	if l := s.Lines[0]; !reflect.DeepEqual(l.Request, first) || l.User != "ada" || l.Timed {
		t.Errorf("got %+v", l)
	}
	if l := s.Lines[1]; !l.Request.Plaintext || l.Because != "exception:shop/x" {
		t.Errorf("got %+v", l)
	}
	if l := s.Lines[2]; l.Request.Token.State != policy.TokenInvalid || l.Token != script.TokenExpired || !l.Request.Denied {
		t.Errorf("got %+v", l)
	}
	at := time.Date(2026, 3, 29, 1, 30, 0, 0, time.UTC)
	if l := s.Lines[3]; l.Request.Token.State != policy.TokenNone || !l.Timed || !l.Request.Time.Equal(at) {
		t.Errorf("got %+v", l)
	}
}

func TestParseRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"permit a -> web GET /":        "neither allow nor deny",
		"allow a web GET / by g":       "is not VERDICT",
		"allow a -> web GET / ":        "does not end in",
		"allow a -> web GET":           "no path",
		"deny a -> web":                "is not VERDICT",
		"deny a -> web GET / by g":     "does not end in",
		"deny A -> web GET /":          "DNS labels",
		"deny a -> web:X GET /":        "DNS label",
		"allow a -> web GET / by g,,h": "by:",

		"deny a -> web GET / as eve":             "no user eve",
		"deny a -> web GET / token odd":          "none of",
		"deny a -> web GET / header X-A=1":       "lower case",
		"deny a -> web GET / header x":           "not name=value",
		"deny a -> web GET / from here":          "unable to parse",
		"deny a -> web GET / at noon":            "cannot parse",
		"deny a -> web GET / authorizer allows":  "does not deny",
		"deny a -> web GET / upgrade":            "does not end in",
		"deny a -> web GET / on tuesday because": "does not end in",
	} {
		_, err := script.Parse("x", []byte(shop+line+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "decisions:2") {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
	for archive, want := range map[string]string{
		"-- x.yaml --\nkind: No\n-- decisions --\n": "ZT1",
		"-- x.txt --\n": "neither",
		"-- users --\nada: {sub: ada}\n-- decisions --\n":          "ada has no provider",
		"-- users --\nada: {provider: p, x: 1}\n-- decisions --\n": "field x not found",
		"": "no file decisions",
	} {
		if _, err := script.Parse("x", []byte(archive)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", archive, err, want)
		}
	}
}

func TestJudging(t *testing.T) {
	g, h := spec.Ref{Namespace: "shop", Name: "g"}, spec.Ref{Namespace: "shop", Name: "h"}
	by := script.Line{Allow: true, By: []spec.Ref{g, h}}
	deny := script.Line{Because: policy.ReasonForm}
	if err := by.Check(policy.Decision{Allowed: true, Reason: "grant:shop/g", Grants: []spec.Ref{g, h}}); err != nil {
		t.Error(err)
	}
	if err := deny.Check(policy.Decision{Reason: policy.ReasonForm}); err != nil {
		t.Error(err)
	}
	for _, d := range []policy.Decision{
		{},
		{Reason: policy.ReasonDefault},
		{Allowed: true, Reason: "grant:shop/g", Grants: []spec.Ref{g}},
		{Allowed: true, Reason: policy.ReasonForm},
	} {
		if by.Check(d) == nil || deny.Check(d) == nil {
			t.Errorf("%+v passes", d)
		}
	}
	if !by.Accepts(true, "grant:shop/h") || by.Accepts(false, "grant:shop/h") || by.Accepts(true, "grant:shop/x") {
		t.Error("one of several grants is enough, and no other")
	}
	if !deny.Accepts(false, "form") || deny.Accepts(false, "default") || deny.Accepts(true, "form") {
		t.Error("a denial is accepted by its reason alone")
	}
}
