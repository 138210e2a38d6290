package compile_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	meshWorkloads = 1000
	meshGrants    = 5 // of each workload
)

// mesh is 1,000 workloads in ten namespaces, each with five grants to it: three
// from single workloads, one from a namespace, one with several paths.
func mesh() []*spec.Document {
	name := func(i int) (ns, n string) { return fmt.Sprintf("ns%d", i%10), fmt.Sprintf("w%d", i) }
	var docs []*spec.Document
	for i := range meshWorkloads {
		ns, n := name(i)
		docs = append(docs, &spec.Document{Document: &ztv1.Document{
			ApiVersion: spec.APIVersion, Kind: spec.KindWorkload, Metadata: &ztv1.Metadata{Namespace: ns, Name: n},
			Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{
				Serves: []*ztv1.Port{{Name: "http", Port: 8080, Protocol: "http"}},
			}},
		}})
		for g := range meshGrants {
			callerNS, caller := name((i*7 + g*131 + 1) % meshWorkloads)
			from := &ztv1.Caller{Workloads: []string{callerNS + "/" + caller}}
			to := &ztv1.Target{Services: []string{n}, Methods: []string{"GET", "POST"}, Paths: []string{fmt.Sprintf("/v%d/**", g)}}
			switch g {
			case 3:
				from = &ztv1.Caller{Namespaces: []string{fmt.Sprintf("ns%d", (i+1)%10)}}
			case 4:
				to.Paths = []string{"/a", "/b/**", "/c/d", "/e"}
			}
			docs = append(docs, grantDocument(ns, fmt.Sprintf("%s-g%d", n, g), from, to))
		}
	}
	return docs
}

func grantDocument(ns, name string, from *ztv1.Caller, to *ztv1.Target) *spec.Document {
	return &spec.Document{Document: &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindGrant, Metadata: &ztv1.Metadata{Namespace: ns, Name: name},
		Spec: &ztv1.Document_Grant{Grant: &ztv1.Grant{From: from, To: to}},
	}}
}

func compileAll(b *testing.B, ix *policy.Index) {
	ix.Workloads(func(w *policy.Workload) bool {
		if _, err := compile.Workload(ix, nil, w.Ref); err != nil {
			b.Fatal(err)
		}
		return true
	})
}

// BenchmarkCompileMesh is the whole mesh from documents to configurations, and
// beside it one edited grant: index, reverse index and what that touches. Their
// ratio does not depend on the machine.
func BenchmarkCompileMesh(b *testing.B) {
	docs := mesh()
	edits := []*spec.Document{
		grantDocument("ns0", "w0-g0", &ztv1.Caller{Workloads: []string{"ns1/w1"}}, &ztv1.Target{Services: []string{"w0"}, Methods: []string{"GET"}}),
		grantDocument("ns0", "w0-g0", &ztv1.Caller{Workloads: []string{"ns2/w2"}}, &ztv1.Target{Services: []string{"w0"}, Methods: []string{"GET"}}),
	}
	var full, edit time.Duration
	touched := 0
	for b.Loop() {
		start := time.Now()
		ix := policy.New("shop.example", docs)
		compileAll(b, ix)
		full += time.Since(start)

		const rounds = 50
		start = time.Now()
		for i := range rounds {
			next := ix.With(edits[i%2:i%2+1], nil)
			refs := next.Touched(ix, []spec.Key{edits[0].Key()})
			touched = len(refs)
			for _, ref := range refs {
				if _, err := compile.Workload(next, nil, ref); err != nil {
					b.Fatal(err)
				}
			}
			ix = next
		}
		edit += time.Since(start) / rounds
	}
	n := time.Duration(b.N)
	fullMS := float64(full/n) / float64(time.Millisecond)
	editMS := float64(edit/n) / float64(time.Millisecond)
	b.ReportMetric(fullMS, "ms/mesh")
	b.ReportMetric(editMS, "ms/edit")
	b.ReportMetric(float64(touched), "workloads/edit")
	// The goal is a ratio, since the milliseconds are those of a shared machine.
	figure("compile-1000x5", editMS/fullMS, "of-full", 0.01)
}

// figure prints a line that `make bench` collects.
func figure(name string, value float64, unit string, goal float64) {
	verdict := "met"
	if value > goal {
		verdict = "short"
	}
	fmt.Printf("figure %s %.4g %s goal <= %g %s\n", name, value, unit, goal, verdict)
}
