package store

import (
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/audit"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestBrokenFSM: what precedes an entry that cannot be applied is applied; the
// entry and what follows it are not, of whatever type.
func TestBrokenFSM(t *testing.T) {
	command := func(index uint64, e *logv1.Entry) *raft.Log {
		e.Format = state.Format
		return &raft.Log{Index: index, Type: raft.LogCommand, Data: must(proto.Marshal(e))}
	}
	var failures []error
	records := must(audit.Open(audit.Config{Dir: t.TempDir(), Files: auditFiles{osFiles{}}}, audit.Head{}))
	t.Cleanup(func() { _ = records.Close() })
	f := newFSM(state.New(), fsmHooks{
		audit:      records,
		fail:       func(err error) { failures = append(failures, err) },
		configured: func(raft.Configuration) {},
	})
	members := func(index uint64) *raft.Log {
		return &raft.Log{Index: index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{})}
	}
	answers := f.ApplyBatch([]*raft.Log{
		command(3, recordedInit()), members(4),
		{Index: 5, Type: raft.LogCommand, Data: []byte{0xff}},
		command(6, putEntry(0, "g", "x")), members(7),
	})
	if r, ok := answers[0].(state.Result); !ok || r.Err != nil {
		t.Errorf("before: %v", r)
	}
	for _, i := range []int{2, 3} {
		if err, ok := answers[i].(error); !ok || len(failures) != 1 || err != failures[0] {
			t.Errorf("entry %d: %v, failures %v", 3+i, answers[i], failures)
		}
	}
	if applied, _ := f.progress(); applied != 4 || f.state.Load().Index() != 3 {
		t.Errorf("applied %d, state at %d", applied, f.state.Load().Index())
	}
	if head, _ := records.Head(); head.Sequence != 1 {
		t.Errorf("%d audit records, of one entry", head.Sequence)
	}
}

func recordedInit() *logv1.Entry {
	e := initEntry()
	e.Method = "init"
	return e
}
