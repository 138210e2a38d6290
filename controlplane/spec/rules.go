package spec

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// ruleProblems is what SPEC.md refuses in d by itself, beyond the schema.
func ruleProblems(d *Document) Problems {
	r := &ruler{d: d, namespace: d.GetMetadata().GetNamespace()}
	r.metadata()
	switch {
	case d.GetMesh() != nil:
		r.mesh(d.GetMesh())
	case d.GetWorkload() != nil:
		r.workload(d.GetWorkload())
	case d.GetService() != nil:
		r.service(d.GetService())
	case d.GetGrant() != nil:
		r.grant(d.GetGrant())
	case d.GetBlock() != nil:
		r.block(d.GetBlock())
	case d.GetIdentityProvider() != nil:
		r.provider(d.GetIdentityProvider())
	case d.GetSegment() != nil:
		r.segment(d.GetSegment())
	case d.GetAssertion() != nil:
		r.assertion(d.GetAssertion())
	case d.GetException() != nil:
		r.exception(d.GetException())
	}
	return r.problems
}

type ruler struct {
	d         *Document
	namespace string
	problems  Problems
}

func (r *ruler) say(code, path, hint, format string, args ...any) {
	if !r.problems.full() {
		r.problems = append(r.problems, r.d.problem(code, path, hint, format, args...))
	}
}

// metadata is where a kind may stand, and which labels are not for files.
func (r *ruler) metadata() {
	inMesh := r.namespace == MeshNamespace
	switch kind := r.d.GetKind(); kind {
	case KindMesh, KindSegment, KindIdentityProvider:
		if !inMesh {
			r.say(codeMeshNamespace, "metadata.namespace", "", "the %s is in the namespace %s", kind, show(r.namespace))
		}
	case KindWorkload, KindService:
		if inMesh {
			r.say(codeNotInMesh, "metadata.namespace", "", "a %s may not stand in the namespace \"mesh\"", kind)
		}
	}
	m := r.d.GetMetadata()
	r.reserved("metadata.labels", m.GetLabels())
	r.reserved("metadata.annotations", m.GetAnnotations())
}

func (r *ruler) reserved(path string, texts map[string]string) {
	for _, name := range sortedKeys(texts) {
		if strings.HasPrefix(name, reservedPrefix) {
			r.say(codeReservedLabel, key(path, name), "", "%s is for ztmesh itself", show(name))
		}
	}
}

// sortedKeys are the keys of m, in one order, so that problems are found in one.
func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}

// key is the path of the value of name in the mapping at path.
func key(path, name string) string { return join(path, keyName(text(name))) }

// reference reports a reference that is none.
func (r *ruler) reference(path, s string) {
	if _, err := ParseRef(s, r.namespace); err != nil {
		r.say(codeReference, path, "", "%v", err)
	}
}

func (r *ruler) references(path string, list []string) {
	for i, s := range list {
		r.reference(index(path, i), s)
	}
}

// labels reports list items that are no DNS labels.
func (r *ruler) labels(path string, list []string) {
	for i, s := range list {
		r.label(index(path, i), s)
	}
}

func (r *ruler) label(path, s string) {
	if !isLabel(s) {
		r.say(codeReference, path, hintOf(codeBadName), "%s is not a name", show(s))
	}
}

// ids reports list items that are no SPIFFE IDs.
func (r *ruler) ids(path string, list []string) {
	for i, s := range list {
		r.id(index(path, i), s)
	}
}

func (r *ruler) id(path, s string) {
	if _, _, err := ParseID(s); err != nil {
		r.say(codeSPIFFEID, path, "", "%v", err)
	}
}

// oneOf is one of what a message must have exactly one of.
type oneOf struct {
	name string
	set  bool
}

// exactly reports that not exactly one of fields is set, or with optional more
// than one. It is true when all is well.
func (r *ruler) exactly(code, path string, optional bool, fields ...oneOf) bool {
	var names, set []string
	for _, f := range fields {
		if names = append(names, f.name); f.set {
			set = append(set, f.name)
		}
	}
	all := strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
	switch {
	case len(set) > 1:
		r.say(code, path, "", "there are %s; of %s only one may stand here", strings.Join(set, " and "), all)
	case len(set) == 0 && !optional:
		r.say(code, path, "", "there is none of %s", all)
	default:
		return true
	}
	return false
}

// notFalse reports a boolean that may only be true, or absent.
func (r *ruler) notFalse(path string, value bool) {
	if !value && r.d.wrote(path) {
		r.say(codeBadValue, path, "Write true or remove the field.", "%s is false", lastOf(path))
	}
}

// ca reports a text that is no CA certificates.
func (r *ruler) ca(path, text string) {
	if err := caProblem(text); err != nil {
		r.say(codeCA, path, "", "%v", err)
	}
}

// websockets reports upgrades that do not exist.
func (r *ruler) websockets(path string, list []string) {
	for i, u := range list {
		if u != websocket {
			r.say(codeBadValue, index(path, i), "", "the upgrade is %s, not \"websocket\"", show(u))
		}
	}
}

func (r *ruler) cidrs(path string, list []string) {
	for i, s := range list {
		if _, err := ParseCIDR(s); err != nil {
			r.say(codeCIDR, index(path, i), "", "%v", err)
		}
	}
}

func (r *ruler) assertion(a *ztv1.Assertion) {
	for i, t := range a.GetTests() {
		r.test(index("spec.tests", i), t)
	}
	for i, s := range a.GetNever() {
		r.statement(index("spec.never", i), s)
	}
	for i, s := range a.GetAlways() {
		r.statement(index("spec.always", i), s)
	}
}

func (r *ruler) statement(path string, s *ztv1.Statement) {
	if s.GetFrom() != nil {
		if s.GetFrom().GetUsers() != nil {
			r.say(codeStatement, path+".from.users", "", "a statement names users")
		} else {
			r.caller(path+".from", s.GetFrom())
		}
	}
	if s.GetTo() != nil {
		r.target(path+".to", s.GetTo())
	}
}

func (r *ruler) test(path string, t *ztv1.Test) {
	if as := t.GetAs(); as != nil {
		r.subject(path+".as", as)
	}
	request, err := ParseRequest(t.GetRequest(), r.namespace)
	if err != nil {
		r.say(codeRequest, path+".request", "", "%v", err)
	}
	switch {
	case t.GetBy() != "" && t.GetWant() == "deny":
		r.say(codeByWithDeny, path+".by", "", "the test wants deny by %s", show(t.GetBy()))
	case t.GetBy() != "":
		r.reference(path+".by", t.GetBy())
	}
	if s := t.GetSource(); s != "" {
		if addr, err := netip.ParseAddr(s); err != nil || addr.Zone() != "" || addr.Is4In6() || addr.String() != s {
			r.say(codeSource, path+".source", "", "%s is not an address", show(s))
		}
	}
	for _, name := range sortedKeys(t.GetHeaders()) {
		at := key(path+".headers", name)
		if why := headerProblem(name, false); why != "" {
			r.say(codeHeader, at, "", "%s %s", show(name), why)
		}
		if v := t.GetHeaders()[name]; !isHeaderValue(v) {
			r.say(codeHeaderValue, at, "", "%s is not the value of a header", show(v))
		}
	}
	if err == nil && request.TCP {
		if len(t.GetHeaders()) > 0 {
			r.say(codeTestOfTCP, path+".headers", "", "a tcp connection has no headers")
		}
		if t.GetAs().GetUser() != nil {
			r.say(codeTestOfTCP, path+".as.user", "", "a tcp connection bears no token")
		}
	}
}

func (r *ruler) subject(path string, s *ztv1.Subject) {
	r.exactly(codeSubject, path, false, oneOf{"workload", s.GetWorkload() != ""}, oneOf{"spiffeID", s.GetSpiffeId() != ""})
	if s.GetWorkload() != "" {
		r.reference(path+".workload", s.GetWorkload())
	}
	if s.GetSpiffeId() != "" {
		r.id(path+".spiffeID", s.GetSpiffeId())
	}
	if u := s.GetUser(); u != nil {
		r.label(path+".user.provider", u.GetProvider())
	}
}
