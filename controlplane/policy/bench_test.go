package policy_test

import (
	"fmt"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// fleet is 10,000 workloads in 100 namespaces, each with five grants to it, four
// from single workloads and one from a namespace; beside them a mesh-wide grant, a
// provider, a segment for each ten namespaces, and a hundred Blocks.
func fleet() []*spec.Document {
	const workloads, namespaces = 10_000, 100
	var docs []*spec.Document
	add := func(kind, ns, name string, d *ztv1.Document) {
		d.ApiVersion, d.Kind, d.Metadata = spec.APIVersion, kind, &ztv1.Metadata{Namespace: ns, Name: name}
		docs = append(docs, &spec.Document{Document: d})
	}
	ns := func(i int) string { return fmt.Sprintf("ns%d", i%namespaces) }
	name := func(i int) string { return fmt.Sprintf("w%d", i) }
	for i := range workloads {
		add(spec.KindWorkload, ns(i), name(i), &ztv1.Document{Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{
			Serves: []*ztv1.Port{{Name: "http", Port: 8080, Protocol: "http"}},
		}}})
		for g := range 5 {
			of := (i*7 + g*131 + 1) % workloads
			from := &ztv1.Caller{Workloads: []string{ns(of) + "/" + name(of)}}
			to := &ztv1.Target{Services: []string{name(i)}, Methods: []string{"GET", "POST"}, Paths: []string{fmt.Sprintf("/v%d/*/items/**", g)}}
			switch g {
			case 3:
				from = &ztv1.Caller{Namespaces: []string{ns(i + 1)}}
			case 4:
				from.Users = &ztv1.Users{Provider: "corp", Claims: map[string]*ztv1.Strings{"tier": {Values: []string{"gold"}}}}
			}
			add(spec.KindGrant, ns(i), fmt.Sprintf("%s-g%d", name(i), g), &ztv1.Document{Spec: &ztv1.Document_Grant{Grant: &ztv1.Grant{From: from, To: to}}})
		}
	}
	add(spec.KindGrant, "mesh", "scrape", &ztv1.Document{Spec: &ztv1.Document_Grant{Grant: &ztv1.Grant{
		From: &ztv1.Caller{Workloads: []string{"ns0/w0"}}, To: &ztv1.Target{AllServices: true, Ports: []string{"http"}},
	}}})
	add(spec.KindIdentityProvider, "mesh", "corp", &ztv1.Document{Spec: &ztv1.Document_IdentityProvider{IdentityProvider: &ztv1.IdentityProvider{
		Issuer: "https://corp.example", Audiences: []string{"shop"}, Jwks: &ztv1.JWKS{Uri: "https://corp.example/keys"}, Claims: []*ztv1.Claim{{Name: "tier"}},
	}}})
	for i := range 100 {
		add(spec.KindBlock, ns(i), "b", &ztv1.Document{Spec: &ztv1.Document_Block{Block: &ztv1.Block{Workloads: []string{name(i)}, Reason: "a test"}}})
	}
	return docs
}

// BenchmarkIndex is what each question costs in a fleet of 10,000 workloads and
// 50,000 grants.
func BenchmarkIndex(b *testing.B) {
	docs := fleet()
	ix := policy.New("td.example", docs)
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			policy.New("td.example", docs)
		}
	})
	b.Run("rules-of-all", func(b *testing.B) {
		for b.Loop() {
			ix.Workloads(func(w *policy.Workload) bool {
				ix.Rules(w.Ref, "http")
				return true
			})
		}
	})
	b.Run("all-of-all", func(b *testing.B) {
		for b.Loop() {
			ix.Workloads(func(w *policy.Workload) bool {
				ix.Rules(w.Ref, "http")
				ix.Callers(w.Ref, "http")
				ix.Blocks(w.Ref, "http")
				ix.Providers(w.Ref)
				ix.Destinations(w.Ref)
				ix.Externals(w.Ref)
				ix.Calls(w.Ref)
				return true
			})
		}
	})
	edit := []*spec.Document{docs[1], docs[1]}
	changed := *docs[1]
	changed.Document = &ztv1.Document{ApiVersion: spec.APIVersion, Kind: spec.KindGrant, Metadata: docs[1].GetMetadata(), Spec: &ztv1.Document_Grant{Grant: &ztv1.Grant{
		From: &ztv1.Caller{Workloads: []string{"ns5/w5"}}, To: docs[1].GetGrant().GetTo(),
	}}}
	edit[0] = &changed
	b.Run("one-grant", func(b *testing.B) {
		touched, i := 0, 0
		was := ix
		for b.Loop() {
			next := was.With(edit[i%2:i%2+1], nil)
			touched = len(next.Touched(was, []spec.Key{docs[1].Key()}))
			was, i = next, i+1
		}
		b.ReportMetric(float64(touched), "workloads")
	})
	b.Run("decide", func(b *testing.B) {
		r := policy.Request{CallerID: "spiffe://td.example/ns/ns2/sa/w2", Service: spec.Ref{Namespace: "ns1", Name: "w1"}, Method: "GET", Path: "/v3/x/items/y"}
		if d := ix.Decide(r); d.Allowed {
			b.Fatalf("%+v", d) // w2 is blocked
		}
		r.CallerID = "spiffe://td.example/ns/ns2/sa/w102"
		if d := ix.Decide(r); !d.Allowed {
			b.Fatalf("%+v", d)
		}
		for b.Loop() {
			ix.Decide(r)
		}
	})
}
