package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// maxHints bounds the hints of one denial, maxListed the items of a list in one.
const (
	maxHints  = 3
	maxListed = 4
)

// miss is how far a grant to the service is from allowing a request.
type miss struct {
	grant  spec.Ref
	failed []string // a text for each field that fails: "allows GET, not DELETE"
	change string   // the smallest change, when one field fails
	far    distance // of the farthest field that fails
}

// distance is how much more it would be to widen one field than another.
type distance uint8

const (
	inContext distance = iota // when, on whose behalf and how the request comes
	inRequest                 // what may be called
	inCaller                  // who may call
)

func (m *miss) fail(far distance, change, format string, args ...any) {
	m.failed, m.change, m.far = append(m.failed, fmt.Sprintf(format, args...)), change, max(m.far, far)
}

// compare orders the nearest first: by the number of fields, and of those with
// one number by what they are.
func (m miss) compare(o miss) int {
	return cmp.Or(cmp.Compare(len(m.failed), len(o.failed)), cmp.Compare(m.far, o.far))
}

// hints names the grants that are nearest to allowing a request, and what of
// them fails:
//
//	grant shop/web-reads-orders allows GET, not DELETE: add DELETE to its methods
func (j *judgement) hints() []string {
	if !j.ix.declared(j.caller) {
		return []string{fmt.Sprintf("no workload %s is declared", j.caller)}
	}
	var misses []miss
	note := func(g *grant) bool {
		if m := j.miss(g); len(m.failed) > 0 {
			misses = append(misses, m)
		}
		return true
	}
	if j.s == nil {
		walk(j.ix.byService, key(j.at.ref), note)
	} else {
		j.ix.grantsTo(j.s, note)
	}
	if len(misses) == 0 {
		return []string{fmt.Sprintf("no grant is to %s: one in namespace %s, from %s to %s, would allow it",
			j.at.ref, j.at.ref.Namespace, j.caller, j.at.ref.Name)}
	}
	slices.SortStableFunc(misses, func(a, b miss) int {
		return cmp.Or(a.compare(b), a.grant.Compare(b.grant))
	})
	var hints []string
	for _, m := range misses {
		if len(hints) == maxHints || m.compare(misses[0]) > 0 {
			break
		}
		hint := fmt.Sprintf("grant %s %s", m.grant, strings.Join(m.failed, " and "))
		if len(m.failed) == 1 {
			hint += ": " + m.change
		}
		hints = append(hints, hint)
	}
	return hints
}

// miss compares the fields of g, which is to the target, with the request.
func (j *judgement) miss(g *grant) miss {
	m := miss{grant: g.ref}
	if g.shadow {
		m.fail(inContext, "set its mode to enforce", "is in mode shadow")
	}
	j.missCaller(g, &m)
	f := g.fitOf(j.p)
	switch {
	case !j.reaches(g) && g.ports == nil:
		m.fail(inRequest, fmt.Sprintf("add ports: [%s]", j.p.Name), "names no port of several")
		return m
	case !j.reaches(g):
		m.fail(inRequest, fmt.Sprintf("add %s to its ports", j.p.Name), "is to %s, not port %s", listed(g.ports), j.p.Name)
		return m
	case !f.ok:
		m.fail(inRequest, "correct them", "has methods, paths or conditions that a %s port does not have", j.p.Protocol)
		return m
	}
	if !j.r.TCP {
		j.missRequest(j.ix.rule(g, f), &m)
	}
	j.missConditions(g.conditions, &m)
	return m
}

func (j *judgement) reaches(g *grant) bool {
	if j.s == nil {
		return g.namesPort([]Port{*j.p}, j.p.Name)
	}
	return g.names(j.s, j.p)
}

func (j *judgement) missCaller(g *grant, m *miss) {
	switch c := j.ix.callers(g.callers); {
	case !c.has(j.caller):
		m.fail(inCaller, fmt.Sprintf("add %s to its callers", j.caller), "is for %s, not %s", g.callers, j.caller)
	case j.s != nil && j.s.admitted != nil && !j.s.admitted.has(j.caller):
		own, _ := j.ix.Segment(j.s.ref)
		other, in := j.ix.Segment(j.caller.workload)
		if !in {
			m.fail(inCaller, "put the caller in a segment that it admits", "is to segment %s, which does not admit callers of none", own)
			return
		}
		m.fail(inCaller, fmt.Sprintf("add %s to admits of segment %s", other, own), "is to segment %s, which does not admit segment %s", own, other)
	}
}

func (j *judgement) missRequest(r Rule, m *miss) {
	switch {
	case r.Upgrades == nil && j.r.Upgrade != "":
		m.fail(inContext, "write one with upgrades: [websocket]", "is for no upgrades")
	case r.Upgrades != nil && j.r.Upgrade == "":
		m.fail(inContext, "write one without upgrades", "is for upgrades to %s only", listed(r.Upgrades))
	case r.Upgrades != nil && j.r.Method != "GET":
		m.fail(inContext, "upgrade by GET", "is for upgrades, which %s is not", j.r.Method)
	}
	if j.p.Protocol == GRPC {
		if called := strings.TrimPrefix(j.path, "/"); !r.method(j.r.Method) || !r.path(j.path) {
			m.fail(inRequest, fmt.Sprintf("add %s to its methods", called), "allows %s, not %s", grpcMethods(r.Paths), called)
		}
		return
	}
	if !r.method(j.r.Method) {
		m.fail(inRequest, fmt.Sprintf("add %s to its methods", j.r.Method), "allows %s, not %s", listed(r.Methods), j.r.Method)
	}
	if !r.path(j.path) {
		m.fail(inRequest, fmt.Sprintf("add %s to its paths", j.path), "allows %s, not %s", pathList(r.Paths), j.path)
	}
}

// missConditions judges one field of c after the other.
func (j *judgement) missConditions(c Conditions, m *miss) {
	users := c.Users
	if users == nil && j.s != nil && j.s.require != "" {
		users = &Users{Provider: j.s.require}
	}
	until := "move its until"
	if j.r.Time.IsZero() {
		until = "give the request a time"
	}
	for _, field := range []struct {
		of     Conditions
		change string
	}{
		{Conditions{Users: users}, "send the token of such a user, or widen its users"},
		{Conditions{Headers: c.Headers}, "send such a header, or widen its headers"},
		{Conditions{Until: c.Until}, until},
		{Conditions{Windows: c.Windows}, "widen its windows"},
		{Conditions{Sources: c.Sources}, fmt.Sprintf("add %s to its sourceCIDRs", j.r.source())},
		{Conditions{CEL: c.CEL, CELText: c.CELText}, "widen its cel"},
	} {
		if failures := field.of.failures(&j.r, j.ix.providerOf(field.of.Users)); failures != nil {
			m.fail(inContext, field.change, "%s", strings.Join(failures, " and "))
		}
	}
}

// String is n as a grant would say it.
func (n named) String() string {
	if len(n.segments) > 0 {
		return "segments " + listed(n.segments)
	}
	return n.Callers.String()
}

// hint says what b denies, why and until when.
func (b Block) hint() string {
	what := "everybody"
	if b.Callers != nil {
		what = b.Callers.String()
	}
	if b.Users != nil {
		what = fmt.Sprintf("%s of %s", listed(b.Users.Subjects), b.Users.Provider)
	}
	end := ""
	if !b.Until.IsZero() {
		end = " until " + moment(b.Until)
	}
	return fmt.Sprintf("block %s denies %s%s: %s", b.Name, what, end, b.Reason)
}

func pathList(paths []Path) string { return listed(texts(paths, Path.String)) }

func grpcMethods(paths []Path) string {
	return listed(texts(paths, func(p Path) string { return strings.TrimPrefix(p.String(), "/") }))
}

func (w *Workload) portList() string {
	if len(w.Ports) == 0 {
		return "no ports"
	}
	return "the ports " + listed(texts(w.Ports, func(p Port) string { return p.Name }))
}

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return out
}

// listed is a short list: "a, b, c, d and 3 more".
func listed(items []string) string {
	if len(items) <= maxListed {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:maxListed], ", "), len(items)-maxListed)
}
