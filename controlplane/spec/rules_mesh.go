package spec

import (
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (r *ruler) mesh(m *ztv1.Mesh) {
	foreign := func(path, td string) bool {
		switch {
		case !isTrustDomain(td):
			r.say(codeBadName, path, trustDomainHint, "%s is not a trust domain", show(td))
		case td == m.GetTrustDomain():
			r.say(codeForeignDomain, path, "", "%s is the mesh's own trust domain", td)
		case strings.HasPrefix(td, controlPrefix):
			r.say(codeForeignDomain, path, "", "%s is the trust domain of a control plane", td)
		default:
			return true
		}
		return false
	}
	aliases := map[string]bool{}
	for i, td := range m.GetTrustDomainAliases() {
		path := index("spec.trustDomainAliases", i)
		if foreign(path, td) && aliases[td] {
			r.say(codeForeignDomain, path, "", "%s stands twice", td)
		}
		aliases[td] = true
	}
	federated := map[string]bool{}
	for i, f := range m.GetFederation() {
		path := index("spec.federation", i)
		if foreign(path+".trustDomain", f.GetTrustDomain()) && federated[f.GetTrustDomain()] {
			r.say(codeForeignDomain, path+".trustDomain", "", "%s stands twice", f.GetTrustDomain())
		}
		federated[f.GetTrustDomain()] = true
		r.ca(path+".bundle", f.GetBundle())
	}
}

// controlPrefix and a trust domain is the trust domain of its control plane,
// administrators and nodes.
const controlPrefix = "control."

func (r *ruler) segment(s *ztv1.Segment) {
	r.labels("spec.namespaces", s.GetNamespaces())
	for i, w := range s.GetWorkloads() {
		if _, err := ParseRef(w, ""); err != nil {
			r.say(codeReference, index("spec.workloads", i), "Write namespace/name.", "%v", err)
		}
	}
	r.labels("spec.admits", s.GetAdmits())
	if s.GetRequireUser() != "" {
		r.label("spec.requireUser", s.GetRequireUser())
	}
}

func (r *ruler) provider(p *ztv1.IdentityProvider) {
	if u, err := parseURL(p.GetIssuer()); err != nil {
		r.say(codeURL, "spec.issuer", "", "%v", err)
	} else if u.RawQuery != "" || u.ForceQuery {
		r.say(codeURL, "spec.issuer", "", "an issuer has no query")
	}
	r.notEmpty("spec.audiences", p.GetAudiences())
	r.jwks(p.GetJwks())
	declared := map[string]string{"sub": "string"}
	for i, c := range p.GetClaims() {
		path := index("spec.claims", i)
		_, twice := declared[c.GetName()]
		switch {
		case slices.Contains([]string{"sub", "acr", "amr"}, c.GetName()):
			r.say(codeClaimTwice, path+".name", "Remove it; grants have a field for it.", "%s is declared of itself", c.GetName())
		case twice:
			r.say(codeClaimTwice, path+".name", "", "the claim %s is declared twice", c.GetName())
		}
		declared[c.GetName()] = c.GetKind()
		r.notEmpty(path+".path", c.GetPath())
	}
	for _, name := range sortedKeys(p.GetForward().GetHeaders()) {
		path, claim := key("spec.forward.headers", name), p.GetForward().GetHeaders()[name]
		if why := headerProblem(name, true); why != "" {
			r.say(codeHeader, path, "", "%s %s", show(name), why)
		}
		switch kind, ok := declared[claim]; {
		case !ok:
			r.say(codeForward, path, didYouMean(claim, sortedKeys(declared)), "no claim %s is declared", show(claim))
		case kind == "list":
			r.say(codeForward, path, "", "the claim %s is a list", show(claim))
		}
	}
}

func (r *ruler) jwks(j *ztv1.JWKS) {
	if j == nil {
		return
	}
	const path = "spec.jwks"
	r.exactly(codeJWKSOne, path, false, oneOf{"uri", j.GetUri() != ""}, oneOf{"inline", j.GetInline() != ""})
	if j.GetUri() != "" {
		if _, err := parseURL(j.GetUri()); err != nil {
			r.say(codeURL, path+".uri", "", "%v", err)
		}
	}
	if j.GetInline() != "" {
		if err := jwksProblem(j.GetInline()); err != nil {
			r.say(codeJWKS, path+".inline", "", "%v", err)
		}
	}
	if j.GetCa() != "" {
		r.ca(path+".ca", j.GetCa())
		if j.GetUri() == "" || strings.HasPrefix(j.GetUri(), "http:") {
			r.say(codeNoUse, path+".ca", "", "the keys are not fetched by https, so that nothing is verified by ca")
		}
	}
}

func (r *ruler) block(b *ztv1.Block) {
	callers := []oneOf{
		{"workloads", len(b.GetWorkloads()) > 0},
		{"namespaces", len(b.GetNamespaces()) > 0},
		{"trustDomains", len(b.GetTrustDomains()) > 0},
		{"spiffeIDs", len(b.GetSpiffeIds()) > 0},
		{"users", b.GetUsers() != nil},
	}
	r.exactly(codeBlockOne, "spec", len(b.GetServices()) > 0, callers...)
	r.references("spec.workloads", b.GetWorkloads())
	r.labels("spec.namespaces", b.GetNamespaces())
	for i, td := range b.GetTrustDomains() {
		if !isTrustDomain(td) {
			r.say(codeBadName, index("spec.trustDomains", i), trustDomainHint, "%s is not a trust domain", show(td))
		}
	}
	r.ids("spec.spiffeIDs", b.GetSpiffeIds())
	r.references("spec.services", b.GetServices())
	if u := b.GetUsers(); u != nil {
		r.label("spec.users.provider", u.GetProvider())
		r.notEmpty("spec.users.subjects", u.GetSubjects())
	}
	if r.namespace != MeshNamespace {
		r.ownBlock(b)
	}
}

// ownBlock holds the Block of a namespace to its own services, or else to its own
// callers.
func (r *ruler) ownBlock(b *ztv1.Block) {
	foreign := func(s string) bool {
		ref, err := ParseRef(s, r.namespace)
		return err == nil && ref.Namespace != r.namespace
	}
	if len(b.GetServices()) > 0 && !slices.ContainsFunc(b.GetServices(), foreign) {
		return
	}
	found := false
	say := func(path, what string) {
		found = true
		r.say(codeForeignBlock, path, "", "%s is not of the namespace %s, nor are all services", what, show(r.namespace))
	}
	for i, s := range b.GetWorkloads() {
		if foreign(s) {
			say(index("spec.workloads", i), "the workload "+show(s))
		}
	}
	for i, ns := range b.GetNamespaces() {
		if ns != r.namespace {
			say(index("spec.namespaces", i), "the namespace "+show(ns))
		}
	}
	for i, id := range b.GetSpiffeIds() {
		_, path, err := ParseID(id)
		if ref, ok := workloadOf(path); err == nil && (!ok || ref.Namespace != r.namespace) {
			say(index("spec.spiffeIDs", i), show(id))
		}
	}
	switch {
	case len(b.GetTrustDomains()) > 0:
		say("spec.trustDomains", "a trust domain")
	case b.GetUsers() != nil:
		say("spec.users", "a user")
	case !found && len(b.GetWorkloads()) == 0 && len(b.GetNamespaces()) == 0 && len(b.GetSpiffeIds()) == 0:
		for i, s := range b.GetServices() {
			if foreign(s) {
				r.say(codeForeignBlock, index("spec.services", i), "", "the service %s is not of the namespace %s, nor are the callers", show(s), show(r.namespace))
			}
		}
	}
}

func (r *ruler) exception(e *ztv1.Exception) {
	r.cidrs("spec.peers", e.GetPeers())
	ref, port, err := ParseServicePort(e.GetSubject(), r.namespace)
	inMesh := r.namespace == MeshNamespace
	switch {
	case err != nil:
		r.say(codeSubjectForm, "spec.subject", "", "%v", err)
		return
	case ref.Namespace != r.namespace:
		r.say(codeSubjectForm, "spec.subject", "", "%s is of another namespace", ref)
		return
	}
	switch e.GetFinding() {
	case FindingPlaintext:
		if port == "" {
			r.say(codeSubjectForm, "spec.subject", "", "%s names no port", show(e.GetSubject()))
		}
	case FindingPlaintextJWKS:
		if !inMesh {
			r.say(codeMeshNamespace, "metadata.namespace", "", "an Exception for a provider is in the namespace %s", show(r.namespace))
		}
	}
	if port != "" && e.GetFinding() != FindingPlaintext {
		r.say(codeSubjectForm, "spec.subject", "", "%s names a port", show(e.GetSubject()))
	}
	needs := e.GetFinding() == FindingPlaintext || e.GetFinding() == FindingReservedAddress
	switch {
	case needs && len(e.GetPeers()) == 0:
		r.say(codePeers, "spec.peers", "", "there are no peers")
	case !needs && len(e.GetPeers()) > 0:
		r.say(codePeers, "spec.peers", "Remove them.", "peers mean nothing for %s", e.GetFinding())
	}
}
