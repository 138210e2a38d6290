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

// Pair is a port of a service and a workload that may connect to it.
type Pair struct {
	Service spec.Ref
	Port    string
	Source  spec.Ref
}

// Admitted is the pairs of a service that may connect, by their GateKey: every
// port, and every declared workload that some grant admits to it. Empty for a
// service that does not exist.
func Admitted(ix *Index, service spec.Ref) map[string]Pair {
	pairs := map[string]Pair{}
	w, ok := ix.Workload(service)
	if !ok {
		return pairs
	}
	for _, p := range w.Ports {
		for _, source := range ix.Callers(service, p.Name) {
			pairs[GateKey(service, p.Name, ID(ix.trustDomain, source))] = Pair{service, p.Name, source}
		}
	}
	return pairs
}

// Closed is the pairs of the services that old admits and next does not, by
// their GateKey: connections of theirs are to be cut. A workload that is gone is
// closed as a source, a port or service that is gone for every source. The
// services of next.Touched(old, changed) are all that need be asked about.
func Closed(old, next *Index, services ...spec.Ref) map[string]Pair {
	closed := map[string]Pair{}
	for _, service := range services {
		after := Admitted(next, service)
		for k, pair := range Admitted(old, service) {
			if _, still := after[k]; !still {
				closed[k] = pair
			}
		}
	}
	return closed
}
