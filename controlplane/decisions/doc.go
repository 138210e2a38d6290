// Package decisions takes what proxies report of their decisions, over Envoy's
// access log service (envoy.service.accesslog.v3), and counts the requests whose
// verdict a shadow policy would change.
//
// It owns the bounds: how fast one proxy may report, how many counters there are
// and how long a text is. It refuses to know who a proxy is and what its workload
// may be called for: it asks.
//
// Invariants:
//   - A proxy reports about its own workload only. Which one that is comes from
//     its certificate; nothing in a log says so.
//   - Whatever proxies send, memory is bounded: MaxCounters counters, of one
//     workload at most MaxOfWorkload, with texts that are cut.
//   - What is not kept is counted.
//
// Counters are in memory, of this server alone. Receiver.take is the one place that
// every reported request passes: what is to be kept of requests in files begins
// there.
//
// Its methods may be called from any goroutine.
package decisions
