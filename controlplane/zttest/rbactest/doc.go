// Package rbactest is a second reading of what Envoy is told: a small
// interpreter of the protobufs that xds.Build makes. Given a request it walks the
// listener's filters in their order, as Envoy does, and says what comes of it
// and which policy said so.
//
// It shares no code with the lowering (xds) nor with the evaluator (policy), and
// knows neither specs nor grants: its sources are Envoy's documentation, its code
// and what was measured of it. So where it and the evaluator differ about a
// request, one of the three is wrong. It is far cheaper to ask than an Envoy, so
// it is asked about far more requests.
//
// It knows a part of Envoy. What is outside that part, a message, a field or a
// value, is an error and never a guess: Load refuses what the vocabulary does
// not list.
package rbactest
