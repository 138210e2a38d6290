package xds

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// canonical is r with its sets in order and nothing twice, in memory of its own.
// nil stays nil: it means any.
func (r Rule) canonical() Rule {
	r.Callers = r.Callers.canonical()
	r.Methods, r.Upgrades = set(r.Methods), set(r.Upgrades)
	r.Paths = setBy(r.Paths, func(a, b Path) int {
		return cmp.Or(strings.Compare(a.Value, b.Value), strings.Compare(string(a.Kind), string(b.Kind)))
	})
	r.Conditions = r.Conditions.canonical()
	return r
}

func (c Callers) canonical() Callers {
	c.IDs, c.Prefixes, c.Domains = set(c.IDs), set(c.Prefixes), set(c.Domains)
	return c
}

func (c Conditions) canonical() Conditions {
	c.Users = c.Users.canonical()
	c.Sources = set(c.Sources)
	c.Headers = slices.Clone(c.Headers)
	for i := range c.Headers {
		c.Headers[i].Values = set(c.Headers[i].Values)
	}
	slices.SortFunc(c.Headers, func(a, b Header) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.Values, b.Values))
	})
	c.Windows = slices.Clone(c.Windows)
	for i := range c.Windows {
		c.Windows[i].Days = setBy(c.Windows[i].Days, cmp.Compare[time.Weekday])
	}
	slices.SortFunc(c.Windows, func(a, b Window) int {
		return cmp.Or(strings.Compare(a.Zone, b.Zone), cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End), slices.Compare(a.Days, b.Days))
	})
	return c
}

func (u *Users) canonical() *Users {
	if u == nil {
		return nil
	}
	c := *u
	c.Claims = slices.Clone(u.Claims)
	for i := range c.Claims {
		c.Claims[i].Values = set(c.Claims[i].Values)
	}
	slices.SortFunc(c.Claims, func(a, b Claim) int {
		return cmp.Or(slices.Compare(a.Path, b.Path), strings.Compare(string(a.Kind), string(b.Kind)), slices.Compare(a.Values, b.Values))
	})
	return &c
}

// sortedRules orders rules by grant, and those of one grant by what else they
// say: where several match, the first is named.
func sortedRules(rules []Rule) []Rule {
	out := slices.Clone(rules)
	for i := range out {
		out[i] = out[i].canonical()
	}
	slices.SortStableFunc(out, func(a, b Rule) int {
		if c := strings.Compare(a.Grant, b.Grant); c != 0 {
			return c
		}
		return strings.Compare(a.text(), b.text())
	})
	return out
}

// text tells apart what is not equal.
func (r Rule) text() string {
	users := ""
	if r.Users != nil {
		users = fmt.Sprintf("%#v", *r.Users)
	}
	until := r.Until
	r.Users, r.Until = nil, time.Time{}
	return fmt.Sprintf("%#v %s %s", r, users, until.UTC().Format(time.RFC3339Nano))
}

func sortedBlocks(blocks []Block) []Block {
	out := slices.Clone(blocks)
	for i := range out {
		out[i].Users = out[i].Users.canonical()
		if c := out[i].Callers; c != nil {
			canonical := c.canonical()
			out[i].Callers = &canonical
		}
	}
	slices.SortFunc(out, func(a, b Block) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Shadow) sorted() *Shadow {
	if s == nil {
		return nil
	}
	return &Shadow{Rules: sortedRules(s.Rules)}
}

// set is a list whose order and repetitions mean nothing. nil stays nil.
func set(list []string) []string { return setBy(list, strings.Compare) }

func setBy[T comparable](list []T, compare func(a, b T) int) []T {
	return slices.Compact(slices.SortedFunc(slices.Values(list), compare))
}
