package spec

import (
	"slices"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// segments is which workload is in which of them. "" stands for none.
type segments struct {
	docs        map[string]*Document
	byNamespace map[string]*Document
	byWorkload  map[Ref]*Document
	admits      map[string]map[string]bool
	// within is the segments of the workloads of a namespace, or with "" of all.
	within map[string][]string
}

func newSegments() *segments {
	return &segments{
		docs: map[string]*Document{}, byNamespace: map[string]*Document{}, byWorkload: map[Ref]*Document{},
		admits: map[string]map[string]bool{}, within: map[string][]string{},
	}
}

func (s *segments) add(d *Document) {
	s.docs[d.Ref().Name] = d
	for _, ns := range d.GetSegment().GetNamespaces() {
		s.byNamespace[ns] = kept(d, s.byNamespace[ns])
	}
	for _, w := range d.GetSegment().GetWorkloads() {
		if ref, err := ParseRef(w, ""); err == nil {
			s.byWorkload[ref] = kept(d, s.byWorkload[ref])
		}
	}
	admits := map[string]bool{d.Ref().Name: true}
	for _, other := range d.GetSegment().GetAdmits() {
		admits[other] = true
	}
	s.admits[d.Ref().Name] = admits
}

// kept is which of two documents, of which the second may be nil, need not change.
func kept(a, b *Document) *Document {
	if b == nil {
		return a
	}
	_, k := blame(a, b)
	return k
}

// join sorts the workloads into their segments.
func (s *segments) join(workloads map[Ref]*Document) {
	seen := map[[2]string]bool{}
	for ref := range workloads {
		segment := s.of(ref)
		for _, ns := range []string{"", ref.Namespace} {
			if at := [2]string{ns, segment}; !seen[at] {
				seen[at] = true
				s.within[ns] = append(s.within[ns], segment)
			}
		}
	}
	for _, list := range s.within {
		slices.Sort(list)
	}
}

// of is the segment of the workload ref.
func (s *segments) of(ref Ref) string {
	if d := s.byWorkload[ref]; d != nil {
		return d.Ref().Name
	}
	if d := s.byNamespace[ref.Namespace]; d != nil {
		return d.Ref().Name
	}
	return ""
}

// requires is the provider of whom segment wants a user, or empty.
func (s *segments) requires(segment string) string {
	if d := s.docs[segment]; d != nil {
		return d.GetSegment().GetRequireUser()
	}
	return ""
}

func (c *checker) segmentRef(d *Document, path, name string) {
	if isLabel(name) && c.segments.docs[name] == nil {
		c.say(d, codeNoSegment, path, didYouMean(name, sortedKeys(c.segments.docs)), "there is no segment %s", name)
	}
}

func (c *checker) segment(d *Document, s *ztv1.Segment) {
	c.namespacesExist(d, "spec.namespaces", s.GetNamespaces())
	for i, ns := range s.GetNamespaces() {
		if other := c.segments.byNamespace[ns]; other != d && other != nil {
			c.say(d, codeTwoSegments, index("spec.namespaces", i), "", "the namespace %s is in %s already", show(ns), other.Key())
		}
	}
	for i, w := range s.GetWorkloads() {
		path := index("spec.workloads", i)
		ref, err := ParseRef(w, "")
		if err != nil {
			continue
		}
		if c.workloads[ref] == nil {
			c.say(d, codeNoWorkload, path, c.near(ref, c.workloads), "there is no workload %s", ref)
		}
		if other := c.segments.byWorkload[ref]; other != d && other != nil {
			c.say(d, codeTwoSegments, path, "", "the workload %s is in %s already", ref, other.Key())
		} else if other := c.segments.byNamespace[ref.Namespace]; other != d && other != nil {
			c.say(d, codeTwoSegments, path, "", "the workload %s is in %s already, by its namespace", ref, other.Key())
		}
	}
	for i, name := range s.GetAdmits() {
		c.segmentRef(d, index("spec.admits", i), name)
	}
	if s.GetRequireUser() != "" {
		c.providerRef(d, "spec.requireUser", s.GetRequireUser())
	}
}

// callerSegments are the segments that callers are in, "" among them where some
// are in none. Identities of other trust domains are in none.
func (c *checker) callerSegments(from *ztv1.Caller, namespace string) []string {
	in := map[string]bool{}
	for _, s := range from.GetWorkloads() {
		if ref, err := ParseRef(s, namespace); err == nil && c.workloads[ref] != nil {
			in[c.segments.of(ref)] = true
		}
	}
	for _, ns := range from.GetNamespaces() {
		for _, s := range c.segments.within[ns] {
			in[s] = true
		}
	}
	for _, s := range from.GetSegments() {
		in[s] = true
	}
	for _, id := range from.GetSpiffeIds() {
		td, path, err := ParseID(id)
		if ref, ok := workloadOf(path); ok && td == c.own() && c.workloads[ref] != nil {
			in[c.segments.of(ref)] = true
		} else if err == nil && td != c.own() {
			in[""] = true
		}
	}
	if from.GetAnyWorkload() {
		for _, s := range c.segments.within[""] {
			in[s] = true
		}
	}
	return sortedKeys(in)
}

// admitted reports callers of a segment that the segment of what they reach does
// not admit.
func (c *checker) admitted(d *Document, path string, callers []string, reached []shape) {
	for _, s := range reached {
		if s.segment == "" {
			continue
		}
		for _, caller := range callers {
			if c.segments.admits[s.segment][caller] {
				continue
			}
			who := "is in no segment"
			if caller != "" {
				who = "is in the segment " + caller
			}
			c.say(d, codeNotAdmitted, path, "", "a caller %s, which the segment %s does not admit", who, s.segment)
			return
		}
	}
}
