package state

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// applyPropose replaces or ends what is proposed for namespaces, all of them or
// none. It asks nothing of the documents: whoever judges by a proposal lays it
// over the newest ones.
func (s *State) applyPropose(who string, op *logv1.Propose) Result {
	if len(op.GetNamespaces()) == 0 || slices.Contains(op.GetNamespaces(), "") {
		return Result{Err: fmt.Errorf("%w: a proposal needs namespaces", ErrInvalid)}
	}
	if op.GetEnd() {
		if len(op.GetPuts()) > 0 {
			return Result{Err: fmt.Errorf("%w: what ends a proposal puts nothing", ErrInvalid)}
		}
		ended := s.endProposals(op.GetNamespaces())
		if len(ended) == 0 {
			return Result{Err: ErrNotFound}
		}
		return Result{Changed: Changes{Proposals: ended}}
	}
	made := make(map[string]*logv1.Proposal, len(op.GetNamespaces()))
	for _, ns := range op.GetNamespaces() {
		made[ns] = &logv1.Proposal{Namespace: ns, Who: who, When: timestamppb.New(s.when), Message: op.GetMessage()}
	}
	// The entry is not to be changed, so its puts are sorted beside it.
	puts := slices.SortedStableFunc(slices.Values(op.GetPuts()), func(a, b *logv1.Put) int {
		return keyOf(a.GetKey()).Compare(keyOf(b.GetKey()))
	})
	for i, p := range puts {
		k := keyOf(p.GetKey())
		of := made[k.Namespace]
		switch {
		case !k.valid(), len(p.GetDocument()) == 0:
			return Result{Err: fmt.Errorf("%w: proposed document %q", ErrInvalid, k.String())}
		case of == nil:
			return Result{Err: fmt.Errorf("%w: %s is of no namespace of the proposal", ErrInvalid, k)}
		case i > 0 && keyOf(puts[i-1].GetKey()) == k:
			return Result{Err: fmt.Errorf("%w: %s is proposed twice", ErrInvalid, k)}
		}
		of.Puts = append(of.Puts, p)
	}
	var c Changes
	proposals := s.proposals.Txn()
	for ns, p := range made {
		proposals.Insert([]byte(ns), p)
		c.Proposals = append(c.Proposals, ns)
	}
	slices.Sort(c.Proposals)
	s.proposals = proposals.Commit()
	return Result{Changed: c}
}

// endProposals returns the namespaces that had a proposal until now, sorted.
func (s *State) endProposals(namespaces []string) (ended []string) {
	proposals := s.proposals.Txn()
	for _, ns := range namespaces {
		if _, had := proposals.Delete([]byte(ns)); had {
			ended = append(ended, ns)
		}
	}
	s.proposals = proposals.Commit()
	slices.Sort(ended)
	return ended
}
