package state

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// HashKind says how Hash is made. Hashes of different kinds are not compared.
const HashKind = 1

// Hash stands for everything that a snapshot of the state would hold.
type Hash [sha256.Size]byte

// ErrCorrupt is returned by Check when the state is not what entries have made of it:
// the memory of this machine has changed.
var ErrCorrupt = errors.New("the state in memory is not what the log has led to")

// collection is a set of records and its digest, as it was kept up to date and made
// anew.
type collection interface {
	Len() int
	known() digest
	sum() digest
}

// collections are all that a snapshot holds beside its header, in an order that never
// changes: new ones come last.
func (s *State) collections() []collection {
	return []collection{
		s.documents, s.namespaces, s.tokens, s.instances, s.admins, s.servers, s.retired, s.proposals, s.anchors, s.history, s.outcomes,
	}
}

// Hash returns the hash of the state. It costs a few microseconds, whatever is in the
// state: Apply has kept the digests up to date.
//
// It is the SHA-256 of the snapshot's header and, of each collection that is not empty,
// its number, how many records it has, and the sum of the SHA-256 of each.
func (s *State) Hash() Hash {
	b, err := marshal.Marshal(s.header())
	if err != nil {
		panic(err) // it came from bytes
	}
	b = binary.BigEndian.AppendUint64(b, uint64(len(b)))
	for i, c := range s.collections() {
		if n := c.Len(); n > 0 {
			b = binary.BigEndian.AppendUint64(b, uint64(i))
			b = binary.BigEndian.AppendUint64(b, uint64(n))
			b = c.known().append(b)
		}
	}
	return sha256.Sum256(b)
}

// Check returns ErrCorrupt unless every record is what it was when it came. It reads all
// of the state.
func (s *State) Check() error {
	for _, c := range s.collections() {
		if c.sum() != c.known() {
			return ErrCorrupt
		}
	}
	return nil
}
