package compile_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

const meshGrants = 5 // of each workload

// mesh is n workloads in namespaces of so many, each with five grants to it: three
// from single workloads, one from a namespace, one with several paths.
func mesh(n, perNamespace int) []*spec.Document {
	namespaces := n / perNamespace
	name := func(i int) (ns, n string) { return fmt.Sprintf("ns%d", i%namespaces), fmt.Sprintf("w%d", i) }
	var docs []*spec.Document
	for i := range n {
		ns, w := name(i)
		docs = append(docs, &spec.Document{Document: &ztv1.Document{
			ApiVersion: spec.APIVersion, Kind: spec.KindWorkload, Metadata: &ztv1.Metadata{Namespace: ns, Name: w},
			Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{
				Serves: []*ztv1.Port{{Name: "http", Port: 8080, Protocol: "http"}},
			}},
		}})
		for g := range meshGrants {
			callerNS, caller := name((i*7 + g*131 + 1) % n)
			from := &ztv1.Caller{Workloads: []string{callerNS + "/" + caller}}
			to := &ztv1.Target{Services: []string{w}, Methods: []string{"GET", "POST"}, Paths: []string{fmt.Sprintf("/v%d/**", g)}}
			switch g {
			case 3:
				from = &ztv1.Caller{Namespaces: []string{fmt.Sprintf("ns%d", (i+1)%namespaces)}}
			case 4:
				to.Paths = []string{"/a", "/b/**", "/c/d", "/e"}
			}
			docs = append(docs, grantDocument(ns, fmt.Sprintf("%s-g%d", w, g), from, to))
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

func compileAll(b *testing.B, ix *policy.Index) []*xds.Config {
	var out []*xds.Config
	ix.Workloads(func(w *policy.Workload) bool {
		c, err := compile.Workload(ix, nil, w.Ref)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, c)
		return true
	})
	return out
}

// cpu is what this process has used, so that a busy machine does not count.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// edit changes one grant there and back, and compiles what that touches. It is the
// CPU time of one change, and the workloads that it touches.
func edit(b *testing.B, ix *policy.Index) (one time.Duration, touched int) {
	edits := []*spec.Document{
		grantDocument("ns0", "w0-g0", &ztv1.Caller{Workloads: []string{"ns1/w1"}}, &ztv1.Target{Services: []string{"w0"}, Methods: []string{"GET"}}),
		grantDocument("ns0", "w0-g0", &ztv1.Caller{Workloads: []string{"ns2/w2"}}, &ztv1.Target{Services: []string{"w0"}, Methods: []string{"GET"}}),
	}
	const rounds = 50
	runtime.GC()
	start := cpu()
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
	return (cpu() - start) / rounds, touched
}

// BenchmarkCompileMesh is a whole mesh from documents to configurations, beside it
// one edited grant, and the protobufs that are made of the configurations.
func BenchmarkCompileMesh(b *testing.B) {
	for _, size := range []struct{ workloads, perNamespace int }{{1000, 10}, {10000, 10}, {10000, 100}} {
		workloads := size.workloads
		b.Run(fmt.Sprintf("%dx%d", workloads, size.perNamespace), func(b *testing.B) {
			docs := mesh(workloads, size.perNamespace)
			for b.Loop() {
				runtime.GC()
				start := cpu()
				ix := policy.New("shop.example", docs)
				configs := compileAll(b, ix)
				full := cpu() - start
				one, touched := edit(b, ix)

				start = cpu()
				resources := 0
				for _, c := range configs[:1000] {
					r, err := xds.Build(c, xds.Instance{ID: "i", Address: "127.0.0.1", Egress: "127.0.0.1", Secrets: xds.FromADS})
					if err != nil {
						b.Fatal(err)
					}
					resources += len(r.All())
				}
				built := cpu() - start
				b.ReportMetric(float64(touched), "workloads/edit")
				name := fmt.Sprintf("compile-%dx%d-ns%d", workloads, meshGrants, size.perNamespace)
				figure(name, ms(full), "ms-cpu", 2000)
				figure(name+"-edit", ms(one), "ms-cpu", 5)
				figure(name+"-edit-of-full", ms(one)/ms(full), "of-full", 0.01)
				fmt.Printf("%s: building %.3g us-cpu/resource, %d resources each\n", name, 1000*ms(built)/float64(resources), resources/1000)
			}
		})
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// figure prints a line that `make bench` collects.
func figure(name string, value float64, unit string, goal float64) {
	verdict := "met"
	if value > goal {
		verdict = "short"
	}
	fmt.Printf("figure %s %.4g %s goal <= %g %s\n", name, value, unit, goal, verdict)
}
