package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// kind is one kind of documents as people write it.
type kind struct {
	name, short string
	mesh        bool // its documents stand in the namespace "mesh" alone
}

// kinds are all of them, sorted.
func kinds() []kind {
	return []kind{
		{name: spec.KindAssertion},
		{name: spec.KindBlock},
		{name: spec.KindException, short: "exc"},
		{name: spec.KindGrant},
		{name: spec.KindIdentityProvider, short: "idp", mesh: true},
		{name: spec.KindMesh, mesh: true},
		{name: spec.KindSegment, short: "seg", mesh: true},
		{name: spec.KindService, short: "svc"},
		{name: spec.KindWorkload, short: "wl"},
	}
}

// words are what a kind may be called in lower case: singular, plural, and the same
// in short.
func (k kind) words() []string {
	l := strings.ToLower(k.name)
	plural := l + "s"
	if strings.HasSuffix(l, "sh") {
		plural = l + "es"
	}
	words := []string{l, plural}
	if k.short != "" {
		words = append(words, k.short, k.short+"s")
	}
	return words
}

// kindOf reads a kind in any case, singular, plural or short.
func kindOf(s string) (kind, error) {
	var all []string
	for _, k := range kinds() {
		if slices.Contains(k.words(), strings.ToLower(s)) {
			return k, nil
		}
		if k.short == "" {
			all = append(all, k.name)
		} else {
			all = append(all, fmt.Sprintf("%s (%s)", k.name, k.short))
		}
	}
	return kind{}, withHint(fmt.Errorf("no kind %q", s), "the kinds are %s", strings.Join(all, ", "))
}

// summary says in a few words what a document says.
func (a *app) summary(d *ztv1.Document) string {
	switch {
	case d.GetMesh() != nil:
		words := []string{d.GetMesh().TrustDomain}
		for _, f := range d.GetMesh().Federation {
			words = append(words, "trusts "+f.TrustDomain)
		}
		return few(words)
	case d.GetWorkload() != nil:
		var ports []string
		for _, p := range d.GetWorkload().Serves {
			ports = append(ports, fmt.Sprintf("%s %d/%s", p.Name, p.Port, p.Protocol))
		}
		for _, c := range d.GetWorkload().TcpCalls {
			ports = append(ports, fmt.Sprintf("calls %s at %d", c.Service, c.LocalPort))
		}
		return few(ports)
	case d.GetService() != nil:
		if e := d.GetService().External; e != nil {
			return fmt.Sprintf("%s port %d/%s", few(e.Hosts), e.Port, cmp.Or(e.Protocol, "http"))
		}
		return few(d.GetService().Workloads)
	case d.GetGrant() != nil:
		return a.grant(d.GetGrant())
	case d.GetBlock() != nil:
		return a.blockSummary(d)
	case d.GetIdentityProvider() != nil:
		return d.GetIdentityProvider().Issuer
	case d.GetSegment() != nil:
		s := d.GetSegment()
		members := s.Workloads
		if len(s.Namespaces) > 0 {
			members = append([]string{"namespaces " + few(s.Namespaces)}, members...)
		}
		text := few(members)
		if len(s.Admits) > 0 {
			text += " admits " + few(s.Admits)
		}
		if s.RequireUser != "" {
			text += " requires a user of " + s.RequireUser
		}
		return text
	case d.GetAssertion() != nil:
		as := d.GetAssertion()
		var words []string
		if n := len(as.Tests); n > 0 {
			words = append(words, plural(n, "test", "tests"))
		}
		if n := len(as.Never); n > 0 {
			words = append(words, fmt.Sprintf("%d never", n))
		}
		if n := len(as.Always); n > 0 {
			words = append(words, fmt.Sprintf("%d always", n))
		}
		return strings.Join(words, ", ")
	case d.GetException() != nil:
		e := d.GetException()
		return strings.Join(append([]string{e.Finding, e.Subject}, a.until(e.Until)...), " ")
	}
	return ""
}

// grant says in a few words what a grant says.
func (a *app) grant(g *ztv1.Grant) string {
	var words []string
	if g.Mode == "shadow" {
		words = append(words, "(shadow)")
	}
	from, to := g.From, g.To
	switch {
	case len(from.GetNamespaces()) > 0:
		words = append(words, "namespaces "+few(from.Namespaces))
	case len(from.GetSegments()) > 0:
		words = append(words, "segments "+few(from.Segments))
	case from.GetAnyWorkload():
		words = append(words, "any workload")
	default:
		words = append(words, few(slices.Concat(from.GetWorkloads(), from.GetSpiffeIds())))
	}
	if u := from.GetUsers(); u != nil {
		words = append(words, "for users of "+u.Provider)
	}
	words = append(words, "->")
	switch {
	case len(to.GetNamespaces()) > 0:
		words = append(words, "namespaces "+few(to.Namespaces))
	case to.GetAllServices():
		words = append(words, "all services")
	default:
		words = append(words, few(to.GetServices()))
	}
	for _, list := range [][]string{to.GetPorts(), to.GetMethods(), to.GetPaths(), to.GetUpgrades()} {
		if len(list) > 0 {
			words = append(words, few(list))
		}
	}
	return strings.Join(append(append(words, conditions(g.When)...), a.until(g.Until)...), " ")
}

// conditions names the fields of a When that a grant has.
func conditions(w *ztv1.When) []string {
	var on []string
	if n := len(w.GetHeaders()); n > 0 {
		on = append(on, "header "+few(slices.Sorted(maps.Keys(w.Headers))))
	}
	if len(w.GetWindows()) > 0 {
		on = append(on, "in time")
	}
	if len(w.GetSourceCidrs()) > 0 {
		on = append(on, "from "+few(w.SourceCidrs))
	}
	if w.GetCel() != "" {
		on = append(on, "cel")
	}
	if on == nil {
		return nil
	}
	return []string{"if " + strings.Join(on, " and ")}
}

// blockSummary says in a few words what a Block says, and if it still does.
func (a *app) blockSummary(d *ztv1.Document) string {
	b := d.GetBlock()
	words := append([]string{denial(inFull(b, d.Metadata.GetNamespace()))}, a.until(b.Until)...)
	text := strings.Join(words, " ") + ": " + b.Reason
	if (&spec.Document{Document: d}).Operator() {
		text += " (by ztctl block)"
	}
	return text
}

// until says when a document ends, for people; nothing for one that does not.
func (a *app) until(t *timestamppb.Timestamp) []string {
	switch {
	case t == nil:
		return nil
	case !t.AsTime().After(a.now()):
		return []string{"(ended)"}
	}
	return []string{"until " + t.AsTime().Format(time.RFC3339)}
}

// few joins the first three of a list.
func few(list []string) string {
	if len(list) > 3 {
		return fmt.Sprintf("%s,+%d", strings.Join(list[:3], ","), len(list)-3)
	}
	return strings.Join(list, ",")
}
