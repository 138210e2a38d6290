package controlplane_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// nothing is a state machine that keeps nothing.
type nothing struct{ raft.MockFSM }

func (*nothing) Apply(*raft.Log) any { return nil }

// bareRaft is hashicorp/raft with one server and the log store of ztd, and
// nothing around it.
func bareRaft(b *testing.B, dir string) *raft.Raft {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "log"), 0o700))
	log, err := wal.Open(filepath.Join(dir, "log"))
	check(err)
	snapshots, err := raft.NewFileSnapshotStore(dir, 1, nil)
	check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	check(l.Close()) // one server is never dialled
	address, transport := raft.NewInmemTransport(raft.ServerAddress(l.Addr().String()))
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogLevel = "bare", "OFF"
	check(raft.BootstrapCluster(conf, log, log, snapshots, transport, raft.Configuration{Servers: []raft.Server{{ID: "bare", Address: address}}}))
	r, err := raft.NewRaft(conf, &nothing{}, log, log, snapshots, transport)
	check(err)
	b.Cleanup(func() {
		check(r.Shutdown().Error())
		check(log.Close())
	})
	<-r.LeaderCh()
	return r
}

// BenchmarkApply is one small apply after the other, from the client's call over
// TLS and gRPC to its answer, and beside it, in turn and on the same disk, an
// entry of the size that it makes by bare Raft. Their ratio is what the API costs.
func BenchmarkApply(b *testing.B) {
	c := newCluster(b, 1, nil)
	bare := bareRaft(b, filepath.Join(filepath.Dir(c.Servers[0].Dir), "bare"))
	c.Submit(shop)
	admin, ctx := c.Admin(), b.Context()
	entry := make([]byte, 256)
	var applied, committed []time.Duration
	n := 0
	for b.Loop() {
		n++
		start := time.Now()
		if _, err := admin.Apply(ctx, applyRequest(workload("bench", fmt.Sprintf("w%d", n)))); err != nil {
			b.Fatal(err)
		}
		applied = append(applied, time.Since(start))
		start = time.Now()
		if err := bare.Apply(entry, time.Minute).Error(); err != nil {
			b.Fatal(err)
		}
		committed = append(committed, time.Since(start))
	}
	over, under := median(applied), median(committed)
	ratio := float64(over) / float64(under)
	b.ReportMetric(float64(over.Microseconds()), "µs/apply")
	b.ReportMetric(float64(under.Microseconds()), "µs/bare")
	verdict := "met"
	if ratio > 2 {
		verdict = "short"
	}
	fmt.Printf("figure apply-over-bare-raft-p50 %.3g x goal <= 2 %s\n", ratio, verdict)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
