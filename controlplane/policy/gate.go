package policy

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// GateKey is the runtime key of the gate that lets source, a SPIFFE ID, connect
// to a port of dest. It is a hash of the three, so no two gates share a key and
// one pair has the same key for ever, on every server.
func GateKey(dest spec.Ref, port, source string) string {
	sum := sha256.Sum256([]byte(dest.String() + "\x00" + port + "\x00" + source))
	return "zt." + hex.EncodeToString(sum[:16])
}

// Pair is a port of a service and a workload that may, or might, connect to it.
type Pair struct {
	Service spec.Ref
	Port    string
	Source  spec.Ref
}

// Closed is the pairs that old admits and ix does not, sorted; changed are the
// keys in which the two differ. Connections of these pairs are to be cut. A
// workload that is gone is closed as a source, a port that is gone for every
// source.
func (ix *Index) Closed(old *Index, changed []spec.Key) []Pair {
	return newDelta(old, ix, changed).admittedOnlyBefore()
}

// Opened is the pairs that ix admits and old does not: Closed the other way
// round. The gates of these pairs, if they were closed, are to be opened.
func (ix *Index) Opened(old *Index, changed []spec.Key) []Pair {
	return newDelta(ix, old, changed).admittedOnlyBefore()
}
