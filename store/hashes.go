package store

import (
	"slices"
	"sync"

	"github.com/ztmesh/ztmesh/store/state"
)

// StateHash is the hash of the state after the entry at an index.
type StateHash struct {
	Index uint64
	Hash  state.Hash
}

const (
	// hashEvery: of the commands between two multiples of it, the first one is a
	// checkpoint. It is the same for all servers: a command's index tells.
	hashEvery = 32
	// hashesKept are the checkpoints that are remembered, and hashesTold those that are
	// told: a peer that asks may be that much behind, or ahead.
	hashesKept, hashesTold = 1024, 8
)

// hashes are those of past states, at checkpoints.
type hashes struct {
	mu   sync.Mutex // guards kept
	kept []StateHash
}

// note keeps the hash of a state that has followed another, if it is a checkpoint.
func (h *hashes) note(before, after *state.State) {
	if after.Index()/hashEvery == before.Index()/hashEvery {
		return
	}
	at := StateHash{after.Index(), after.Hash()}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.kept) >= hashesKept {
		h.kept = slices.Delete(h.kept, 0, hashesKept/2)
	}
	h.kept = append(h.kept, at)
}

// forget drops all: what follows has not come from what there was.
func (h *hashes) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = nil
}

// StateHashes are the hash of the newest state, and those of the newest checkpoints,
// which all servers have in common: see HashAt.
func (s *Store) StateHashes() []StateHash {
	newest := s.State()
	out := []StateHash{{newest.Index(), newest.Hash()}}
	h := &s.fsm.hashes
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(out, h.kept[max(0, len(h.kept)-hashesTold):]...)
}

// HashAt returns the hash of the state after an entry, if it is the newest or a
// checkpoint that is remembered. Two servers with other hashes at one index have
// diverged.
func (s *Store) HashAt(index uint64) (state.Hash, bool) {
	h := &s.fsm.hashes
	h.mu.Lock()
	i, ok := slices.BinarySearchFunc(h.kept, index, func(a StateHash, index uint64) int {
		if a.Index < index {
			return -1
		}
		if a.Index > index {
			return 1
		}
		return 0
	})
	var at StateHash
	if ok {
		at = h.kept[i]
	}
	h.mu.Unlock()
	if ok {
		return at.Hash, true
	}
	if newest := s.State(); newest.Index() == index {
		return newest.Hash(), true
	}
	return state.Hash{}, false
}
