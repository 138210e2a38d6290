// Package policy is what a spec means: who may call what, why, and what a change
// of the spec touches.
//
// It owns the Index, an immutable view of a set of documents; Decide, the
// verdict about one request; the canonical form of a path; the reverse index
// from a changed document to the workloads whose proxies it concerns; and the
// names of the gates. It refuses to know how Envoy is told (package compile and
// xds), what is stored (store) and whether the spec is sound: that is spec.Check.
// Documents that Check would refuse are given a meaning all the same, always the
// narrower one, so that every function here is total.
//
// Invariants:
//   - Deny is the absence of a grant. What cannot be understood allows nothing.
//   - An Index depends on the set of documents alone: New(docs) equals any chain
//     of With that ends in the same documents, in any order.
//   - Everything returned is sorted.
//
// Everything is pure and safe for concurrent use. The server calls it from the
// applier and from the reconcile loop, ztctl calls it offline.
package policy
