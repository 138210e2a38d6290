package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/store/state"
)

// Restore makes st the state of a cluster that has only just been bootstrapped: as a
// snapshot, at an index that is not below st's. The log goes on above it. A store that
// has a state already is refused.
func (s *Store) Restore(ctx context.Context, st *state.State) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	if s.State().Index() != 0 {
		return errors.New("restore: this store has a state")
	}
	var b bytes.Buffer
	if _, err := st.WriteTo(&b); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: st.Index(), Term: s.raft.CurrentTerm(), Size: int64(b.Len())}
	done := make(chan struct{})
	var err error
	go func() { // ends with raft
		defer close(done)
		err = s.raft.Restore(meta, &b, 0)
	}()
	if stopped := s.wait(ctx, done); stopped != nil {
		return stopped
	}
	return err
}
