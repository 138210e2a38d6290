// Package zttest is the harness at the level of processes, for the demo and for
// suites that run the real binaries: [Process] is one of them from start to end,
// [App] stands for an application behind or before an Envoy, [Access] is a line
// of an Envoy's access log, and [Block] is a set of loopback addresses of one's
// own. It knows nothing of what runs: no command line, no spec.
//
// What belongs to one kind of test stands in the packages below: envoy (a real
// Envoy in the hand of a test), script (decision scripts), adsclient, specgen.
//
// Who starts something ends it. Every Process dies with the process that
// started it, however that ends (Linux).
package zttest
