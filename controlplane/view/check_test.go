package view_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// assertion is a random Assertion over the names of specgen.
func assertion(t *rapid.T) *spec.Document {
	ns := rapid.SampledFrom([]string{"a", "ab", "b"})
	name := rapid.SampledFrom([]string{"p", "q", "r", "rs"})
	a := &ztv1.Assertion{}
	for range rapid.IntRange(0, 2).Draw(t, "tests") {
		test := &ztv1.Test{
			As:      &ztv1.Subject{Workload: ns.Draw(t, "as") + "/" + name.Draw(t, "as")},
			Request: fmt.Sprintf("GET %s/%s /a", ns.Draw(t, "to"), name.Draw(t, "to")), Want: "allow",
		}
		if rapid.Bool().Draw(t, "by") {
			test.By = ns.Draw(t, "grant of") + "/" + rapid.SampledFrom([]string{"g", "h", "i"}).Draw(t, "grant")
		}
		a.Tests = append(a.Tests, test)
	}
	if rapid.Bool().Draw(t, "never") {
		a.Never = append(a.Never, specgen.Statement(t))
	}
	return &spec.Document{Document: &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindAssertion,
		Metadata: &ztv1.Metadata{Namespace: ns.Draw(t, "of"), Name: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "assertion")},
		Spec:     &ztv1.Document_Assertion{Assertion: a},
	}}
}

// TestCheck: a change is found sound exactly if all documents together are, over
// chains of random changes of random specs, as long as nothing changes on which all
// depend.
func TestCheck(t *testing.T) {
	yes, no := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Sound(t)
		v := view.New(specgen.TrustDomain).With(docs, nil)
		if len(spec.Check(v.Documents(), specgen.TrustDomain)) > 0 {
			t.Fatal("the first spec is not sound")
		}
		v = v.Sound()
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			var puts []*spec.Document
			var deletes []spec.Key
			pool := slices.DeleteFunc(append(specgen.Any(t), assertion(t)), func(d *spec.Document) bool { return spread(d.GetKind()) })
			for range rapid.IntRange(0, 3).Draw(t, "puts") {
				d := rapid.SampledFrom(pool).Draw(t, "put")
				if !slices.ContainsFunc(puts, func(p *spec.Document) bool { return p.Key() == d.Key() }) {
					puts = append(puts, d)
				}
			}
			for _, d := range v.Documents() {
				put := slices.ContainsFunc(puts, func(p *spec.Document) bool { return p.Key() == d.Key() })
				if !put && !spread(d.GetKind()) && rapid.IntRange(0, 30).Draw(t, "delete") == 0 {
					deletes = append(deletes, d.Key())
				}
			}
			next := v.With(puts, deletes)
			problems := spec.Check(next.Documents(), specgen.TrustDomain)
			sound, ok := v.Check(next, puts, deletes)
			if ok != (len(problems) == 0) {
				t.Fatalf("sound: %v; all together: %v\nputs %v\ndeletes %v", ok, problems, keysOf(puts), deletes)
			}
			if ok {
				v = sound
				yes++
			} else {
				no++
			}
		}
	})
	t.Logf("%d sound changes, %d others", yes, no)
	if yes < 50 || no < 50 {
		t.Errorf("%d sound changes and %d others show too little", yes, no)
	}
}

// TestCheckOfWhatAllDependsOn: what may concern every document is never judged from
// a few of them, nor is anything in a spec that is not known to be sound.
func TestCheckOfWhatAllDependsOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := view.New(specgen.TrustDomain).With(specgen.Sound(t), nil)
		for _, d := range v.Documents() {
			next := v.With(nil, []spec.Key{d.Key()})
			if _, ok := v.Check(next, nil, []spec.Key{d.Key()}); ok {
				t.Fatal("judged on a spec that nobody has checked")
			}
			sound := v.Sound()
			if _, ok := sound.Check(sound.With(nil, []spec.Key{d.Key()}), nil, []spec.Key{d.Key()}); ok && spread(d.GetKind()) {
				t.Fatalf("judged the removal of %s alone", d.Key())
			}
		}
	})
}

func spread(kind string) bool {
	return slices.Contains([]string{spec.KindMesh, spec.KindSegment, spec.KindIdentityProvider, spec.KindException}, kind)
}

func keysOf(docs []*spec.Document) (out []spec.Key) {
	for _, d := range docs {
		out = append(out, d.Key())
	}
	return out
}
