package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// The codes of warnings.
const (
	CodeLinear    = "ZT3001" // many grants that only conditions tell apart
	CodeWide      = "ZT3002" // a grant reaches across namespaces
	CodeEncoded   = "ZT3003" // a port takes encoded paths
	CodeException = "ZT3004" // implicit trust is kept
	CodeEgress    = "ZT3005" // an external service, without an egress gateway
	CodeCEL       = "ZT3006" // a grant that no analysis understands
)

// Warning is something that a spec may say and that somebody should know of.
type Warning struct {
	Code string
	Key  spec.Key // the document that it is about
	Path string   // where in the document; empty: all of it
	// Message says what is so, Hint what to do about it.
	Message, Hint string
}

// maxLinear is how many grants may share a caller, a path and a method and differ
// in conditions that a proxy tries one by one.
const maxLinear = 100

// maxCounted bounds the work of counting them on one port.
const maxCounted = 1 << 20

// Lint is what the spec itself shows that an audit would ask about, sorted by
// document and code.
func (ix *Index) Lint() []Warning { return ix.lint(nil) }

// LintOf is what Lint says of the documents of a namespace.
func (ix *Index) LintOf(namespace string) []Warning { return ix.lint([]byte(namespace + "\x00")) }

// lint is of the documents whose keys begin with prefix.
func (ix *Index) lint(prefix []byte) []Warning {
	var out []Warning
	add := func(code, kind string, ref spec.Ref, path, message, hint string) {
		key := spec.Key{Kind: kind, Namespace: ref.Namespace, Name: ref.Name}
		out = append(out, Warning{Code: code, Key: key, Path: path, Message: message, Hint: hint})
	}
	walk(ix.workloads, prefix, func(w *Workload) bool {
		for _, p := range w.Ports {
			if p.Protocol == TCP {
				continue
			}
			if p.EncodedPaths {
				add(CodeEncoded, spec.KindWorkload, w.Ref, "spec.serves",
					fmt.Sprintf("the port %s takes encoded paths: grants by path hold for the application only if it reads them as the proxy does", p.Name),
					"Remove allowEncodedPaths, or leave paths out of the grants and let the application judge them.")
			}
			if n, shared := ix.linear(ix.Rules(w.Ref, p.Name)); n > maxLinear {
				add(CodeLinear, spec.KindWorkload, w.Ref, "spec.serves",
					fmt.Sprintf("%d grants to the port %s for %s differ only in conditions that the proxy tries one by one", n, p.Name, shared),
					"Put the values into one grant, or tell them apart by caller, method, path or a claim of kind string.")
			}
		}
		return true
	})
	walk(ix.services, prefix, func(s *service) bool {
		if e, ok := ix.externals(s.ref); ok {
			if rules := ix.externalRules(e, false); len(rules) > 0 {
				add(CodeEgress, spec.KindService, s.ref, "spec.external",
					"calls are judged in the caller's own proxy: what gets around it reaches "+strings.Join(e.external.Hosts, ", ")+" unjudged",
					"Let the network refuse what does not come from the proxies.")
			}
		}
		return true
	})
	walk(ix.grants, prefix, func(g *grant) bool {
		if g.wide() {
			add(CodeWide, spec.KindGrant, g.ref, "spec.to", "the grant opens "+strings.Join(ix.opened(g), ", "),
				"Let the owners of the services grant this, each in their own namespace.")
		}
		if g.conditions.CEL != nil {
			add(CodeCEL, spec.KindGrant, g.ref, "spec.when.cel", "no analysis understands the expression: Assertions take it for one that may hold",
				"Say it with headers, windows, sourceCIDRs or users where they can.")
		}
		return true
	})
	walk(ix.exceptionByRef, prefix, func(e *exception) bool {
		subject := e.subject.String()
		if e.port != "" {
			subject += ":" + e.port
		}
		add(CodeException, spec.KindException, e.ref, "", fmt.Sprintf("%s is kept for %s until %s", e.finding, subject, moment(e.until)),
			"Remove the need for it before it ends.")
		return true
	})
	slices.SortStableFunc(out, func(a, b Warning) int {
		if c := a.Key.Compare(b.Key); c != 0 {
			return c
		}
		return strings.Compare(a.Code, b.Code)
	})
	return out
}

// opened is the ports that a wide grant reaches, as "namespace/name:port".
func (ix *Index) opened(g *grant) []string {
	var out []string
	ix.Workloads(func(w *Workload) bool {
		if s, ok := ix.site(w.Ref); ok {
			for i := range w.Ports {
				if _, reaches := ix.ruleOf(g, s, &w.Ports[i]); reaches {
					out = append(out, w.Ref.String()+":"+w.Ports[i].Name)
				}
			}
		}
		return true
	})
	if out == nil {
		return []string{"nothing"}
	}
	return out
}

// linear is the largest number of rules that share a caller, a path and a method
// and that the proxy tries one by one, and what they share.
func (ix *Index) linear(rules []Rule) (most int, shared string) {
	type leaf struct{ caller, method, path string }
	counts := map[leaf]int{}
	counted := 0
	for _, r := range rules {
		if !ix.triedAlone(r.Conditions) {
			continue
		}
		methods := r.Methods
		if methods == nil {
			methods = []string{"any method"}
		}
		for _, caller := range r.Callers.items() {
			for _, path := range anyPath(r.Paths) {
				for _, method := range methods {
					if counted++; counted > maxCounted {
						return most, shared
					}
					l := leaf{caller, method, path.String()}
					if counts[l]++; counts[l] > most {
						most, shared = counts[l], fmt.Sprintf("%s, %s %s", caller, method, l.path)
					}
				}
			}
		}
	}
	return most, shared
}

// triedAlone tells whether a proxy tries c by itself, and does not look it up.
func (ix *Index) triedAlone(c Conditions) bool {
	if c.Headers != nil || c.Sources != nil || c.CEL != nil {
		return true
	}
	if c.Users == nil {
		return false
	}
	p, ok := ix.Provider(c.Users.Provider)
	return c.Users.AMR != nil || ok && slices.ContainsFunc(c.Users.Claims, func(o OneOf) bool { return p.Claims[o.Name].Kind == ListClaim })
}

// items is each of c by itself.
func (c Callers) items() []string {
	out := slices.Concat(texts(c.Workloads, spec.Ref.String), c.IDs, texts(c.Namespaces, func(ns string) string { return "namespace " + ns }))
	if c.Any {
		out = append(out, "any workload")
	}
	return out
}
