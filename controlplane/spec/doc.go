// Package spec is what a user may say: it turns the bytes of YAML or JSON files
// into documents, or into every problem that they have, at once.
//
// It owns the form of a document (which kinds and fields exist, how names,
// references, paths, methods, SPIFFE IDs, expressions and requests are written),
// the stable problem codes (Codes, docs/problems.md), the canonical bytes that
// the log holds, and the rules between documents that need no decision: who may
// write what about whom, a reference to nothing, methods on a tcp port, trust
// that no Exception keeps.
//
// It refuses to know what a document means: who may call whom is package
// policy's, and so is whether an assertion holds.
//
// Invariants:
//   - Pure: no clock, no files, no goroutines (time zones are a list of its own,
//     zones.txt; what has ended is package policy's); the same input gives the same
//     documents and the same problems, in the same order. Every function may be
//     called from any goroutine; a Document is not changed after Parse or
//     Decode have returned it.
//   - Strict: what is not understood is a problem; nothing is skipped, nothing
//     is guessed. An alias, an anchor, a tag, a duplicate key or a null never
//     gets through.
//   - Bounded: bad input costs less than 100 ms of CPU and 64 MiB. Sizes, the
//     number of values and the nesting are limited before the YAML library sees
//     a document, and the work stops at maxProblems problems.
//   - Canonical(Parse(YAML(d))) equals Canonical(d), and Decode(Canonical(d))
//     is d without its positions.
//
// The stages, each in a file of its own: text.go (bytes to pieces of one
// document each), decode.go (a piece to a protobuf, with the position of every
// path), schema.go (the annotations of the proto), rules*.go (what one document
// must hold, in the forms of forms.go, jwks.go, cel.go and clock.go), check*.go
// (what all of them together must hold).
package spec
