// Package policy is what a spec means: who may call what, why, and what a change
// of the spec, or the time, touches.
//
// It owns the Index, an immutable view of a set of documents; Decide, the
// verdict about one request; the canonical form of a path; the reverse index
// from a changed document to the workloads whose proxies it concerns; and the
// names of the gates. It refuses to know how Envoy is told (package compile and
// xds), what is stored (store) and whether the spec is sound: that is spec.Check.
// Documents that Check would refuse are given a meaning all the same, always the
// narrower one, so that every function here is total.
//
// Whatever is judged in one place (a site: a workload as a callee, or an external
// service in the proxy of its caller) goes through Index.ruleOf and Index.on:
// what one grant allows and one Block denies there. Verdicts, rules, gates,
// destinations and hints are made of these, and so cannot differ.
//
// Invariants:
//   - Deny is the absence of a grant. What cannot be understood allows nothing; a
//     Block that cannot be understood denies no less.
//   - An Index depends on the set of documents alone: New(docs) equals any chain
//     of With that ends in the same documents, in any order.
//   - There is no clock here. Time is an argument; Blocks and Exceptions act as
//     long as they are in an Index, which Lift takes them out of, save where a
//     moment is asked about.
//   - Everything returned is sorted.
//
// Everything is pure and safe for concurrent use. The server calls it from the
// applier and from the reconcile loop, ztctl calls it offline.
package policy
