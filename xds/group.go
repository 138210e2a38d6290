package xds

import (
	"cmp"
	"slices"
	"strings"
)

// Rules of many callers that share many paths are grouped: their paths are tested
// first, one after the other, and then the caller is looked up. That is callers +
// paths in size, where a map of paths for each caller would be callers × paths.
// Since groups, and paths within them, are tested in turn, only what pays is
// grouped: few groups of not too many paths.
const (
	groupLeast = 256 // entries that a group must save
	groupTests = 64  // paths and methods of all groups together
)

// ruleGroup is rules of the same paths and methods.
type ruleGroup struct {
	key     string
	rules   []*Rule
	callers int
}

func (g *ruleGroup) paths() []Path     { return g.rules[0].Paths }
func (g *ruleGroup) methods() []string { return g.rules[0].Methods }
func (g *ruleGroup) tests() int        { return len(g.paths()) + len(g.methods()) }

// saved is by how many entries the group is smaller than its rules by caller.
func (g *ruleGroup) saved() int {
	each := max(1, len(g.paths())) * max(1, len(g.methods()))
	return g.callers*each - g.callers - g.tests()
}

// group takes what pays out of the rules.
func group(rules []*Rule) (groups []*ruleGroup, rest []*Rule) {
	groups = paying(rules)
	taken := map[*Rule]bool{}
	for _, g := range groups {
		for _, r := range g.rules {
			taken[r] = true
		}
	}
	for _, r := range rules {
		if !taken[r] {
			rest = append(rest, r)
		}
	}
	return groups, rest
}

// paying is the groups that are worth it. Rules that are in none mean the same.
func paying(rules []*Rule) []*ruleGroup {
	var groups []*ruleGroup
	byKey := map[string]*ruleGroup{}
	for _, r := range rules {
		key := r.groupKey()
		if key == "" {
			continue
		}
		g := byKey[key]
		if g == nil {
			g = &ruleGroup{key: key}
			byKey[key] = g
			groups = append(groups, g)
		}
		g.rules = append(g.rules, r)
		g.callers += len(r.Callers.IDs) + len(r.Callers.Prefixes)
	}
	slices.SortFunc(groups, func(a, b *ruleGroup) int {
		return cmp.Or(cmp.Compare(b.saved(), a.saved()), strings.Compare(a.key, b.key))
	})
	left := groupTests
	return slices.DeleteFunc(groups, func(g *ruleGroup) bool {
		if g.saved() < groupLeast || g.tests() > left {
			return true
		}
		left -= g.tests()
		return false
	})
}

// groupKey is the paths and methods of a rule; empty if it cannot be grouped.
func (r *Rule) groupKey() string {
	var key strings.Builder
	for _, p := range r.Paths {
		if p.Kind != Exact && p.Kind != Rest {
			return ""
		}
		key.WriteString(string(p.Kind) + " " + p.Value + "\n")
	}
	return key.String() + "\n" + strings.Join(r.Methods, " ")
}

// group lowers one group: its paths and methods as a predicate, then its callers.
func (l *lowering) group(g *ruleGroup) *fieldMatch {
	var tests []*predicate
	if paths := g.paths(); paths != nil {
		var some []*predicate
		for _, p := range paths {
			some = append(some, l.path(p)...)
		}
		tests = append(tests, someOf(some...))
	}
	if names := g.methods(); names != nil {
		var some []*predicate
		for _, m := range names {
			some = append(some, l.b.matches(l.b.headerInput(":method"), equals(m)))
		}
		tests = append(tests, someOf(some...))
	}
	t := newTree[leaf](l.b)
	for _, r := range g.rules {
		t.add(r.Callers, func(f *leaf) { f.add(r) })
	}
	below := func(f *leaf) *onMatch { return l.leaf(f, nil) }
	return &fieldMatch{Predicate: allOf(tests...), OnMatch: callers(l.b, t, below, nil)}
}

// path is a predicate of an Exact or a Rest.
func (l *lowering) path(p Path) []*predicate {
	is := l.b.matches(l.b.pathInput(), equals(p.Value))
	switch {
	case p.Kind == Exact:
		return []*predicate{is}
	case p.Value == "/":
		return []*predicate{l.b.matches(l.b.pathInput(), beginsWith("/"))}
	}
	return []*predicate{is, l.b.matches(l.b.pathInput(), beginsWith(p.Value+"/"))}
}
