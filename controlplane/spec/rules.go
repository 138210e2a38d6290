package spec

import (
	"net/netip"
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// ruleProblems is what SPEC.md refuses in d by itself, beyond the schema.
func ruleProblems(d *Document) Problems {
	r := &ruler{d: d, namespace: d.GetMetadata().GetNamespace()}
	inMesh := r.namespace == MeshNamespace
	switch kind := d.GetKind(); {
	case kind == KindMesh && !inMesh:
		r.say(codeMeshNamespace, "metadata.namespace", "", "the Mesh is in the namespace %s", show(r.namespace))
	case kind == KindWorkload && inMesh:
		r.say(codeNotInMesh, "metadata.namespace", "", "a Workload may not stand in the namespace \"mesh\"")
	case kind == KindGrant && inMesh:
		r.say(codeUnsupported, "metadata.namespace", "Write the grant in the namespace of the service.",
			"grants of the namespace \"mesh\" are not supported yet")
	}
	switch {
	case d.GetWorkload() != nil:
		r.workload(d.GetWorkload())
	case d.GetGrant() != nil:
		r.grant(d.GetGrant())
	case d.GetAssertion() != nil:
		r.assertion(d.GetAssertion())
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
		if !isLabel(s) {
			r.say(codeReference, index(path, i), hintOf(codeBadName), "%s is not a name", show(s))
		}
	}
}

func (r *ruler) workload(w *ztv1.Workload) {
	names, numbers, targets := map[string]int{}, map[uint32]int{}, map[uint32]string{}
	for i, p := range w.GetServes() {
		path := index("spec.serves", i)
		if first, twice := names[p.GetName()]; twice && p.GetName() != "" {
			r.say(codePortNameTwice, path+".name", "", "the name %s is that of port %d already", show(p.GetName()), first+1)
		} else {
			names[p.GetName()] = i
		}
		if first, twice := numbers[p.GetPort()]; twice && p.GetPort() != 0 {
			r.say(codePortNumberTwice, path+".port", "", "the number %d is that of port %d already", p.GetPort(), first+1)
		} else {
			numbers[p.GetPort()] = i
		}
		if p.GetPort() == EgressPort {
			r.say(codeReservedPort, path+".port", "", "the port %d is reserved", EgressPort)
		}
		target, at := p.GetPort(), path+".port"
		if p.GetTarget() != "" || r.d.wrote(path+".target") {
			at = path + ".target"
			addr, ok := loopback(p.GetTarget())
			if !ok {
				r.say(codeTarget, at, "", "the target %s is not a loopback address and port", show(p.GetTarget()))
				continue
			}
			target = uint32(addr.Port())
			if target == EgressPort {
				r.say(codeReservedPort, at, "", "the port %d of the target is reserved", EgressPort)
			}
		}
		targets[target] = at
	}
	locals := map[uint32]int{}
	for i, c := range w.GetTcpCalls() {
		path := index("spec.tcpCalls", i)
		if _, _, err := ParseServicePort(c.GetService(), r.namespace); err != nil {
			r.say(codeReference, path+".service", "", "%v", err)
		}
		local := c.GetLocalPort()
		if first, twice := locals[local]; twice && local != 0 {
			r.say(codeLocalPortTwice, path+".localPort", "", "the port %d is that of call %d already", local, first+1)
		} else {
			locals[local] = i
		}
		if local == EgressPort {
			r.say(codeReservedPort, path+".localPort", "", "the port %d is reserved", EgressPort)
		}
		if at, clash := targets[local]; clash && local != 0 {
			r.say(codeTargetLoop, path+".localPort", "", "the port %d is where %s leads to", local, at)
		}
	}
}

// loopback reads a loopback address and port in its one canonical spelling.
func loopback(s string) (addr netip.AddrPort, ok bool) {
	addr, err := netip.ParseAddrPort(s)
	ip := addr.Addr()
	return addr, err == nil && ip.IsLoopback() && !ip.Is4In6() && ip.Zone() == "" && addr.Port() != 0 && addr.String() == s
}

func (r *ruler) grant(g *ztv1.Grant) {
	from, to := g.GetFrom(), g.GetTo()
	callers := 0
	for _, is := range []bool{len(from.GetWorkloads()) > 0, len(from.GetNamespaces()) > 0, from.GetAnyWorkload()} {
		if is {
			callers++
		}
	}
	if from != nil && callers != 1 {
		r.say(codeCaller, "spec.from", "", "the caller has %d of workloads, namespaces and anyWorkload, not one", callers)
	}
	if !from.GetAnyWorkload() && r.d.wrote("spec.from.anyWorkload") {
		r.say(codeBadValue, "spec.from.anyWorkload", "Write true or remove the field.", "anyWorkload is false")
	}
	r.references("spec.from.workloads", from.GetWorkloads())
	r.labels("spec.from.namespaces", from.GetNamespaces())
	for i, s := range to.GetServices() {
		path := index("spec.to.services", i)
		ref, err := ParseRef(s, r.namespace)
		switch {
		case err != nil:
			r.say(codeReference, path, "", "%v", err)
		case ref.Namespace != r.namespace:
			r.say(codeOtherCallee, path, "", "the service %s is of another namespace", ref)
		}
	}
	r.labels("spec.to.ports", to.GetPorts())
	r.methods(to.GetMethods())
	for i, p := range to.GetPaths() {
		if code, why, hint := pathProblem(p); code != "" {
			r.say(code, index("spec.to.paths", i), hint, "the path %s %s", show(p), why)
		}
	}
}

func (r *ruler) methods(list []string) {
	for i, m := range list {
		path := index("spec.to.methods", i)
		switch upper := strings.ToUpper(m); {
		case upper == "CONNECT" || upper == "TRACE":
			r.say(codeMethodRefused, path, "", "%s cannot be granted", show(m))
		case isHTTPMethod(m) || isGRPCMethod(m):
		case isHTTPMethod(upper):
			r.say(codeMethod, path, "Write "+upper+".", "%s is not in upper case", show(m))
		case isGRPCMethod(strings.TrimPrefix(m, "/")):
			r.say(codeMethod, path, "Write "+m[1:]+".", "%s begins with \"/\"", show(m))
		default:
			r.say(codeMethod, path, "", "%s is not a method", show(m))
		}
	}
	grpc := func(m string) bool { return isGRPCMethod(m) }
	if slices.ContainsFunc(list, grpc) && slices.ContainsFunc(list, isHTTPMethod) {
		r.say(codeMixed, "spec.to.methods", "", "HTTP and gRPC methods stand in one list")
	}
}

func (r *ruler) assertion(a *ztv1.Assertion) {
	for i, t := range a.GetTests() {
		path := index("spec.tests", i)
		r.reference(path+".as.workload", t.GetAs().GetWorkload())
		if _, err := ParseRequest(t.GetRequest(), r.namespace); err != nil {
			r.say(codeRequest, path+".request", "", "%v", err)
		}
		switch {
		case t.GetBy() != "" && t.GetWant() == "deny":
			r.say(codeByWithDeny, path+".by", "", "the test wants deny by %s", show(t.GetBy()))
		case t.GetBy() != "" || r.d.wrote(path+".by"):
			r.reference(path+".by", t.GetBy())
		}
	}
}

// maxSegments is how many segments the path of a grant may have.
const maxSegments = 16

// pathProblem is why p is no path of a grant; code is empty when it is one.
//
// A path is "/" and at most maxSegments segments of the characters that stay as
// they are in a URL (RFC 3986, section 3.3, pchar) without "%", ";" and "*",
// since what is judged at the proxy has none of them. The last segment may be
// "**", any rest, and may be empty: "/a/" is not "/a".
func pathProblem(p string) (code, why, hint string) {
	rest, absolute := strings.CutPrefix(p, "/")
	if !absolute {
		return codePath, "does not begin with \"/\"", ""
	}
	segments := strings.Split(rest, "/")
	if len(segments) > maxSegments+1 || len(segments) == maxSegments+1 && segments[maxSegments] != "" {
		return codePath, "has more than 16 segments", ""
	}
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && !last:
			return codePath, "has an empty segment", "Write a single \"/\"; proxies merge them."
		case s == "." || s == "..":
			return codePath, "has a dot segment", "Write the path that it resolves to."
		case s == "**" && !last:
			return codePath, "has \"**\" before its end", "Only the last segment may be \"**\"."
		case s == "**" || s == "":
		case s == "*" || len(s) > 2 && s[0] == '{' && isIdentifier(s[1:len(s)-1]) && s[len(s)-1] == '}':
			return codeUnsupported, "has a segment for any value, which is not supported yet", "Write exact paths, or \"**\" for any rest."
		case strings.Contains(s, "*"):
			return codePath, "has \"*\" in a segment", "\"**\" stands alone, at the end."
		}
		if i := strings.IndexFunc(s, func(c rune) bool { return !isPathRune(c) }); i >= 0 && s != "**" {
			return codePath, "has the character " + show(string([]rune(s[i:])[0])), "Use letters, digits and -._~!$&'()+,=:@; requests with others are refused."
		}
	}
	return "", "", ""
}

func isPathRune(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-._~!$&'()+,=:@", c)
}
