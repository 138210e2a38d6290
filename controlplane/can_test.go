package controlplane_test

import (
	"encoding/pem"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// contextual is a service whose grants each ask for something else of a request.
func contextual(ends time.Time, partnerRoots string) string {
	return document("Workload", "shop", "web", "{}") +
		document("Workload", "shop", "orders", `{serves: [{name: http, port: 8080, protocol: http}], externalAuthorizer: {target: "127.0.0.1:9191"}}`) +
		document("Workload", "shop", "stock", "{serves: [{name: http, port: 8080, protocol: http}]}") +
		document("IdentityProvider", "mesh", "corp", `{issuer: "https://id.example", audiences: [shop], jwks: {uri: "https://id.example/keys"}, claims: [{name: groups, kind: list}]}`) +
		document("Grant", "shop", "by-user", "{from: {workloads: [web], users: {provider: corp, claims: {groups: [sre]}}}, to: {services: [orders], methods: [GET]}}") +
		document("Grant", "shop", "by-time", "{from: {workloads: [web]}, to: {services: [stock], methods: [GET]}, until: "+ends.Format(time.RFC3339)+"}") +
		document("Grant", "shop", "by-header", "{from: {workloads: [web]}, to: {services: [stock], methods: [PUT]}, when: {headers: {x-team: [ops]}}}") +
		document("Grant", "shop", "by-peer", "{from: {workloads: [web]}, to: {services: [stock], methods: [POST]}, when: {sourceCIDRs: [10.1.0.0/16]}}") +
		document("Grant", "shop", "by-id", `{from: {spiffeIDs: ["spiffe://partner.example/ns/x/sa/y"]}, to: {services: [stock], methods: [DELETE]}}`) +
		document("Mesh", "mesh", "mesh", fmt.Sprintf("{trustDomain: shop.example, federation: [{trustDomain: partner.example, bundle: %q}]}", partnerRoots))
}

// TestCanKnowsTheContext: who bears what token, when, from where and with which
// headers.
func TestCanKnowsTheContext(t *testing.T) {
	c, ahead := clocked(t)
	partner, err := identity.NewRoot("partner.example", identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	ends := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	c.Submit(contextual(ends, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: partner.Certificate().Raw}))))
	sre := &ztv1.User{Provider: "corp", Subject: "ada", Claims: map[string]*ztv1.Strings{"groups": {Values: []string{"dev", "sre"}}}}
	dev := &ztv1.User{Provider: "corp", Subject: "bob", Claims: map[string]*ztv1.Strings{"groups": {Values: []string{"dev"}}}}
	for what, tt := range map[string]struct {
		req    *ztv1.CanRequest
		reason string
		asks   string
	}{
		"no user":           {&ztv1.CanRequest{Caller: "shop/web", Request: "GET orders /7"}, "default", ""},
		"a user":            {&ztv1.CanRequest{Caller: "shop/web", Request: "GET orders /7", User: sre}, "grant:shop/by-user", "shop/orders"},
		"another user":      {&ztv1.CanRequest{Caller: "shop/web", Request: "GET orders /7", User: dev}, "default", ""},
		"now":               {&ztv1.CanRequest{Caller: "shop/web", Request: "GET stock /7"}, "grant:shop/by-time", ""},
		"before its end":    {&ztv1.CanRequest{Caller: "shop/web", Request: "GET stock /7", At: timestamppb.New(ends.Add(-1))}, "grant:shop/by-time", ""},
		"at its end":        {&ztv1.CanRequest{Caller: "shop/web", Request: "GET stock /7", At: timestamppb.New(ends)}, "default", ""},
		"no header":         {&ztv1.CanRequest{Caller: "shop/web", Request: "PUT stock /7"}, "default", ""},
		"a header":          {&ztv1.CanRequest{Caller: "shop/web", Request: "PUT stock /7", Headers: map[string]string{"x-team": "ops"}}, "grant:shop/by-header", ""},
		"another header":    {&ztv1.CanRequest{Caller: "shop/web", Request: "PUT stock /7", Headers: map[string]string{"x-team": "ops,dev"}}, "default", ""},
		"loopback":          {&ztv1.CanRequest{Caller: "shop/web", Request: "POST stock /7"}, "default", ""},
		"a peer":            {&ztv1.CanRequest{Caller: "shop/web", Request: "POST stock /7", Source: "10.1.2.3"}, "grant:shop/by-peer", ""},
		"another peer":      {&ztv1.CanRequest{Caller: "shop/web", Request: "POST stock /7", Source: "10.2.2.3"}, "default", ""},
		"a federated one":   {&ztv1.CanRequest{Caller: "spiffe://partner.example/ns/x/sa/y", Namespace: "shop", Request: "DELETE stock /7"}, "grant:shop/by-id", ""},
		"a foreign one":     {&ztv1.CanRequest{Caller: "spiffe://evil.example/ns/x/sa/y", Namespace: "shop", Request: "DELETE stock /7"}, "transport", ""},
		"its own ID":        {&ztv1.CanRequest{Caller: "spiffe://shop.example/ns/shop/sa/web", Namespace: "shop", Request: "GET stock /7"}, "grant:shop/by-time", ""},
		"by full names too": {&ztv1.CanRequest{Caller: "web", Namespace: "shop", Request: "GET shop/stock /7"}, "grant:shop/by-time", ""},
	} {
		resp, err := c.Admin().Can(c.ctx(), tt.req)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if resp.Reason != tt.reason || resp.Asks != tt.asks || resp.Allowed != (len(resp.Grants) > 0) {
			t.Errorf("%s: %v, want %s, asks %q", what, resp, tt.reason, tt.asks)
		}
		if !resp.Allowed && len(resp.Hints) == 0 {
			t.Errorf("%s: denied without a hint", what)
		}
	}
	for what, req := range map[string]*ztv1.CanRequest{
		"no provider":      {Caller: "shop/web", Request: "GET orders /7", User: &ztv1.User{Provider: "none"}},
		"no address":       {Caller: "shop/web", Request: "GET orders /7", Source: "here"},
		"no time":          {Caller: "shop/web", Request: "GET orders /7", At: &timestamppb.Timestamp{Seconds: 1 << 60}},
		"no request":       {Caller: "shop/web", Request: "GET"},
		"no caller":        {Caller: "a b", Request: "GET orders /7"},
		"no SPIFFE ID":     {Caller: "spiffe://", Request: "GET shop/orders /7"},
		"a bad header":     {Caller: "shop/web", Request: "GET orders /7", Headers: map[string]string{"X-Team": "ops"}},
		"a pseudo-header":  {Caller: "shop/web", Request: "GET orders /7", Headers: map[string]string{":path": "/8"}},
		"an empty header":  {Caller: "shop/web", Request: "GET orders /7", Headers: map[string]string{"": "x"}},
		"a forged token":   {Caller: "shop/web", Request: "GET orders /7", Headers: map[string]string{"authorization": "Bearer x"}},
		"no such provider": {Caller: "shop/web", Request: "GET orders /7", User: &ztv1.User{}},
	} {
		_, err := c.Admin().Can(c.ctx(), req)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	// By REST, and by default the time is that of the server's clock.
	ahead.Store(int64(2 * time.Hour))
	code, answer := c.rest(c.AdminPair(), "POST", "/v1alpha1/can", `{"caller":"shop/web","request":"GET stock /7"}`)
	if code != 200 || answer["reason"] != "default" {
		t.Errorf("after its end: %d %v", code, answer)
	}
	code, answer = c.rest(c.AdminPair(), "POST", "/v1alpha1/can", `{"caller":"shop/web","request":"GET orders /7","at":"2030-01-01T00:00:00Z",
		"user":{"provider":"corp","claims":{"groups":{"values":["sre"]}}}}`)
	if grants, _ := answer["grants"].([]any); code != 200 || !slices.Equal(grants, []any{"shop/by-user"}) || answer["asks"] != "shop/orders" {
		t.Errorf("by REST: %d %v", code, answer)
	}
}
