package state

import (
	"iter"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Revisions returns the past changes of documents before a revision (0: all that
// are kept), newest first. The bytes are shared with the documents.
func (s *State) Revisions(before uint64) iter.Seq[*logv1.Revision] {
	return func(yield func(*logv1.Revision) bool) {
		it := s.history.Root().ReverseIterator()
		if before > 0 {
			it.SeekReverseLowerBound(revisionKey(before - 1))
		}
		for _, r, ok := it.Previous(); ok; _, r, ok = it.Previous() {
			if !yield(r.value) {
				return
			}
		}
	}
}

// RevisionsAfter returns every change after a revision, oldest first, and whether
// all of them are still kept. When they are not, the caller has missed some and
// must read the documents instead.
func (s *State) RevisionsAfter(after uint64) (changes iter.Seq[*logv1.Revision], complete bool) {
	seq := func(yield func(*logv1.Revision) bool) {
		it := s.history.Root().Iterator()
		it.SeekLowerBound(revisionKey(after + 1))
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r.value) {
				return
			}
		}
	}
	// What was dropped is older than all that is kept: if a revision up to after
	// is kept, nothing later was dropped.
	_, oldest, ok := s.history.Root().Minimum()
	return seq, after >= s.revision || ok && oldest.value.GetRevision() <= after
}
