package store

import (
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestBrokenBatch: what precedes an entry that cannot be applied is applied and
// answered; the entry and what follows it are neither.
func TestBrokenBatch(t *testing.T) {
	command := func(index uint64, e *logv1.Entry) *raft.Log {
		e.Format = state.Format
		return &raft.Log{Index: index, Type: raft.LogCommand, Data: must(proto.Marshal(e))}
	}
	var failures []error
	f := newFSM(state.New(), fsmHooks{fail: func(err error) { failures = append(failures, err) }})
	answers := f.ApplyBatch([]*raft.Log{command(3, initEntry()), {Index: 4, Type: raft.LogCommand, Data: []byte{0xff}}, command(5, putEntry(0, "g", "x"))})
	if r, ok := answers[0].(state.Result); !ok || r.Err != nil {
		t.Errorf("before: %v", answers[0])
	}
	for _, a := range answers[1:] {
		if _, ok := a.(error); !ok {
			t.Errorf("then: %v", a)
		}
	}
	if applied, _ := f.progress(); applied != 3 || f.state.Load().Index() != 3 {
		t.Errorf("applied %d, state at %d", applied, f.state.Load().Index())
	}
	if len(failures) != 1 {
		t.Errorf("failures %v", failures)
	}
	if a := f.Apply(command(6, putEntry(0, "g", "x"))); a != failures[0] {
		t.Errorf("afterwards: %v", a)
	}
}
