// Package agent stands beside an Envoy: it enrols an instance of a workload with
// a one-use token, keeps its certificates from ending, hands them to the Envoy,
// and keeps the Envoy running.
//
// It owns the keys of its instance, which are made here and never leave; its
// state directory; the bootstrap that the Envoy starts with; the Unix socket on
// which the Envoy takes its secrets by SDS; and the Envoy's process. It refuses
// to know what the Envoy does: listeners, clusters and policies come from the
// control plane by ADS, on a stream of the Envoy's own.
//
// The state directory (mode 0700) holds, with mode 0600:
//
//	agent.json        what was enrolled; written last, so that a directory with it is complete
//	enrolling.json    instance id and key of an enrolment under way, and only then
//	node.pem          key and certificate by which the control plane knows the instance
//	svid.pem          key and certificate of the workload
//	roots.pem         the roots of the cluster
//	bootstrap.json    what the Envoy starts with; no secret in it
//	sds.sock          zt/svid, zt/node and zt/control-bundle, by delta SDS
//	envoy-admin.sock  the Envoy's admin interface
//	lock              held by the one agent that runs here
//
// Invariants:
//   - The instance id and the key of an enrolment are on disk before the token is
//     sent, so that a crash at any point is retried as the same instance.
//   - The node key lives as long as the instance; each workload certificate is
//     for a fresh key.
//   - What a server signed is looked at before it is used: for this instance,
//     this workload, these keys, by roots of this cluster.
//   - A token is sent once it is known that the server is of the cluster which
//     the token pins, and never again once it was redeemed.
//   - No control plane is needed to start, as long as the certificates last.
//   - No Envoy that Run has started outlives it.
//
// cmd/ztagent calls it: New and Run, Deregister and ReadStatus.
package agent
