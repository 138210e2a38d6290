package state

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// applyReplaceRootKey refuses what was made of another sealed key than there is:
// two rotations at a time would each believe in its own.
func (s *State) applyReplaceRootKey(op *logv1.ReplaceRootKey) Result {
	was := sha256.Sum256(s.sealedRootKey)
	switch {
	case len(op.GetSealedRootKey()) == 0:
		return Result{Err: fmt.Errorf("%w: no root key", ErrInvalid)}
	case !bytes.Equal(op.GetReplaces(), was[:]):
		return Result{Err: ErrRootKeyReplaced}
	case op.GetToKey() != "" && (op.GetToKey() == op.GetFromKey() || s.RetiredKey(op.GetToKey())):
		return Result{Err: fmt.Errorf("%w: key %s was replaced before", ErrInvalid, op.GetToKey())}
	}
	s.sealedRootKey = op.GetSealedRootKey()
	if op.GetFromKey() != "" {
		s.retiredKeys = append(slices.Clone(s.retiredKeys), op.GetFromKey())
	}
	return Result{Changed: Changes{Trust: true}}
}

// applyRestored begins an epoch. Documents, instances, admins, outcomes and retired
// names stay.
func (s *State) applyRestored(op *logv1.Restored) Result {
	if op.GetEpochId() == "" || op.GetEpochId() == s.epochID || op.GetEpochId() == s.clusterID || op.GetServer().GetId() == "" {
		return Result{Err: fmt.Errorf("%w: restored without a new epoch or a server", ErrInvalid)}
	}
	if _, had := s.Server(op.GetServer().GetId()); had {
		return Result{Err: fmt.Errorf("%w: restored to a server of before", ErrInvalid)}
	}
	s.epoch, s.epochID = s.epoch+1, op.GetEpochId()
	s.tokens = s.tokens.empty()
	s.servers, _, _ = s.servers.empty().Insert([]byte(op.GetServer().GetId()), op.GetServer())
	return Result{Changed: Changes{Tokens: true, Servers: true, Trust: true}}
}

// RetiredKeys returns the ids of the key-encryption keys that were replaced, oldest
// first.
func (s *State) RetiredKeys() []string { return s.retiredKeys }

// RetiredKey tells whether a key-encryption key was replaced: it is not used again.
func (s *State) RetiredKey(id string) bool { return slices.Contains(s.retiredKeys, id) }
