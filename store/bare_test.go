package store_test

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store"
)

// nothing is a state machine that keeps nothing.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }

// bare is servers of raft's, over TCP on loopback, with the log and the timing of a
// store and nothing around them. It returns the leader.
func bare(b *testing.B, servers int) *raft.Raft {
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
	var all []*raft.Raft
	for i, t := range transports {
		log, err := store.OpenLogForBench(b.TempDir(), func(err error) { b.Error(err) })
		check(err)
		conf := store.RaftConfigForBench(fmt.Sprint("bare", i), store.Timing{}, make(chan bool, 64))
		conf.Logger = hclog.NewNullLogger()
		snapshots := raft.NewDiscardSnapshotStore()
		check(raft.BootstrapCluster(conf, log, log, snapshots, t, members))
		r, err := raft.NewRaft(conf, nothing{}, log, log, snapshots, t)
		check(err)
		all = append(all, r)
		b.Cleanup(func() {
			if err := r.Shutdown().Error(); err != nil {
				b.Error(err)
			}
			if err := t.Close(); err != nil {
				b.Error(err)
			}
			if err := log.Close(); err != nil {
				b.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, r := range all {
			if r.State() == raft.Leader && r.Barrier(time.Second).Error() == nil {
				return r
			}
		}
	}
	b.Fatal("no bare leader")
	return nil
}
