// Package judge asks real Envoys what becomes of a request, and holds their answer
// to the evaluator's. It is the third judge of the policy language, beside
// policy.Decide and the interpreter of the compiled configuration (rbactest).
//
// It owns a Court: one ADS server, a certificate authority, an application that
// notes what reaches it, an external authorizer, and some long-lived Envoys
// (Proxy). Each Envoy is given one workload of one spec after another, compiled as
// the control plane does, at a loopback address of its own each time, so that
// nothing of one hearing drains into the next. It refuses to know which requests
// are worth asking: scripts and reqgen make them.
//
//	docs → policy.Index → compile.Workload → xds.Build → serve.Fleet → Envoy
//	                    → policy.Decide → Difference ← answer, log, application
//
// What real time and a real network cannot show is left out and said so
// (Spec.Question): requests of another time, from addresses outside 127.0.0.0/8,
// and what no proxy judges, since there is no such port.
//
// A Court may be used from several goroutines, a Proxy from one at a time.
package judge
