package storebench

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func TestExplore(t *testing.T) {
	n := largeWorkloads
	if os.Getenv("N") != "" {
		fmt.Sscan(os.Getenv("N"), &n)
	}
	m := mesh.New(t, mesh.Config{})
	content := largeSpec(n)
	fmt.Println("bytes", len(content))
	prof := func(name string) func() {
		f, _ := os.Create("/tmp/perf-" + name)
		pprof.StartCPUProfile(f)
		return func() { pprof.StopCPUProfile(); f.Close() }
	}
	stop := prof("large")
	start := time.Now()
	resp, err := m.Admin().Apply(t.Context(), &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "a.yaml", Content: content}}})
	stop()
	fmt.Println("apply", time.Since(start), err)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(len(resp.Changes), resp.Revision)
	var ms runtime.MemStats
	resp = nil
	content = nil
	runtime.GC()
	runtime.ReadMemStats(&ms)
	fmt.Println("heap MiB", ms.HeapAlloc>>20, "sys", ms.Sys>>20)
	stop = prof("small")
	for i := range 30 {
		start := time.Now()
		_, err := m.Admin().Apply(t.Context(), &ztv1.ApplyRequest{Merge: true, Files: []*ztv1.File{{Name: "a.yaml", Content: []byte(
			grant("team-0", "service-0-calls-0", "workloads: [team-1/service-1]", "service-0", fmt.Sprintf("[/x%d]", i)))}}})
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			fmt.Println("small", time.Since(start))
		}
	}
	stop()
}
