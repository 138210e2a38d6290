package spec

import (
	"slices"
	"strings"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (r *ruler) grant(g *ztv1.Grant) {
	if g.GetFrom() != nil {
		r.caller("spec.from", g.GetFrom())
	}
	if to := g.GetTo(); to != nil {
		wide := isWide(to)
		switch {
		case !r.target("spec.to", to):
		case wide && r.namespace != MeshNamespace:
			r.say(codeWide, "spec.to", "", "a grant of the namespace %s reaches across namespaces", show(r.namespace))
		case !wide && r.namespace == MeshNamespace && len(to.GetServices()) > 0:
			r.say(codeWide, "spec.to", "", "a grant of the namespace \"mesh\" names services")
		case wide && len(to.GetPorts()) == 0:
			r.say(codeWidePorts, "spec.to", "", "the grant reaches across services and names no ports")
		}
		for i, s := range to.GetServices() {
			if ref, err := ParseRef(s, r.namespace); err == nil && ref.Namespace != r.namespace && r.namespace != MeshNamespace {
				r.say(codeOtherCallee, index("spec.to.services", i), "", "the service %s is of another namespace", ref)
			}
		}
	}
	if g.GetWhen() != nil {
		r.when(g.GetWhen())
	}
}

// isWide tells whether to is not a list of services.
func isWide(to *ztv1.Target) bool { return to.GetAllServices() || len(to.GetNamespaces()) > 0 }

func (r *ruler) caller(path string, c *ztv1.Caller) {
	fields := []oneOf{
		{"workloads", len(c.GetWorkloads()) > 0},
		{"namespaces", len(c.GetNamespaces()) > 0},
		{"segments", len(c.GetSegments()) > 0},
		{"spiffeIDs", len(c.GetSpiffeIds()) > 0},
		{"anyWorkload", c.GetAnyWorkload()},
	}
	if c.GetUsers() != nil && !slices.ContainsFunc(fields, func(f oneOf) bool { return f.set }) {
		r.say(codeUsersAlone, path, "", "there are users, and no caller who acts for them")
	} else {
		r.exactly(codeCaller, path, false, fields...)
	}
	r.notFalse(path+".anyWorkload", c.GetAnyWorkload())
	r.references(path+".workloads", c.GetWorkloads())
	r.labels(path+".namespaces", c.GetNamespaces())
	r.labels(path+".segments", c.GetSegments())
	r.ids(path+".spiffeIDs", c.GetSpiffeIds())
	if u := c.GetUsers(); u != nil {
		r.label(path+".users.provider", u.GetProvider())
		r.notEmpty(path+".users.subjects", u.GetSubjects())
		r.notEmpty(path+".users.acr", u.GetAcr())
		r.notEmpty(path+".users.amr", u.GetAmr())
		for _, name := range sortedKeys(u.GetClaims()) {
			r.notEmpty(key(path+".users.claims", name), u.GetClaims()[name].GetValues())
		}
	}
}

// notEmpty reports empty texts in a list that a claim is compared with.
func (r *ruler) notEmpty(path string, list []string) {
	for i, s := range list {
		if s == "" {
			r.say(codeMissing, index(path, i), "Write a value.", "%s is empty", lastOf(index(path, i)))
		}
	}
}

// target is true when to is a target at all.
func (r *ruler) target(path string, to *ztv1.Target) bool {
	ok := r.exactly(
		codeTargetOne, path, false,
		oneOf{"services", len(to.GetServices()) > 0}, oneOf{"namespaces", len(to.GetNamespaces()) > 0}, oneOf{"allServices", to.GetAllServices()},
	)
	r.notFalse(path+".allServices", to.GetAllServices())
	r.references(path+".services", to.GetServices())
	r.labels(path+".namespaces", to.GetNamespaces())
	r.labels(path+".ports", to.GetPorts())
	r.methods(path+".methods", to.GetMethods())
	for i, p := range to.GetPaths() {
		if why, hint := pathProblem(p); why != "" {
			r.say(codePath, index(path+".paths", i), hint, "the path %s %s", show(p), why)
		}
	}
	r.websockets(path+".upgrades", to.GetUpgrades())
	if len(to.GetUpgrades()) > 0 {
		for i, m := range to.GetMethods() {
			if m != "GET" {
				r.say(codeUpgradeMethod, index(path+".methods", i), "", "%s is given beside upgrades", show(m))
			}
		}
	}
	return ok
}

func (r *ruler) when(w *ztv1.When) {
	const path = "spec.when"
	if len(w.GetHeaders()) == 0 && len(w.GetWindows()) == 0 && len(w.GetSourceCidrs()) == 0 && w.GetCel() == "" {
		r.say(codeEmptyList, path, "", "the mapping is empty")
	}
	for _, name := range sortedKeys(w.GetHeaders()) {
		at, values := key(path+".headers", name), w.GetHeaders()[name]
		if why := headerProblem(name, false); why != "" {
			r.say(codeHeader, at, "", "%s %s", show(name), why)
		}
		for i, v := range values.GetValues() {
			if !isHeaderValue(v) {
				r.say(codeHeaderValue, index(at, i), "", "%s is not the value of a header", show(v))
			}
		}
	}
	for i, win := range w.GetWindows() {
		r.window(index(path+".windows", i), win)
	}
	r.cidrs(path+".sourceCIDRs", w.GetSourceCidrs())
	if w.GetCel() != "" {
		if _, err := ParseCEL(w.GetCel()); err != nil {
			r.say(codeCEL, path+".cel", "", "%v", err)
		}
	}
}

func (r *ruler) window(path string, w *ztv1.Window) {
	if !ZoneKnown(w.GetZone()) {
		r.say(codeZone, path+".zone", didYouMean(w.GetZone(), zones), "there is no time zone %s", show(w.GetZone()))
	}
	for i, d := range w.GetDays() {
		if !slices.Contains(Days(), d) {
			r.say(codeBadValue, index(path+".days", i), "", "the day is %s, not one of %s", show(d), strings.Join(Days(), ", "))
		}
	}
	start, err := ParseClock(w.GetStart())
	if err != nil || start == 24*60 {
		r.say(codeClock, path+".start", "", "%s is not HH:MM between 00:00 and 23:59", show(w.GetStart()))
		start = -1
	}
	switch end, err := ParseClock(w.GetEnd()); {
	case err != nil:
		r.say(codeClock, path+".end", "", "%v", err)
	case end == start:
		r.say(codeClock, path+".end", "Write 00:00 and 24:00 for a whole day.", "the window ends when it starts")
	}
}

func (r *ruler) methods(at string, list []string) {
	for i, m := range list {
		path := index(at, i)
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
		r.say(codeMixed, at, "", "HTTP and gRPC methods stand in one list")
	}
}

// maxSegments is how many segments the path of a grant may have.
const maxSegments = 16

// pathProblem is why p is no path of a grant; why is empty when it is one.
//
// A path is "/" and at most maxSegments segments of the characters that stay as
// they are in a URL (RFC 3986, section 3.3, pchar) without "%", ";" and "*",
// since what is judged at the proxy has none of them. A segment may be "*" or
// "{name}", any one of them. The last segment may be "**", any rest, and may be
// empty: "/a/" is not "/a".
func pathProblem(p string) (why, hint string) {
	rest, absolute := strings.CutPrefix(p, "/")
	if !absolute {
		return "does not begin with \"/\"", ""
	}
	segments := strings.Split(rest, "/")
	if len(segments) > maxSegments+1 || len(segments) == maxSegments+1 && segments[maxSegments] != "" {
		return "has more than 16 segments", ""
	}
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && !last:
			return "has an empty segment", "Write a single \"/\"; proxies merge them."
		case s == "." || s == "..":
			return "has a dot segment", "Write the path that it resolves to."
		case s == "**" && !last:
			return "has \"**\" before its end", "Only the last segment may be \"**\"."
		case s == "**" || s == "":
		case s == "*" || len(s) > 2 && s[0] == '{' && isIdentifier(s[1:len(s)-1]) && s[len(s)-1] == '}':
			continue
		case strings.Contains(s, "*"):
			return "has \"*\" in a segment", "\"*\" is a whole segment; \"**\" stands alone, at the end."
		}
		if i := strings.IndexFunc(s, func(c rune) bool { return !isPathRune(c) }); i >= 0 && s != "**" {
			return "has the character " + show(string([]rune(s[i:])[0])), "Use letters, digits and -._~!$&'()+,=:@; requests with others are refused."
		}
	}
	return "", ""
}

func isPathRune(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-._~!$&'()+,=:@", c)
}
