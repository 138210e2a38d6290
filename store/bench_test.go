package store

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/stats"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

const (
	benchWriters = 64
	benchEntries = 1024 // proposed in one round
)

// patient is a timing by which no leader loses its place, however busy the machine is.
var patient = Timing{Heartbeat: 4 * time.Second, Election: 4 * time.Second, Lease: 4 * time.Second}

// BenchmarkPropose compares Propose, of one server and of three, with bare raft over the same log
// store on the same disk: as many writers, as many bytes, in rounds by turns. Small
// entries are 150 bytes: there the disk counts least, and what Propose does most. The CPU
// of an entry, of all servers and writers, says something on a machine that is not free,
// too.
//
//	go test -run '^$' -bench Propose ./store
func BenchmarkPropose(b *testing.B) {
	for name, size := range map[string]int{"": 4 << 10, "-small": 0} {
		for _, servers := range []int{1, 3} {
			b.Run(fmt.Sprintf("%d-%d", size, servers), func(b *testing.B) {
				benchmarkPropose(b, fmt.Sprintf("store-propose-ratio%s-of-%d", name, servers), size, servers)
			})
		}
	}
}

func benchmarkPropose(b *testing.B, figure string, size, servers int) {
	c := newTestCluster(b, loopback())
	c.timing = patient
	s := c.begin([]string{"a", "b", "c"}[:servers]...)
	padding := strings.Repeat("x", size)
	entry := func(i int) *logv1.Entry {
		v := &logv1.Server{Id: fmt.Sprint("s", i%100), AdminAddress: "192.0.2.1:7400", NodeAddress: "192.0.2.1:7401", Version: fmt.Sprint(i, padding)}
		return &logv1.Entry{Who: "spiffe://control.shop.example/server/a", Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: v}}}
	}
	bare := bareRaft(b, servers, patient)
	ctx := context.Background()
	var ours, theirs, ourCPU, theirCPU []time.Duration
	for b.Loop() {
		began := cpu(b)
		theirs = append(theirs, round(b, func(i int) error {
			e := entry(i)
			e.Format, e.When = state.Format, timestamppb.New(time.Now())
			data, err := proto.Marshal(e)
			if err != nil {
				return err
			}
			return bare.Apply(data, 0).Error()
		}))
		between := cpu(b)
		ours = append(ours, round(b, func(i int) error {
			r, err := s.Propose(ctx, entry(i))
			if err != nil {
				return err
			}
			return r.Err
		}))
		theirCPU, ourCPU = append(theirCPU, between-began), append(ourCPU, cpu(b)-between)
	}
	ratio := float64(stats.Median(theirs)) / float64(stats.Median(ours))
	verdict := "met"
	if ratio < 0.7 {
		verdict = "short"
	}
	b.ReportMetric(benchEntries/stats.Median(ours).Seconds(), "proposals/s")
	b.ReportMetric(benchEntries/stats.Median(theirs).Seconds(), "bare/s")
	b.ReportMetric(stats.Median(ourCPU).Seconds()*1e6/benchEntries, "cpu-µs")
	b.ReportMetric(stats.Median(theirCPU).Seconds()*1e6/benchEntries, "bare-cpu-µs")
	fmt.Printf("figure %s %.2f x goal >= 0.7 %s\n", figure, ratio, verdict)
}

// BenchmarkAudit compares proposals that leave an audit record with the same that leave
// none, of as many bytes, in rounds by turns. (Before the chain has begun, who says no
// method leaves none.) Of small entries a record is the larger part.
//
//	go test -run '^$' -bench Audit ./store
func BenchmarkAudit(b *testing.B) {
	for name, size := range map[string]int{"": 4 << 10, "-small": 0} {
		for _, servers := range []int{1, 3} {
			b.Run(fmt.Sprintf("%d-%d", size, servers), func(b *testing.B) {
				benchmarkAudit(b, fmt.Sprintf("audit-over-none%s-of-%d", name, servers), size, servers)
			})
		}
	}
}

func benchmarkAudit(b *testing.B, figure string, size, servers int) {
	const method = "/zt.v1alpha1.AdminService/AddAdmin"
	names := []string{"a", "b", "c"}[:servers]
	with, without := newTestCluster(b, loopback()), newTestCluster(b, loopback())
	with.timing, without.timing = patient, patient
	audited, bare := with.begin(names...), without.begin(names...)
	padding := strings.Repeat("x", size)
	propose := func(s *Store, method, from string) func(int) error {
		return func(i int) error {
			r, err := s.Propose(context.Background(), &logv1.Entry{
				Who: "admin/a", From: from, SpiffeId: "spiffe://control.shop.example/admin/a", Method: method,
				Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{
					Name: fmt.Sprint("a", i%100), Role: "editor", Namespaces: []string{fmt.Sprint("team-", i), padding},
				}}},
			})
			if err != nil {
				return err
			}
			return r.Err
		}
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		theirs = append(theirs, round(b, propose(bare, "", "192.0.2.7"+method)))
		ours = append(ours, round(b, propose(audited, method, "192.0.2.7")))
	}
	had, _ := audited.State().AuditHead()
	if none, _ := bare.State().AuditHead(); had == 0 || none != 0 {
		b.Fatalf("%d and %d records", had, none)
	}
	ratio := float64(stats.Median(ours)) / float64(stats.Median(theirs))
	verdict := "met"
	if ratio > 1.1 {
		verdict = "short"
	}
	b.ReportMetric(benchEntries/stats.Median(ours).Seconds(), "proposals/s")
	b.ReportMetric(benchEntries/stats.Median(theirs).Seconds(), "unrecorded/s")
	fmt.Printf("figure %s %.3f x goal <= 1.1 %s\n", figure, ratio, verdict)
}

// cpu is how much of it this process has used, user and system.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func round(b *testing.B, do func(i int) error) time.Duration {
	start := time.Now()
	var wg sync.WaitGroup
	for w := range benchWriters {
		wg.Go(func() {
			for i := w; i < benchEntries; i += benchWriters {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// bareRaft is servers of raft's, over TCP on loopback where there are several, with
// the log of a store and an FSM that does nothing. It returns the leader.
func bareRaft(b *testing.B, servers int, timing Timing) *raft.Raft {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	var members raft.Configuration
	var transports []*raft.NetworkTransport
	for i := range servers {
		t, err := raft.NewTCPTransportWithLogger("127.0.0.1:0", nil, 3, 10*time.Second, hclog.NewNullLogger())
		check(err)
		transports = append(transports, t)
		members.Servers = append(members.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint("bare", i)), Address: t.LocalAddr()})
	}
	leads := make(chan *raft.Raft, servers)
	for i, t := range transports {
		log, err := openLog(osFiles{}, b.TempDir(), 0, 0, func(err error) { b.Error(err) })
		check(err)
		notify := make(chan bool, 64)
		conf := raftConfig(Config{ID: fmt.Sprint("bare", i), Timing: timing}, nil, notify)
		conf.Logger = hclog.NewNullLogger()
		snapshots := raft.NewDiscardSnapshotStore()
		check(raft.BootstrapCluster(conf, log, log, snapshots, t, members))
		r, err := raft.NewRaft(conf, nothing{}, log, log, snapshots, t)
		check(err)
		var tasks sync.WaitGroup
		end := make(chan struct{})
		tasks.Go(func() {
			select {
			case <-notify:
				leads <- r
			case <-end:
			}
		})
		b.Cleanup(func() {
			close(end)
			tasks.Wait()
			check(r.Shutdown().Error())
			check(t.Close())
			check(log.Close())
		})
	}
	leader := <-leads
	check(leader.Barrier(time.Minute).Error())
	return leader
}

type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) ApplyBatch(l []*raft.Log) []any      { return make([]any, len(l)) }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }

// BenchmarkLogStore compares the log with the two of docs/adr/0007 on this disk:
// appends of 1 and of 64 entries of 4 KiB, each append synced, by turns.
//
//	go test -run '^$' -bench LogStore ./store
func BenchmarkLogStore(b *testing.B) {
	for _, batch := range []uint64{1, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			ours, err := openLog(osFiles{}, b.TempDir(), 0, 0, func(err error) { b.Error(err) })
			if err != nil {
				b.Fatal(err)
			}
			segments, err := wal.Open(b.TempDir(), wal.WithLogger(hclog.NewNullLogger()))
			if err != nil {
				b.Fatal(err)
			}
			bolt, err := raftboltdb.NewBoltStore(filepath.Join(b.TempDir(), "raft.db"))
			if err != nil {
				b.Fatal(err)
			}
			ours.start() // with the mark, as in production
			defer ours.Close()
			defer segments.Close()
			defer bolt.Close()
			stores := []raft.LogStore{ours, segments, bolt}
			took := make([][]time.Duration, len(stores))
			next := uint64(1)
			for b.Loop() {
				logs := make([]*raft.Log, batch)
				for i := range logs {
					logs[i] = &raft.Log{Index: next + uint64(i), Term: 1, Data: make([]byte, 4<<10)}
				}
				next += batch
				for i, to := range stores {
					start := time.Now()
					if err := to.StoreLogs(logs); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], time.Since(start))
				}
			}
			for i, name := range []string{"ours-µs", "wal-µs", "bolt-µs"} {
				b.ReportMetric(float64(stats.Median(took[i]).Microseconds()), name)
			}
			for i, name := range []string{"raft-wal", "raft-boltdb"} {
				ratio := float64(stats.Median(took[i+1])) / float64(stats.Median(took[0]))
				fmt.Printf("figure log-append-%d-against-%s %.2f x goal >= 1 %s\n", batch, name, ratio,
					map[bool]string{true: "met", false: "short"}[ratio >= 1])
			}
		})
	}
}
