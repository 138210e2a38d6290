package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// literal reads documents word by word, without what package policy makes of
// them: an upper bound of what each may allow.
type literal struct {
	docs map[spec.Key]*spec.Document
	mesh *ztv1.Mesh
}

func newLiteral(docs []*spec.Document) literal {
	l := literal{docs: map[spec.Key]*spec.Document{}, mesh: &ztv1.Mesh{}}
	for _, d := range docs {
		l.docs[d.Key()] = d
		if d.GetMesh() != nil {
			l.mesh = d.GetMesh()
		}
	}
	return l
}

func (l literal) get(kind string, ref spec.Ref) *ztv1.Document {
	if d := l.docs[spec.Key{Kind: kind, Namespace: ref.Namespace, Name: ref.Name}]; d != nil {
		return d.Document
	}
	return nil
}

// workload is the workload that an identity is, if it is one of the mesh's.
func (l literal) workload(id string) (spec.Ref, bool) {
	for _, domain := range append([]string{specgen.TrustDomain}, l.mesh.GetTrustDomainAliases()...) {
		if rest, ok := strings.CutPrefix(id, "spiffe://"+domain+"/ns/"); ok {
			ns, name, ok := strings.Cut(rest, "/sa/")
			return spec.Ref{Namespace: ns, Name: name}, ok
		}
	}
	return spec.Ref{}, false
}

func names(list []string, namespace string, ref spec.Ref) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		named, err := spec.ParseRef(s, namespace)
		return err == nil && named == ref
	})
}

// from tells whether from may mean the caller.
func (l literal) from(from *ztv1.Caller, namespace, id string) bool {
	if slices.Contains(from.GetSpiffeIds(), id) {
		return true
	}
	ref, own := l.workload(id)
	if !own {
		return false
	}
	if l.get(spec.KindWorkload, ref) == nil {
		return false
	}
	return from.GetAnyWorkload() || slices.Contains(from.GetNamespaces(), ref.Namespace) || names(from.GetWorkloads(), namespace, ref) ||
		slices.Contains(from.GetSpiffeIds(), policy.ID(specgen.TrustDomain, ref)) ||
		slices.ContainsFunc(l.mesh.GetTrustDomainAliases(), func(alias string) bool { return slices.Contains(from.GetSpiffeIds(), policy.ID(alias, ref)) }) ||
		slices.ContainsFunc(from.GetSegments(), func(name string) bool {
			s := l.get(spec.KindSegment, spec.Ref{Namespace: spec.MeshNamespace, Name: name}).GetSegment()
			return slices.Contains(s.GetNamespaces(), ref.Namespace) || names(s.GetWorkloads(), "", ref)
		})
}

// leads tells whether a name may lead to where ref is judged.
func (l literal) leads(name, ref spec.Ref) bool {
	return name == ref || names(l.get(spec.KindService, name).GetService().GetWorkloads(), name.Namespace, ref)
}

func (l literal) to(to *ztv1.Target, namespace string, ref spec.Ref) bool {
	if namespace == spec.MeshNamespace {
		return to.GetAllServices() || slices.Contains(to.GetNamespaces(), ref.Namespace)
	}
	return namespace == ref.Namespace && slices.ContainsFunc(to.GetServices(), func(s string) bool {
		name, err := spec.ParseRef(s, namespace)
		return err == nil && l.leads(name, ref)
	})
}

// says is why a grant cannot have allowed r; empty if it may have.
func (l literal) says(d *ztv1.Document, r policy.Request) string {
	g, ns := d.GetGrant(), d.GetMetadata().GetNamespace()
	when := g.GetWhen()
	switch {
	case g == nil:
		return "it does not exist"
	case g.GetMode() == "shadow":
		return "it is a shadow"
	case !l.from(g.GetFrom(), ns, r.CallerID):
		return "the caller is another one"
	case !l.to(g.GetTo(), ns, r.Service):
		return "it is to something else"
	case r.Port != "" && g.GetTo().GetPorts() != nil && !slices.Contains(g.GetTo().GetPorts(), r.Port):
		return "it is to another port"
	case g.GetUntil() != nil && !r.Time.Before(g.GetUntil().AsTime()):
		return "it has ended"
	case (len(g.GetTo().GetUpgrades()) > 0) != (r.Upgrade != ""):
		return "upgrades"
	case (len(when.GetWindows()) > 0 || g.GetUntil() != nil) && r.Time.IsZero():
		return "there is no time"
	}
	if u := g.GetFrom().GetUsers(); u != nil {
		sub, _ := r.Token.Claims["sub"].(string)
		if r.Token.State != policy.TokenValid || r.Token.Provider != u.GetProvider() || u.GetSubjects() != nil && !slices.Contains(u.GetSubjects(), sub) {
			return "the user is another one"
		}
	}
	for name := range when.GetHeaders() {
		if !slices.ContainsFunc(r.Headers, func(h policy.Header) bool { return h.Name == name }) {
			return "it needs a header"
		}
	}
	if methods := g.GetTo().GetMethods(); methods != nil && !slices.Contains(methods, r.Method) && r.Method != "POST" {
		return "the method is another one"
	}
	return ""
}

// blocks is why a Block must have denied r; empty if it need not.
func (l literal) blocks(d *spec.Document, r policy.Request) string {
	b, ns := d.GetBlock(), d.Ref().Namespace
	if b == nil || b.GetUntil() != nil && !r.Time.Before(b.GetUntil().AsTime()) {
		return ""
	}
	ref, own := l.workload(r.CallerID)
	mine := ns == spec.MeshNamespace || ns == r.Service.Namespace || own && ref.Namespace == ns
	where := len(b.GetServices()) == 0 || slices.ContainsFunc(b.GetServices(), func(s string) bool {
		name, err := spec.ParseRef(s, ns)
		// A name that is a Service's and a serving Workload's leads nowhere.
		return err == nil && (name == r.Service && l.get(spec.KindService, name) == nil)
	})
	whom := own && (slices.Contains(b.GetNamespaces(), ref.Namespace) || names(b.GetWorkloads(), ns, ref)) ||
		slices.Contains(b.GetSpiffeIds(), r.CallerID) && (own || ns == spec.MeshNamespace || ns == r.Service.Namespace)
	if mine && where && whom {
		return "it is blocked by " + d.Key().String()
	}
	return ""
}

// TestDecideIsTotal: whatever is asked of whatever documents, also of those that
// spec.Check refuses, there is a verdict with a reason; and what is allowed is
// allowed by documents that say so, word by word, and that no Block contradicts.
func TestDecideIsTotal(t *testing.T) {
	allowed, blocked := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Any(t)
		ix, words := policy.New(specgen.TrustDomain, docs), newLiteral(docs)
		requests := reqgen.New(specgen.TrustDomain, docs)
		services := requests.Services()
		if len(services) == 0 {
			return
		}
		for range 8 {
			random := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "random") }
			made, ok := requests.To(random, rapid.SampledFrom(services).Draw(t, "service"))
			if !ok {
				continue
			}
			r := made.Request
			if random(10) == 9 {
				r.Path, r.Method, r.Authority = rapid.String().Draw(t, "path"), rapid.String().Draw(t, "method"), rapid.String().Draw(t, "authority")
				r.CallerID = rapid.String().Draw(t, "caller")
			}
			d := ix.Decide(r)
			if (len(d.Hints) == 0) != d.Allowed || len(d.Hints) > 3 || (d.Grants != nil) != strings.HasPrefix(d.Reason, "grant:") {
				t.Fatalf("%+v: %+v", r, d)
			}
			if !sound(d) {
				t.Fatalf("%+v: the reason does not fit: %+v", r, d)
			}
			if !d.Allowed {
				blocked += len(d.Blocks)
				continue
			}
			allowed++
			for _, g := range d.Grants {
				if why := words.says(words.get(spec.KindGrant, g), r); why != "" {
					t.Fatalf("%+v: allowed by %s, but %s", r, g, why)
				}
			}
			for _, doc := range docs {
				if why := words.blocks(doc, r); why != "" && !r.Plaintext {
					t.Fatalf("%+v: %+v, but %s", r, d, why)
				}
			}
		}
	})
	if allowed == 0 || blocked == 0 {
		t.Errorf("%d requests were allowed, %d blocked", allowed, blocked)
	}
}

// sound tells whether verdict and reason of a decision belong together.
func sound(d policy.Decision) bool {
	kind, ref, named := strings.Cut(d.Reason, ":")
	switch kind {
	case policy.ReasonTransport, policy.ReasonForm, policy.ReasonToken, policy.ReasonDefault:
		return !d.Allowed && !named
	case policy.ReasonHealth:
		return d.Allowed && !named
	case "block":
		return !d.Allowed && ref == d.Blocks[0].String()
	case "external":
		return !d.Allowed && ref == d.Asks.String()
	case "exception":
		return d.Allowed
	case "grant":
		return d.Allowed && ref == d.Grants[0].String()
	}
	return false
}

// TestBlocksOnlyDeny is CVE-2021-36213: Blocks, of whomever, allow nothing that
// is not allowed without them, at any time; and what they deny, they are named
// for, unless they are of users, which makes tokens judged.
func TestBlocksOnlyDeny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Any(t)
		ix := policy.New(specgen.TrustDomain, docs)
		bare, users := ix, false
		for _, d := range docs {
			if d.GetBlock() != nil {
				users = users || d.GetBlock().GetUsers() != nil
				bare = bare.With(nil, []spec.Key{d.Key()})
			}
		}
		requests := reqgen.New(specgen.TrustDomain, docs)
		services := requests.Services()
		if len(services) == 0 {
			return
		}
		random := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "random") }
		for range 4 {
			made, ok := requests.To(random, rapid.SampledFrom(services).Draw(t, "service"))
			if !ok {
				continue
			}
			with, without := ix.Decide(made.Request), bare.Decide(made.Request)
			if with.Allowed && !without.Allowed || !users && without.Allowed && !with.Allowed && with.Blocks == nil {
				t.Fatalf("%+v: %+v with Blocks, %+v without", made.Request, with, without)
			}
		}
	})
}

// TestNoTimeNoCondition: a request without a time matches nothing that the time
// narrows.
func TestNoTimeNoCondition(t *testing.T) {
	ix := policy.New("shop.example", parse(t, shop+`---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: for-ever}
spec:
  from: {workloads: [web]}
  to: {services: [orders], paths: [/t]}
  when: {windows: [{zone: UTC, start: "00:00", end: "24:00"}]}
`))
	r := policy.Request{CallerID: "spiffe://shop.example/ns/shop/sa/web", Service: spec.Ref{Namespace: "shop", Name: "orders"}, Method: "GET", Path: "/t"}
	if d := ix.Decide(r); d.Allowed {
		t.Errorf("got %+v", d)
	}
	r.Time = time.Unix(0, 0)
	if d := ix.Decide(r); !d.Allowed {
		t.Errorf("got %+v", d)
	}
}
