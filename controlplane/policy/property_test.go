package policy_test

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

// change is a random step from one spec to another.
type change struct {
	puts    []*spec.Document
	deletes []spec.Key
	after   []*spec.Document
	keys    []spec.Key // in which the two differ
}

func drawChange(t *rapid.T, docs []*spec.Document) change {
	var c change
	after := map[spec.Key]*spec.Document{}
	before := map[spec.Key]*spec.Document{}
	for _, d := range docs {
		after[d.Key()], before[d.Key()] = d, d
		if rapid.IntRange(0, 9).Draw(t, "delete") == 0 {
			c.deletes = append(c.deletes, d.Key())
			delete(after, d.Key())
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "puts") {
		d := specgen.Document(t)
		if len(docs) > 0 && rapid.Bool().Draw(t, "edit") {
			d = edited(t, rapid.SampledFrom(docs).Draw(t, "of"))
		}
		c.puts = append(c.puts, d)
		after[d.Key()] = d
	}
	for k, d := range after {
		c.after = append(c.after, d)
		if b := before[k]; b == nil || !bytes.Equal(spec.Canonical(b), spec.Canonical(d)) {
			c.keys = append(c.keys, k)
		}
	}
	for k := range before {
		if after[k] == nil {
			c.keys = append(c.keys, k)
		}
	}
	slices.SortFunc(c.after, func(a, b *spec.Document) int { return a.Key().Compare(b.Key()) })
	slices.SortFunc(c.keys, spec.Key.Compare)
	return c
}

// edited is d with a part of another document of its kind.
func edited(t *rapid.T, d *spec.Document) *spec.Document {
	other := rapid.Custom(specgen.Document).Filter(func(o *spec.Document) bool { return o.GetKind() == d.GetKind() }).Draw(t, "other")
	c, err := spec.Decode(spec.Canonical(d))
	if err != nil {
		t.Fatal(err)
	}
	part := rapid.IntRange(0, 3).Draw(t, "part")
	switch {
	case c.GetGrant() != nil && part == 0:
		c.GetGrant().From = other.GetGrant().From
	case c.GetGrant() != nil && part == 1:
		c.GetGrant().To.Methods, c.GetGrant().To.Paths = other.GetGrant().To.Methods, other.GetGrant().To.Paths
	case c.GetGrant() != nil && part == 2:
		c.GetGrant().To.Services = other.GetGrant().To.Services
	case c.GetGrant() != nil:
		c.GetGrant().Owner = "someone else"
	case c.GetWorkload() != nil && part == 0:
		c.GetWorkload().Serves = other.GetWorkload().Serves
	case c.GetWorkload() != nil && part == 1:
		c.GetWorkload().TcpCalls = other.GetWorkload().TcpCalls
	case c.GetMesh() != nil:
		c.GetMesh().MaxConnectionAge = other.GetMesh().MaxConnectionAge
	default:
		c.Metadata.Labels = map[string]string{"team": "another"}
	}
	return c
}

const unbuildable = "error: "

// configs is the configuration of every workload, as text; an error is one, too.
func configs(ix *policy.Index) map[spec.Ref]string {
	out := map[spec.Ref]string{}
	ix.Workloads(func(w *policy.Workload) bool {
		c, err := compile.Workload(ix, nil, w.Ref)
		if err != nil {
			out[w.Ref] = unbuildable + err.Error()
		} else {
			out[w.Ref] = c.YAML()
		}
		return true
	})
	return out
}

func diff(before, after map[spec.Ref]string) []spec.Ref {
	var refs []spec.Ref
	for ref, text := range after {
		if before[ref] != text {
			refs = append(refs, ref)
		}
	}
	for ref := range before {
		if _, ok := after[ref]; !ok {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, spec.Ref.Compare)
	return refs
}

// TestTouched holds Touched to its word on sound specs: exactly the workloads
// whose compiled configuration differs. A step that leads to an unsound spec is
// not taken.
func TestTouched(t *testing.T) {
	steps, touched := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Sound(t)
		c := drawChange(t, docs)
		if len(spec.Check(c.after, specgen.TrustDomain)) > 0 {
			return
		}
		old := policy.New(specgen.TrustDomain, docs)
		ix := old.With(c.puts, c.deletes)
		before, after := configs(old), configs(ix)
		for ref, text := range after {
			if strings.HasPrefix(text, unbuildable) {
				t.Fatalf("%s of a sound spec: %s", ref, text)
			}
		}
		got, want := ix.Touched(old, c.keys), diff(before, after)
		if !slices.Equal(got, want) {
			t.Fatalf("changed %v: touched %v, want %v", c.keys, got, want)
		}
		steps, touched = steps+1, touched+len(got)
	})
	if steps == 0 || touched == 0 {
		t.Errorf("%d steps touched %d workloads: the generator makes nothing", steps, touched)
	}
}

// TestTouchedOfAnything: nor is anything missed, or too much, of a spec that
// Check would refuse, those workloads aside that have no configuration to
// compare.
func TestTouchedOfAnything(t *testing.T) {
	needed, named := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Any(t)
		c := drawChange(t, docs)
		old, ix := policy.New(specgen.TrustDomain, docs), policy.New(specgen.TrustDomain, c.after)
		before, after := configs(old), configs(ix)
		got, want := ix.Touched(old, c.keys), diff(before, after)
		for _, ref := range want {
			if !slices.Contains(got, ref) {
				t.Fatalf("changed %v: touched %v, which misses %s:\n%s\n%s", c.keys, got, ref, before[ref], after[ref])
			}
		}
		for _, ref := range got {
			if slices.Contains(want, ref) {
				needed++
			} else if strings.HasPrefix(after[ref], unbuildable) {
				continue
			}
			named++
		}
	})
	if named != needed || named == 0 {
		t.Errorf("%d workloads touched, %d of them differ", named, needed)
	}
}

// TestWithIsNew: a chain of changes ends in what New makes of its last spec.
func TestWithIsNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Any(t)
		ix := policy.New(specgen.TrustDomain, docs)
		for range 3 {
			c := drawChange(t, docs)
			untouched := configs(ix)
			next := ix.With(c.puts, c.deletes)
			if !slices.Equal(diff(untouched, configs(ix)), nil) {
				t.Fatal("With changed the index that it was called on")
			}
			// A put outlives a delete of its key in one change.
			docs, ix = c.after, next
			fresh := policy.New(specgen.TrustDomain, specgen.Shuffled(t, docs))
			if refs := diff(configs(fresh), configs(ix)); refs != nil {
				t.Fatalf("New and With differ in %v:\n%s\n%s", refs, configs(fresh)[refs[0]], configs(ix)[refs[0]])
			}
			if fresh.Mesh() != ix.Mesh() {
				t.Fatalf("mesh is %v, want %v", ix.Mesh(), fresh.Mesh())
			}
		}
	})
}

// TestGates compares Closed and Opened with all pairs of both sides, at two
// moments.
func TestGates(t *testing.T) {
	closed := 0
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Any(t)
		c := drawChange(t, docs)
		old, ix := policy.New(specgen.TrustDomain, docs), policy.New(specgen.TrustDomain, c.after)
		was, now := moment(t), moment(t)
		before, after := pairs(old, was), pairs(ix, now)
		if got, want := ix.Closed(old, c.keys, was, now), minus(before, after); !slices.Equal(bare(got), want) {
			t.Fatalf("changed %v: closed %v too many, %v too few", c.keys, minus(bare(got), want), minus(want, bare(got)))
		}
		if got, want := ix.Opened(old, c.keys, was, now), minus(after, before); !slices.Equal(bare(got), want) {
			t.Fatalf("changed %v: opened %v too many, %v too few", c.keys, minus(bare(got), want), minus(want, bare(got)))
		}
		closed += len(minus(before, after))
	})
	if closed == 0 {
		t.Error("no gate was ever closed")
	}
}

// moment is one of a few, so that what begins and ends does so between them.
func moment(t *rapid.T) time.Time {
	return rapid.SampledFrom([]time.Time{
		time.Date(2026, 3, 28, 1, 0, 0, 0, time.UTC), time.Date(2026, 3, 30, 10, 30, 0, 0, time.UTC), time.Date(2026, 7, 1, 20, 0, 0, 0, time.UTC),
	}).Draw(t, "moment")
}

// bare is pairs without why.
func bare(list []policy.Pair) []policy.Pair {
	out := slices.Clone(list)
	for i := range out {
		out[i].Blocked = false
	}
	return out
}

func pairs(ix *policy.Index, now time.Time) []policy.Pair {
	var out []policy.Pair
	ix.Workloads(func(w *policy.Workload) bool {
		for _, p := range w.Ports {
			for _, id := range ix.Callers(w.Ref, p.Name) {
				if ix.Admits(w.Ref, p.Name, id, now) {
					out = append(out, policy.Pair{Service: w.Ref, Port: p.Name, SourceID: id})
				}
			}
		}
		return true
	})
	slices.SortFunc(out, func(a, b policy.Pair) int {
		return cmp.Or(a.Service.Compare(b.Service), strings.Compare(a.Port, b.Port), strings.Compare(a.SourceID, b.SourceID))
	})
	return out
}

func minus(a, b []policy.Pair) []policy.Pair {
	return slices.DeleteFunc(slices.Clone(a), func(p policy.Pair) bool { return slices.Contains(b, p) })
}

var noon = time.Date(2026, 3, 30, 12, 0, 0, 0, time.UTC)

// TestDecideAgreesWithRules: the verdict, the gate, the rules and what a caller
// is told that it may call are four views of one thing.
func TestDecideAgreesWithRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ix := policy.New(specgen.TrustDomain, specgen.Any(t))
		ix.Workloads(func(caller *policy.Workload) bool {
			reach := ix.Destinations(caller.Ref)
			ix.Workloads(func(w *policy.Workload) bool {
				for _, p := range w.Ports {
					admitted := slices.Contains(ix.Callers(w.Ref, p.Name), caller.ID)
					told := slices.ContainsFunc(reach, func(d policy.Destination) bool {
						return d.Service == w.Ref && *d.Port == p && d.ID == w.ID
					})
					if admitted != told || ix.Admits(w.Ref, p.Name, caller.ID, noon) && !admitted {
						t.Fatalf("%s -> %s:%s: gate %v, destination %v", caller.Ref, w.Ref, p.Name, admitted, told)
					}
					for _, method := range []string{"GET", "POST"} {
						for _, path := range []string{"/", "/a/b", "/s.S/Get"} {
							r := policy.Request{CallerID: caller.ID, Service: w.Ref, Port: p.Name, Method: method, Path: path, TCP: p.Protocol == policy.TCP}
							d := ix.Decide(r)
							if d.Allowed && !admitted || d.Allowed != (len(d.Grants) > 0) || d.Allowed == (len(d.Hints) > 0) {
								t.Fatalf("%+v: gate %v, %+v", r, admitted, d)
							}
						}
					}
				}
				return true
			})
			return true
		})
	})
}
