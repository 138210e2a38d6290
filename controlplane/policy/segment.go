package policy

import (
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// segment is a Segment document.
type segment struct {
	ref        spec.Ref
	namespaces []string
	workloads  []spec.Ref
	admits     []string
	settings   Settings // zero where it says nothing
}

func newSegment(ref spec.Ref, d *ztv1.Segment) *segment {
	s := &segment{
		ref: ref, namespaces: set(d.GetNamespaces()), workloads: references(d.GetWorkloads(), ""), admits: set(d.GetAdmits()),
		settings: Settings{RequireUser: d.GetRequireUser()},
	}
	if ttl := d.GetSvidTtl(); ttl != nil {
		s.settings.SVIDTTL = ttl.AsDuration()
	}
	if age := d.GetMaxConnectionAge(); age != nil {
		s.settings.MaxConnectionAge = age.AsDuration()
	}
	return s
}

// segmentation is all Segments together. It is made anew when one changes.
type segmentation struct {
	byNamespace map[string][]*segment
	byWorkload  map[spec.Ref][]*segment
	members     map[string]Callers    // by the name of a segment of the namespace "mesh"
	admitted    map[*segment]*Callers // who may be granted anything in it
}

func newSegmentation(tree *iradix.Tree[*segment]) *segmentation {
	all := &segmentation{
		byNamespace: map[string][]*segment{}, byWorkload: map[spec.Ref][]*segment{},
		members: map[string]Callers{}, admitted: map[*segment]*Callers{},
	}
	named := map[string]map[*segment]bool{} // the segments that name workloads of a namespace
	walk(tree, nil, func(s *segment) bool {
		for _, ns := range s.namespaces {
			all.byNamespace[ns] = append(all.byNamespace[ns], s)
		}
		for _, w := range s.workloads {
			all.byWorkload[w] = append(all.byWorkload[w], s)
			if named[w.Namespace] == nil {
				named[w.Namespace] = map[*segment]bool{}
			}
			named[w.Namespace][s] = true
		}
		return true
	})
	walk(tree, nil, func(s *segment) bool {
		if s.ref.Namespace != spec.MeshNamespace {
			return true
		}
		// What two segments name is a member of neither, as spec.Check has it. This
		// narrows.
		var c Callers
		for _, ns := range s.namespaces {
			alone := len(all.byNamespace[ns]) == 1 && (len(named[ns]) == 0 || len(named[ns]) == 1 && named[ns][s])
			if alone {
				c.Namespaces = append(c.Namespaces, ns)
			}
		}
		for _, w := range s.workloads {
			if len(all.of(w)) == 1 {
				c.Workloads = append(c.Workloads, w)
			}
		}
		all.members[s.ref.Name] = c
		return true
	})
	walk(tree, nil, func(s *segment) bool {
		c := all.members[s.ref.Name]
		if s.ref.Namespace != spec.MeshNamespace {
			c = Callers{}
		}
		for _, name := range s.admits {
			c = c.union(all.members[name])
		}
		all.admitted[s] = &c
		return true
	})
	return all
}

// of are the segments that a workload is in: at most one in a checked spec.
func (all *segmentation) of(w spec.Ref) []*segment {
	byNS, byName := all.byNamespace[w.Namespace], all.byWorkload[w]
	if len(byName) == 0 {
		return byNS
	}
	out := slices.Clone(byNS)
	for _, s := range byName {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Segment is the name of the segment that the workload ref is in; false when it
// is in none.
func (ix *Index) Segment(ref spec.Ref) (string, bool) {
	if in := ix.segments.of(ref); len(in) == 1 {
		return in[0].ref.Name, true
	}
	return "", false
}
