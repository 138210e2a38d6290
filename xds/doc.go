// Package xds turns the configuration of one workload into what Envoy is told:
// listeners, clusters, routes, policies, gates, endpoints, secrets, and the
// bootstrap that makes an Envoy ask for them.
//
// It owns the shape of every protobuf that reaches a proxy, the names of
// resources, and the check that a set of resources refers to nothing that is
// not in it. It refuses to know documents, grants, Raft, streams, files and
// clocks: it imports nothing of the module and is pure.
//
// Invariants:
//   - Same input, same bytes, on every replica and in every process. The order
//     of the lists of a Config carries no meaning.
//   - A version is the hash of the bytes, so an unchanged resource is never
//     sent twice.
//   - Policy and gates are resources of their own (ECDS, RTDS). Editing a grant
//     leaves listeners, clusters and routes byte-equal, so nothing drains.
//   - What is missing is closed: every policy carrier has a deny-all default,
//     and every matcher ends in an action that denies and has a name.
//   - Every message passes its own Validate before it is marshalled.
//
// Every function may be called from any goroutine. What it returns is
// immutable.
package xds
