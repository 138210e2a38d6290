package controlplane_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// document is YAML of one document.
func document(kind, namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: %s\nmetadata: {namespace: %s, name: %s}\nspec: %s\n", kind, namespace, name, spec)
}

// call makes one call of the API as whoever holds the pair, by gRPC and by REST,
// which must answer alike, and returns the answer by gRPC.
func (c *cluster) call(pair *identity.KeyPair, req proto.Message) error {
	c.t.Helper()
	client := c.as(c.Servers[0], pair)
	var err error
	var method, path, body string
	switch r := req.(type) {
	case *ztv1.ApplyRequest:
		_, err = client.Apply(c.ctx(), r)
		method, path = "POST", "/v1alpha1/apply"
	case *ztv1.BlockRequest:
		_, err = client.Block(c.ctx(), r)
		method, path = "POST", "/v1alpha1/blocks"
	case *ztv1.UnblockRequest:
		_, err = client.Unblock(c.ctx(), r)
		method, path = "DELETE", "/v1alpha1/blocks/"+r.Namespace+"/"+r.Name
	case *ztv1.EndShadowRequest:
		_, err = client.EndShadow(c.ctx(), r)
		method, path = "DELETE", "/v1alpha1/shadow/"+r.Namespace
	default:
		c.t.Fatalf("no route of %T", req)
	}
	if method == "POST" {
		b, jerr := protojson.Marshal(req)
		c.check(jerr)
		body = string(b)
	}
	code, answer := c.rest(pair, method, path, body)
	if got := fmt.Sprint(answer["code"]); err != nil && got != fmt.Sprint(int(status.Code(err))) || err == nil && code != 200 {
		c.t.Errorf("REST: %d %v, gRPC: %v", code, answer, err)
	}
	var byREST []string
	details, _ := answer["details"].([]any)
	for _, d := range details {
		all, _ := d.(map[string]any)["problems"].([]any)
		for _, p := range all {
			byREST = append(byREST, fmt.Sprint(p.(map[string]any)["code"]))
		}
	}
	if !slices.Equal(byREST, problems(err)) {
		c.t.Errorf("REST: problems %v, gRPC: %v", byREST, problems(err))
	}
	return err
}

// meshwide is what stands above the namespaces: shop is a segment that admits
// nobody else.
var meshwide = document("Segment", "mesh", "sales", "{namespaces: [shop]}") +
	document("IdentityProvider", "mesh", "corp", `{issuer: "https://id.example", audiences: [shop], jwks: {uri: "https://id.example/keys"}}`)

// TestEscalation is CVE-2021-38698 for the whole language: what SPEC.md's "Who
// decides about what" keeps from an editor of another namespace is refused,
// whichever method or field says it.
func TestEscalation(t *testing.T) {
	c := newCluster(t, 1, nil)
	vault := document("Workload", "bank", "vault", "{serves: [{name: http, port: 8080, protocol: http}]}")
	bank := vault + document("Block", "bank", "theirs", "{workloads: [vault], reason: r}")
	c.Submit(shop + bank + meshwide)
	for _, ns := range []string{"bank", "mesh"} {
		_, err := c.Admin().Block(c.ctx(), blockRequest(ns, "stop", &ztv1.Block{Workloads: []string{"bank/vault"}}))
		c.check(err)
	}
	_, err := c.Admin().Apply(c.ctx(), shadowRequest(bank+document("Segment", "mesh", "none", "{namespaces: [bank]}")+meshwide))
	c.check(err)
	keyed := applyRequest(bank)
	keyed.IdempotencyKey = "of-the-bank"
	keyed.Merge, keyed.Shadow = true, true
	_, err = c.Admin().Apply(c.ctx(), keyed)
	c.check(err)
	before := c.revision()
	ed := c.addAdmin("ed", "editor", "shop")

	theirs := []string{"bank/vault"}
	forbidden := map[string]proto.Message{
		"a Block in the bank":      blockRequest("bank", "mine", &ztv1.Block{Workloads: []string{"vault"}}),
		"a Block in the mesh":      blockRequest("mesh", "mine", &ztv1.Block{Workloads: theirs}),
		"a Block in a new one":     blockRequest("bank2", "mine", &ztv1.Block{Workloads: theirs}),
		"replacing the bank's":     blockRequest("bank", "stop", &ztv1.Block{Workloads: []string{"vault"}}),
		"lifting the bank's":       &ztv1.UnblockRequest{Namespace: "bank", Name: "stop"},
		"lifting the bank's file":  &ztv1.UnblockRequest{Namespace: "bank", Name: "theirs"},
		"lifting the mesh's":       &ztv1.UnblockRequest{Namespace: "mesh", Name: "stop"},
		"lifting what is not":      &ztv1.UnblockRequest{Namespace: "bank", Name: "ghost"},
		"ending the bank's shadow": &ztv1.EndShadowRequest{Namespace: "bank"},
		"ending the mesh's shadow": &ztv1.EndShadowRequest{Namespace: "mesh"},
		"ending what is not":       &ztv1.EndShadowRequest{Namespace: "bank2"},
		"the bank's key":           proto.CloneOf(keyed),
	}
	for _, doc := range []string{
		meshwide, document("Mesh", "mesh", "mesh", "{trustDomain: shop.example, svidTTL: 1m}"),
		document("Grant", "mesh", "wide", "{from: {workloads: [shop/web]}, to: {allServices: true, ports: [http]}}"),
		document("Grant", "bank", "let-me-in", "{from: {workloads: [shop/web]}, to: {services: [vault]}}"),
		document("Exception", "bank", "plain", `{finding: plaintext, subject: "vault:http", peers: [10.0.0.0/8], owner: ed, reason: r, until: 2100-01-01T00:00:00Z}`),
		document("Service", "bank", "mine", "{workloads: [vault]}"),
	} {
		for _, shadow := range []bool{false, true} {
			for _, merge := range []bool{false, true} {
				for _, dry := range []bool{false, true} {
					req := applyRequest(shop + doc)
					req.Shadow, req.Merge, req.DryRun = shadow, merge, dry
					forbidden[fmt.Sprintf("%s of shop and elsewhere (shadow %v, merge %v, dry %v)", strings.Fields(doc)[4], shadow, merge, dry)+doc] = req
				}
			}
		}
	}
	for what, req := range forbidden {
		if err := c.call(ed, req); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}

	// What an editor may write in its own namespace says nothing about others.
	wrong := map[string]proto.Message{}
	for what, doc := range map[string]string{
		"a grant to the bank":               document("Grant", "shop", "x", "{from: {workloads: [web]}, to: {services: [bank/vault]}}"),
		"a grant to a namespace":            document("Grant", "shop", "x", "{from: {workloads: [web]}, to: {namespaces: [bank], ports: [http]}}"),
		"a grant to its own namespace":      document("Grant", "shop", "x", "{from: {workloads: [web]}, to: {namespaces: [shop], ports: [http]}}"),
		"a grant to all":                    document("Grant", "shop", "x", "{from: {workloads: [web]}, to: {allServices: true, ports: [http]}}"),
		"a grant past the segment":          document("Grant", "shop", "x", "{from: {workloads: [bank/vault]}, to: {services: [orders]}}"),
		"a shadow grant past the segment":   document("Grant", "shop", "x", "{from: {namespaces: [bank]}, to: {services: [orders]}, mode: shadow}"),
		"a foreign identity past it":        document("Grant", "shop", "x", `{from: {spiffeIDs: ["spiffe://shop.example/ns/bank/sa/vault"]}, to: {services: [orders]}}`),
		"a service of the bank's workloads": document("Service", "shop", "x", "{workloads: [bank/vault]}"),
		"an exception for the bank":         document("Exception", "shop", "x", `{finding: plaintext, subject: "bank/vault:http", peers: [10.0.0.0/8], owner: ed, reason: r, until: 2100-01-01T00:00:00Z}`),
		"an exception for a provider":       document("Exception", "shop", "x", `{finding: plaintext-jwks, subject: corp, owner: ed, reason: r, until: 2100-01-01T00:00:00Z}`),
		"a segment":                         document("Segment", "shop", "x", "{namespaces: [bank]}"),
		"a provider":                        document("IdentityProvider", "shop", "x", `{issuer: "https://evil.example", audiences: [a], jwks: {uri: "https://evil.example/keys"}}`),
		"a mesh":                            document("Mesh", "shop", "mesh", "{trustDomain: shop.example}"),
		"the operator's mark":               document("Block", "shop", "x, annotations: {ztmesh.dev/managed-by: operator}", "{workloads: [web], reason: r}"),
		"a reserved label":                  document("Block", "shop", "x, labels: {ztmesh.dev/x: y}", "{workloads: [web], reason: r}"),
	} {
		for _, shadow := range []bool{false, true} {
			req := applyRequest(shop + doc)
			req.Shadow = shadow
			wrong[fmt.Sprintf("%s, shadow %v", what, shadow)] = req
		}
	}
	for what, b := range map[string]*ztv1.Block{
		"callers":              {Workloads: theirs},
		"callers, own service": {Workloads: theirs, Services: []string{"bank/vault"}},
		"a namespace":          {Namespaces: []string{"bank"}},
		"both namespaces":      {Namespaces: []string{"shop", "bank"}},
		"a service":            {Services: theirs},
		"one of two services":  {Services: []string{"orders", "bank/vault"}},
		"all to one of two":    {Workloads: theirs, Services: append([]string{"orders"}, theirs...)},
		"the trust domain":     {TrustDomains: []string{"shop.example"}},
		"an ID":                {SpiffeIds: []string{"spiffe://shop.example/ns/bank/sa/vault"}},
		"a user everywhere":    {Users: &ztv1.BlockedUsers{Provider: "corp", Subjects: []string{"ceo"}}},
	} {
		b.Reason = "r"
		wrong["a Block of "+what] = blockRequest("shop", "x", b)
		yaml, err := protojson.Marshal(b)
		c.check(err)
		wrong["a file's Block of "+what] = applyRequest(shop + document("Block", "shop", "x", string(yaml)))
	}
	for what, req := range wrong {
		err := c.call(ed, req)
		if status.Code(err) != codes.InvalidArgument || len(problems(err)) == 0 {
			t.Errorf("%s: %v", what, err)
		}
		if has(err, "ZT4003") {
			t.Errorf("%s: only the compiler has found it", what)
		}
	}

	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
	if got := c.proposed(); !slices.Equal(got, []string{"bank", "mesh"}) {
		t.Errorf("proposed for %v", got)
	}
	// In its own namespace it may, and what it reads is everybody's.
	c.check(c.call(ed, blockRequest("shop", "mine", &ztv1.Block{Workloads: []string{"web"}, Services: []string{"orders"}})))
	c.check(c.call(ed, blockRequest("shop", "no-callers", &ztv1.Block{Workloads: theirs, Services: []string{"orders"}})))
	c.check(c.call(ed, blockRequest("shop", "no-calls", &ztv1.Block{Workloads: []string{"web"}, Services: theirs})))
	_, err = c.as(c.Servers[0], ed).Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "mine"})
	c.check(err)
	c.check(c.call(ed, shadowRequest(shop)))
	_, err = c.as(c.Servers[0], ed).EndShadow(c.ctx(), &ztv1.EndShadowRequest{Namespace: "shop"})
	c.check(err)
	_, err = c.as(c.Servers[0], ed).GetShadow(c.ctx(), &ztv1.GetShadowRequest{Namespace: "bank"})
	c.check(err)
}
