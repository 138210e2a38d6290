package script_test

import (
	"reflect"
	"strings"
	"testing"

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
	}
	if l := s.Lines[0]; !reflect.DeepEqual(l.Request, web) || !l.Allow || l.Number != 4 || len(l.By) != 2 || l.By[0].String() != "other/g1" {
		t.Errorf("first line is %+v", l)
	}
	db := policy.Request{Service: spec.Ref{Namespace: "other", Name: "db"}, TCP: true}
	if l := s.Lines[1]; !reflect.DeepEqual(l.Request, db) || l.Allow || l.Because != policy.ReasonTransport {
		t.Errorf("second line is %+v", l)
	}
	grpc := policy.Request{CallerID: "spiffe://x/y", Service: spec.Ref{Namespace: "shop", Name: "q"}, Method: "POST", Path: "/p.S/M"}
	if l := s.Lines[2]; !reflect.DeepEqual(l.Request, grpc) || !l.GRPC || l.Because != policy.ReasonHealth {
		t.Errorf("third line is %+v", l)
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
	} {
		_, err := script.Parse("x", []byte(shop+line+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "decisions:2") {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
	for archive, want := range map[string]string{
		"-- x.yaml --\nkind: No\n-- decisions --\n": "ZT1",
		"-- x.txt --\n": "neither",
		"":              "no file decisions",
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
