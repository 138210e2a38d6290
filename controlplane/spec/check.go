package spec

import (
	"slices"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Check is what SPEC.md refuses in docs together: the whole set as it would be
// after the change, what is stored and what is new. trustDomain is the cluster's;
// empty when it is not known, and then Mesh.trustDomain is not compared.
//
// It concludes nothing from those parts of documents that Parse has reported.
// What the operator wrote (Document.Operator) may name what is gone: files do not
// own it.
func Check(docs []*Document, trustDomain string) Problems {
	c := newChecker(trustDomain)
	seen := make(map[Key]bool, len(docs))
	var unique []*Document
	for _, d := range docs {
		if seen[d.Key()] {
			c.report(d, d.problem(codeDuplicateDocument, "", "", "%s stands twice", d.Key()))
			continue
		}
		seen[d.Key()] = true
		unique = append(unique, d)
		c.index(d)
	}
	c.segments.join(c.workloads)
	for _, d := range unique {
		if c.problems.full() {
			break
		}
		c.document(d)
	}
	return c.problems.capped()
}

// checker is the documents by what they are named by. Nothing in it is looked for
// by going through a list of documents, so that Check costs what the documents do.
type checker struct {
	trustDomain string // the cluster's, or else the Mesh's; may be empty
	mesh        *Document
	aliases     map[string]bool
	federated   map[string]bool

	workloads  map[Ref]*Document
	services   map[Ref]*Document // of kind Service
	grants     map[Ref]bool
	namespaces map[string]bool // those that have a workload
	providers  map[string]*Document
	segments   *segments
	exceptions map[excuse][]*Document

	issuers   map[string]*Document
	forwarded map[string]*Document // by header
	hosts     map[string]*Document // of external services

	reached  map[Ref]*service
	wide     map[string]map[string][]shape // by namespace ("" is all) and the name of the port
	problems Problems
}

func newChecker(trustDomain string) *checker {
	return &checker{
		trustDomain: trustDomain, aliases: map[string]bool{}, federated: map[string]bool{},
		workloads: map[Ref]*Document{}, services: map[Ref]*Document{}, grants: map[Ref]bool{}, namespaces: map[string]bool{},
		providers: map[string]*Document{}, segments: newSegments(), exceptions: map[excuse][]*Document{},
		issuers: map[string]*Document{}, forwarded: map[string]*Document{}, hosts: map[string]*Document{},
		reached: map[Ref]*service{},
	}
}

// index puts d where others find it.
func (c *checker) index(d *Document) {
	switch d.GetKind() {
	case KindMesh:
		if c.mesh == nil {
			c.mesh = d
		} else if other, kept := blame(d, c.mesh); other != nil {
			c.mesh = kept
			c.report(other, other.problem(codeSecondMesh, "metadata.name", "", "there is %s already", kept.Key()))
		}
		for _, td := range d.GetMesh().GetTrustDomainAliases() {
			c.aliases[td] = true
		}
		for _, f := range d.GetMesh().GetFederation() {
			c.federated[f.GetTrustDomain()] = true
		}
	case KindWorkload:
		c.workloads[d.Ref()] = d
		c.namespaces[d.Ref().Namespace] = true
	case KindService:
		c.services[d.Ref()] = d
		for i, h := range d.GetService().GetExternal().GetHosts() {
			c.only(c.hosts, h, d, codeHostTwice, "spec.external.hosts", i, "the host")
		}
	case KindGrant:
		c.grants[d.Ref()] = true
	case KindSegment:
		c.segments.add(d)
	case KindIdentityProvider:
		c.providers[d.Ref().Name] = d
		c.only(c.issuers, d.GetIdentityProvider().GetIssuer(), d, codeIssuerTwice, "spec.issuer", -1, "the issuer")
		for _, h := range sortedKeys(d.GetIdentityProvider().GetForward().GetHeaders()) {
			c.only(c.forwarded, h, d, codeForwardTwice, key("spec.forward.headers", h), -1, "the header")
		}
	case KindException:
		e := excuseOf(d)
		c.exceptions[e] = append(c.exceptions[e], d)
	}
}

// only holds name to one document of all that m has; item is its index in the
// list at path, or -1.
func (c *checker) only(m map[string]*Document, name string, d *Document, code, path string, item int, what string) {
	other := m[name]
	if other == nil || other == d {
		m[name] = d
		return
	}
	guilty, kept := blame(d, other)
	m[name] = kept
	if guilty == d && item >= 0 {
		path = index(path, item)
	}
	c.report(guilty, guilty.problem(code, path, "", "%s %s is that of %s already", what, show(name), kept.Key()))
}

// blame is which of two documents that clash is to change: the one that the user
// can point at, or else the later one by its key.
func blame(a, b *Document) (guilty, kept *Document) {
	if (a.spots == nil) != (b.spots == nil) {
		if a.spots == nil {
			return b, a
		}
		return a, b
	}
	if a.Key().Less(b.Key()) {
		return b, a
	}
	return a, b
}

// report adds p unless it only follows from what Parse has reported.
func (c *checker) report(d *Document, p Problem) {
	if !d.faulty(p.Path) {
		c.problems = append(c.problems, p)
	}
}

// say reports a problem of d at path.
func (c *checker) say(d *Document, code, path, hint, format string, args ...any) {
	if !c.problems.full() {
		c.report(d, d.problem(code, path, hint, format, args...))
	}
}

func (c *checker) document(d *Document) {
	switch {
	case d.GetMesh() != nil:
		if td := d.GetMesh().GetTrustDomain(); d == c.mesh && c.trustDomain != "" && td != c.trustDomain {
			c.say(d, codeTrustDomain, "spec.trustDomain", "", "the trust domain is %s, the cluster's is %s", show(td), show(c.trustDomain))
		}
	case d.GetWorkload() != nil:
		c.workload(d, d.GetWorkload())
	case d.GetService() != nil:
		c.service(d, d.GetService())
	case d.GetGrant() != nil:
		c.grant(d, d.GetGrant())
	case d.GetBlock() != nil:
		c.block(d, d.GetBlock())
	case d.GetIdentityProvider() != nil:
		c.provider(d, d.GetIdentityProvider())
	case d.GetSegment() != nil:
		c.segment(d, d.GetSegment())
	case d.GetAssertion() != nil:
		c.assertion(d, d.GetAssertion())
	case d.GetException() != nil:
		c.exception(d, d.GetException())
	}
}

func (c *checker) workload(d *Document, w *ztv1.Workload) {
	for i, call := range w.GetTcpCalls() {
		c.tcpCall(d, index("spec.tcpCalls", i)+".service", call.GetService())
	}
	for i, h := range w.GetExternalAuthorizer().GetHeaders() {
		if p := c.forwarded[h]; p != nil {
			c.say(d, codeForwardedHeader, index("spec.externalAuthorizer.headers", i), "", "the header %s carries a verified claim of %s", show(h), p.Key())
		}
	}
}

// own is the mesh's trust domain, or empty when it is not known.
func (c *checker) own() string {
	if c.trustDomain != "" {
		return c.trustDomain
	}
	if c.mesh != nil {
		return c.mesh.GetMesh().GetTrustDomain()
	}
	return ""
}

// workloadRef reports a reference to a workload that does not exist.
func (c *checker) workloadRef(d *Document, path, s string) {
	ref, err := ParseRef(s, d.Ref().Namespace)
	if err != nil || c.workloads[ref] != nil {
		return
	}
	c.say(d, codeNoWorkload, path, c.near(ref, c.workloads), "there is no workload %s", ref)
}

func (c *checker) namespacesExist(d *Document, path string, list []string) {
	for i, ns := range list {
		if isLabel(ns) && !c.namespaces[ns] {
			c.say(d, codeNoNamespace, index(path, i), "", "the namespace %s has no workload", ns)
		}
	}
}

// id reports a SPIFFE ID that no certificate will ever have. When it is that of a
// workload, ref is the workload, whether or not it exists.
func (c *checker) id(d *Document, path, id string) (ref Ref, ok bool) {
	td, rest, err := ParseID(id)
	own := c.own()
	if err != nil || own == "" {
		return Ref{}, false
	}
	ref, ok = workloadOf(rest)
	switch {
	case td == own && !ok:
		c.say(d, codeSPIFFEID, path, "Write spiffe://"+own+"/ns/<namespace>/sa/<workload>.", "%s is no ID of a workload", show(id))
	case td == own:
		return ref, true
	case c.aliases[td]:
		c.say(d, codeAliasID, path, "Write spiffe://"+own+rest+".", "%s is a former name of the trust domain", td)
	case !c.federated[td]:
		c.say(d, codeNoTrustDomain, path, didYouMean(td, sortedKeys(c.federated)), "there is no trust domain %s", td)
	}
	return Ref{}, false
}

// near is a hint with one of sets that has a similar name. It looks at all of
// them, so only the first problems get one.
func (c *checker) near(ref Ref, sets ...map[Ref]*Document) string {
	const enough = 20
	if len(c.problems) >= enough {
		return ""
	}
	var here, elsewhere []string
	for _, all := range sets {
		for other := range all {
			switch {
			case other.Namespace == ref.Namespace:
				here = append(here, other.Name)
			case other.Name == ref.Name:
				elsewhere = append(elsewhere, other.String())
			}
		}
	}
	slices.Sort(here)
	slices.Sort(elsewhere)
	if len(elsewhere) > 0 {
		return "Did you mean \"" + elsewhere[0] + "\"?"
	}
	return didYouMean(ref.Name, here)
}
