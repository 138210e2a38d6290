package controlplane

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// stateOf is a state that holds documents and, for namespace shop, a proposal; more
// are documents that no file could say.
func stateOf(t *testing.T, documents, proposal string, more ...*ztv1.Document) *state.State {
	t.Helper()
	st, index := state.New(), uint64(0)
	apply := func(e *logv1.Entry) {
		index++
		e.Format, e.When = state.Format, timestamppb.New(gateStart)
		next, r := state.Apply(st, index, e)
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		st = next
	}
	puts := func(yaml string, more ...*ztv1.Document) (out []*logv1.Put) {
		docs, problems := spec.Parse([]spec.File{{Name: "f", Content: []byte(yaml)}})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for _, d := range more {
			docs = append(docs, &spec.Document{Document: d})
		}
		for _, d := range docs {
			k := d.Key()
			out = append(out, &logv1.Put{Key: &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}, Document: spec.Canonical(d)})
		}
		return out
	}
	apply(&logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "a", Role: "admin"}}}})
	apply(&logv1.Entry{Op: &logv1.Entry_Apply{Apply: &logv1.Apply{ValidatedAt: st.Revision(), Puts: puts(documents, more...)}}})
	if proposal != "" {
		apply(&logv1.Entry{Op: &logv1.Entry_Propose{Propose: &logv1.Propose{Namespaces: []string{"shop"}, Puts: puts(proposal)}}})
	}
	return st
}

func lookAt(t *testing.T, st *state.State, at time.Time) *served {
	t.Helper()
	s, err := look(view.NewCache(), st, at, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const outside1 = `apiVersion: ztmesh.dev/v1alpha1
kind: IdentityProvider
metadata: {namespace: mesh, name: staff}
spec: {issuer: "https://id.example", audiences: [shop], jwks: {uri: "https://keys.example:8443/jwks"}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: stripe}
spec: {external: {hosts: [api.stripe.example], port: 443}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: shop, name: near}
spec: {finding: reserved-address, subject: stripe, peers: [127.0.0.0/8], owner: o, reason: r, until: "2026-01-02T04:00:00Z"}
`

// TestHosts: what is to be resolved, the keys of providers among it, and which
// reserved addresses are accepted: those of an Exception until it ends, none of one
// that is only proposed.
func TestHosts(t *testing.T) {
	staff := host{cluster: "jwks/staff", name: "keys.example", port: 8443}
	stripe := host{cluster: "ext/shop/stripe/api.stripe.example", name: "api.stripe.example", port: 443}
	near := stripe
	near.allowed = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	check := func(what string, s *served, want ...host) {
		t.Helper()
		if diff := cmp.Diff(asHosts(want...), s.hosts(), cmp.AllowUnexported(host{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	end := time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC)
	st := stateOf(t, outside1, "")
	s := lookAt(t, st, gateStart)
	check("with an Exception", s, staff, near)
	if next, ok := s.next(); !ok || !next.Equal(end) {
		t.Errorf("it means something else at %v, %v", next, ok)
	}
	ended := lookAt(t, st, end)
	check("after its end", ended, staff, stripe)
	if _, ok := ended.next(); ok {
		t.Error("it will mean something else")
	}
	// Proposed: another service, with an Exception.
	s = lookAt(t, stateOf(t, outside1, `apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: other}
spec: {external: {hosts: [other.example], port: 443}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Exception
metadata: {namespace: shop, name: near}
spec: {finding: reserved-address, subject: other, peers: [127.0.0.0/8], owner: o, reason: r, until: "2026-01-02T04:00:00Z"}
`), gateStart)
	check("proposed", s, staff, near, host{cluster: "ext/shop/other/other.example", name: "other.example", port: 443})
}

// TestProposed: a proposal takes the place of its namespace's files; what operators
// wrote, and every other namespace, stays as it is; one that changes nothing is
// none.
func TestProposed(t *testing.T) {
	const files = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
`
	const elsewhere = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: bank, name: vault}
spec: {}
`
	if s := lookAt(t, stateOf(t, files+elsewhere, files), gateStart); s.shadow != nil {
		t.Errorf("a proposal that changes nothing: %v", s.proposed)
	}
	s := lookAt(t, stateOf(t, files+elsewhere, `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
`), gateStart)
	has := func(ref string) bool {
		parsed, err := spec.ParseRef(ref, "")
		if err != nil {
			t.Fatal(err)
		}
		_, ok := s.shadow.Workload(parsed)
		return ok
	}
	if s.shadow == nil || !has("shop/web") || has("shop/orders") || !has("bank/vault") {
		t.Fatalf("proposed: %v", s.proposed)
	}
	if len(s.proposed) != 2 {
		t.Errorf("it differs in %v", s.proposed)
	}
	var refs []string
	for _, ref := range s.touched(lookAt(t, stateOf(t, files+elsewhere, ""), gateStart), nil) {
		refs = append(refs, ref.String())
	}
	if diff := cmp.Diff([]string{"shop/orders", "shop/web"}, refs); diff != "" {
		t.Errorf("touched (-want +got):\n%s", diff)
	}

	// Of what an operator wrote, files know nothing.
	block := &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindBlock,
		Metadata: &ztv1.Metadata{Namespace: "shop", Name: "stop", Annotations: map[string]string{spec.OperatorAnnotation: spec.OperatorValue}},
		Spec:     &ztv1.Document_Block{Block: &ztv1.Block{Workloads: []string{"web"}, Reason: "r"}},
	}
	if s := lookAt(t, stateOf(t, files, files, block), gateStart); s.shadow != nil {
		t.Errorf("proposed without the operator's Block: %v", s.proposed)
	}
}

// TestTrust: whose certificates are accepted, and by which roots. The control
// plane's own domain is never listed, whatever a spec says.
func TestTrust(t *testing.T) {
	mesh := &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindMesh, Metadata: &ztv1.Metadata{Namespace: spec.MeshNamespace, Name: "mesh"},
		Spec: &ztv1.Document_Mesh{Mesh: &ztv1.Mesh{
			TrustDomain: "shop.example", TrustDomainAliases: []string{"old.example", "older.example"},
			Federation: []*ztv1.FederatedTrustDomain{
				{TrustDomain: "older.example", Bundle: "older"},
				{TrustDomain: "other.example", Bundle: "other"},
				{TrustDomain: "shop.example", Bundle: "forged"},
				{TrustDomain: "control.shop.example", Bundle: "forged"},
			},
		}},
	}
	s := lookAt(t, stateOf(t, workloadWeb, "", mesh), gateStart)
	want := map[string][]byte{
		"shop.example": []byte("roots"), "old.example": []byte("roots"), "older.example": []byte("older"), "other.example": []byte("other"),
	}
	if diff := cmp.Diff(want, s.trust([]byte("roots"))); diff != "" {
		t.Errorf("trust (-want +got):\n%s", diff)
	}
}

const workloadWeb = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
`
