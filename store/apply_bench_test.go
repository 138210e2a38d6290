package store_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/controlplane/zttest/stats"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// figure prints what has a goal; see the Makefile.
func figure(name string, value float64, unit, sign string, limit float64) {
	met := map[bool]string{true: "met", false: "short"}[sign == "<=" && value <= limit || sign == ">=" && value >= limit]
	fmt.Printf("figure %s %.3g %s goal %s %g %s\n", name, value, unit, sign, limit, met)
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("%v [%v, %v], p99 %v", stats.Quantile(d, .5).Round(time.Microsecond), stats.Quantile(d, .25).Round(time.Microsecond),
		stats.Quantile(d, .75).Round(time.Microsecond), stats.Quantile(d, .99).Round(time.Microsecond))
}

func request(merge bool, yaml string) *ztv1.ApplyRequest {
	return &ztv1.ApplyRequest{Merge: merge, Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(yaml)}}}
}

func workload(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: %s}\n"+
		"spec: {serves: [{name: http, port: 8080, protocol: http}]}\n", namespace, name)
}

// small is an apply of one grant that differs from the one before.
func small(n int) *ztv1.ApplyRequest {
	return request(true, grant("team-0", "service-0-calls-0", "workloads: [team-0/service-0]", "service-0", fmt.Sprintf("[/x%d]", n)))
}

func mustApply(b *testing.B, s *mesh.Server, req *ztv1.ApplyRequest) time.Duration {
	b.Helper()
	start := time.Now()
	if _, err := s.Admin().Apply(b.Context(), req); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkApply is one small apply after the other, from the client's call over mTLS
// and gRPC to its answer, and beside it, in turn and on the same disk, an entry of
// the size that it makes by bare raft: on one server and on three. A call that changes
// nothing tells what gRPC alone takes.
func BenchmarkApply(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprint(servers), func(b *testing.B) {
			m := mesh.New(b, mesh.Config{Servers: servers, Tune: timing})
			leader, under := m.Leader(), store.BareRaft(b, servers, store.Patient)
			mustApply(b, leader, request(false, workload("team-0", "service-0")))
			entry := make([]byte, 512)
			var applied, committed, called []time.Duration
			n := 0
			for b.Loop() {
				for range 300 {
					n++
					applied = append(applied, mustApply(b, leader, small(n)))
					start := time.Now()
					if err := under.Apply(entry, time.Minute).Error(); err != nil {
						b.Fatal(err)
					}
					committed = append(committed, time.Since(start))
					start = time.Now()
					if _, err := leader.Admin().GetServerInfo(b.Context(), &ztv1.GetServerInfoRequest{}); err != nil {
						b.Fatal(err)
					}
					called = append(called, time.Since(start))
				}
			}
			ratio := func(q float64) float64 {
				return float64(stats.Quantile(applied, q)) / float64(stats.Quantile(committed, q))
			}
			fmt.Printf("apply on %d servers: %s; bare raft: %s; a call that changes nothing: %s; %d of each\n", servers, spread(applied), spread(committed), spread(called), n)
			figure(fmt.Sprintf("apply-over-bare-raft-p50-of-%d", servers), ratio(.5), "x", "<=", 2)
			figure(fmt.Sprintf("apply-over-bare-raft-p99-of-%d", servers), ratio(.99), "x", "<=", 3)
		})
	}
}

// timing is one by which no leader loses its place, however busy the machine is.
func timing(c *controlplane.Config) { c.Timing = store.Patient }

// BenchmarkWriters is 64 clients that each change a namespace of their own.
func BenchmarkWriters(b *testing.B) {
	const writers, each = 64, 20
	m := mesh.New(b, mesh.Config{Servers: 3, Tune: timing})
	leader := m.Leader()
	var n atomic.Int64
	var rates []float64
	for b.Loop() {
		start := time.Now()
		var tasks sync.WaitGroup
		for w := range writers {
			tasks.Go(func() {
				for range each {
					yaml := workload(fmt.Sprint("team-", w), fmt.Sprint("v", n.Add(1)))
					if _, err := leader.Admin().Apply(b.Context(), request(false, yaml)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		tasks.Wait()
		rates = append(rates, writers*each/time.Since(start).Seconds())
	}
	slices.Sort(rates)
	fmt.Printf("64 writers: %.0f applies/s [%.0f, %.0f], %d rounds\n", rates[len(rates)/2], rates[0], rates[len(rates)-1], len(rates))
	figure("applies-of-64-writers", rates[len(rates)/2], "1/s", ">=", 300)
}

// BenchmarkLarge is 10,000 workloads and 50,000 grants on three servers: the apply of
// all of them, one changed grant in that state against one in a small state, small
// applies while snapshots of it are written, and a restart of the real ztd.
func BenchmarkLarge(b *testing.B) {
	m := mesh.New(b, mesh.Config{Servers: 3, Tune: func(c *controlplane.Config) {
		timing(c)
		c.Timing.SnapshotInterval, c.Timing.SnapshotEntries = 2*time.Second, 1000 // none before they are wanted
	}})
	leader := m.Leader()
	mustApply(b, leader, request(false, workload("team-0", "service-0")))
	var before, after, during []time.Duration
	for n := range 300 {
		before = append(before, mustApply(b, leader, small(n)))
	}
	content := string(largeSpec(benchWorkloads()))
	fmt.Printf("large spec: %d MB applied in %v on three servers\n", len(content)/1_000_000, mustApply(b, leader, request(false, content)).Round(time.Millisecond))
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	fmt.Printf("large spec: heap %d MiB, three servers and the client in one process\n", mem.HeapAlloc>>20)
	const snapshots = "zt_store_snapshots_total"
	n := 1000
	for range 300 {
		n++
		after = append(after, mustApply(b, leader, small(n)))
	}
	if leader.Metric(snapshots) != 0 {
		b.Fatal("a snapshot was written while there was to be none: nothing is there to compare with")
	}
	for deadline := time.Now().Add(2 * time.Minute); leader.Metric(snapshots) < 3; {
		if time.Now().After(deadline) {
			b.Fatalf("%v of 3 snapshots in two minutes", leader.Metric(snapshots))
		}
		for range 50 {
			n++
			during = append(during, mustApply(b, leader, small(n)))
		}
	}
	fmt.Printf("one grant: small state %s; large state %s; with snapshots %s, longest %v, %d applies, %v snapshots\n",
		spread(before), spread(after), spread(during), stats.Quantile(during, 1), len(during), leader.Metric(snapshots))
	figure("grant-in-large-state-over-small", float64(stats.Quantile(after, .5))/float64(stats.Quantile(before, .5)), "x", "<=", 3)
	figure("apply-stall-by-snapshots", max(0, stats.Quantile(during, 1)-stats.Quantile(after, 1)).Seconds()*1000, "ms", "<=", 100)

	other := m.Others(leader)[0]
	bin := build(b)
	other.Stop()
	figure("restart-with-large-state", runReal(b, bin, other).ready.Seconds(), "s", "<=", 5)
	for b.Loop() { // everything is measured once
	}
}
