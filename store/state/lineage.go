package state

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Lineage stands for the documents of a state and every change that they have come
// from: two states of one cluster with one lineage have the same documents. Unlike
// a revision, which is an index that only the log gives, the lineage that a change
// will lead to is known before the change is agreed on. So a change can be validated
// on top of others that are only proposed: it names their lineage, and takes effect
// exactly if they have.
//
// A change that names a lineage leads to the SHA-256 of that lineage and itself.
// One that names a revision, as all did before format 3, leads to the number of its
// own revision, big-endian, after zeros.
type Lineage [sha256.Size]byte

// lineageOf is the lineage of documents whose last change named a revision.
func lineageOf(revision uint64) (l Lineage) {
	binary.BigEndian.PutUint64(l[len(l)-8:], revision)
	return l
}

// after is the lineage that changes, sorted by key, lead to from l.
func (l Lineage) after(changes []*logv1.Change) Lineage {
	h := sha256.New()
	h.Write(l[:])
	for _, c := range changes {
		sum(h, []byte(c.GetKey().GetKind()))
		sum(h, []byte(c.GetKey().GetNamespace()))
		sum(h, []byte(c.GetKey().GetName()))
		sum(h, c.GetAfter())
	}
	return Lineage(h.Sum(nil))
}

// sum adds b so that where it ends is certain.
func sum(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
	h.Write(b)
}
