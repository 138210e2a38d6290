// Package identity is who is who: names, keys, certificates, tokens and the TLS
// that carries them.
//
// It owns the shape of every identity (SPIFFE IDs of workloads, and of servers,
// administrators and nodes in the reserved trust domain control.<td>), the
// cluster root and the intermediates of the servers, what a certificate may
// say, the journal of what was signed, join tokens, and the tls.Configs of
// every port. It refuses to know who may have which identity, what a document
// says, and where anything but a key file is kept: callers decide, and hand in
// names that come from their own records.
//
// Invariants:
//   - A certificate carries exactly one URI SAN. It comes from the caller of
//     Issue..., never from a certificate request: of a request only the key is
//     used.
//   - Nothing is signed before its intent is logged (Signing.Log); if logging
//     fails, nothing is signed.
//   - The root signs intermediates, nodes and administrators; the intermediate
//     of a server signs workloads and that server itself. A verifier here
//     accepts each role from that signer only (docs/adr/0006).
//   - No leaf outlives its issuer.
//   - TLS 1.3 only, no session is ever resumed, so that an expired or banned
//     certificate cannot come back by a ticket.
//   - Private keys, key-encryption keys and the secret of a token print as
//     [redacted], whatever the verb or encoder; Reveal is the only way out.
//
// Callers: controlplane (root, authority, ServerConfig, cluster configs), agent
// (PinnedClientConfig, ClientConfig, Renewer), ztctl (tokens, ClientConfig). All
// values are safe for concurrent use unless a comment says otherwise.
package identity
