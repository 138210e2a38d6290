// Package serve streams what xds builds to the Envoys that ask for it, by delta
// ADS, and knows what each of them holds. Of xDS it speaks the protocol of
// go-control-plane's delta server; the cache behind that server is its own.
//
// It owns who may see what, what changed since a proxy was last told, the order
// in which types are told, ACKs and NACKs. It refuses to know documents,
// policy, Raft, certificates and how a resource is built.
//
// Invariants:
//   - A proxy is who Config.Authorize says. Only what was set for that instance
//     can reach its streams: there is no path from one proxy's resources to
//     another's. A name that is not its own is answered as removed.
//   - A stream whose instance has no configuration yet waits; it is never sent a
//     part.
//   - A version is sent once per stream, and a refused one is not repeated.
//   - Each type goes out in the newest version at the moment of sending: nothing
//     queues behind a slow reader.
//   - What a proxy refuses holds back nothing else, save that the clusters which a
//     refused listener or route may still lead to are not removed.
//   - Make before break: clusters, then listeners and routes, then the removal of
//     clusters. Policy (ECDS), gates (RTDS) and secrets (SDS) wait for nobody.
//   - An ECDS response carries one resource, so that a refused policy takes no
//     other with it (ENVOY.md).
//   - A revision counts as ACKed by a proxy only when everything it should hold
//     is ACKed at exactly the version of that revision.
//
// Goroutines: the state of the protocol belongs to the goroutine of its stream,
// which go-control-plane runs, and needs no lock. Setters swap an immutable view
// and leave a token in the stream's channel; the stream works out what to send
// when it takes the token. No lock is held during a callback or while sending.
package serve
