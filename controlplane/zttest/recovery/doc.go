// Package recovery loses servers of a real cluster for ever, as processes with a
// real Envoy behind an agent, and goes on from what is left; and it makes servers
// diverge, which must stop. It is a suite of make test-system.
package recovery
