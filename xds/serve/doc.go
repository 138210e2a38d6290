// Package serve streams what xds builds to the Envoys that ask for it, by delta
// ADS, and knows what each of them holds. Protocol and cache are its own (ADR 0032).
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
//   - A version is sent once per stream. One that is refused is repeated by itself, ever
//     more rarely, until it is taken or there is a newer one (see Retry); never where an
//     Envoy would ACK what it has refused, only since it gets it again.
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
// What is found about one type of one stream is kept until that type changes, so that a
// change costs what it changes, and an ACK what it ACKs.
//
// Goroutines: of each stream, one waits for its end and one takes its requests. Setters
// swap an immutable view and leave tokens at the streams; the senders, a few for all
// streams, work out what a stream is to be told when they take its tokens. The state of
// the protocol has a lock for each stream. No lock but the one that orders requests is
// held during a callback or while sending.
package serve
