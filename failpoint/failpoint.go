// Package failpoint names the moments at which a crash is most interesting: between a
// write and its sync, between a commit and its answer. The crash suite ends the process
// at each of them.
//
// In a normal build Hit is empty, and a call of it leaves no instruction behind. Built
// with the tag failpoints, it acts as the environment or [Arm] says; such a binary is
// for tests and must never serve.
//
// It imports nothing of the module, and the packages that are pure never call it:
// their callers do. Every name stands in [Names] and at one place in the code.
package failpoint

import "slices"

// Names are all failpoints, sorted. The part before the first dot is the package that
// has it.
func Names() []string { return slices.Sorted(slices.Values(names())) }

// names are in the order of what happens: a life from the making of a cluster to the
// end of a server.
func names() []string {
	return []string{
		// Making a server.
		"controlplane.init.keys",      // keys and certificates of a new cluster are on disk
		"controlplane.init.committed", // its first entries, too; the folder does not say whose it is yet
		"controlplane.join.enrolled",  // a server token is used up; the joining server has saved nothing
		"controlplane.join.saved",     // the joining server has saved all but whose the folder is
		"identity.file.written",       // a file is written and synced beside its place
		"identity.file.placed",        // it is in its place; the folder is not synced

		// Starting it.
		"store.open.locked",             // the folder is this process's
		"store.open.restored",           // log and newest snapshot are read
		"controlplane.start.identified", // this server has its certificate
		"controlplane.start.opened",     // the log is open; nothing is served
		"controlplane.announce.asked",   // about to tell the cluster where this server is
		"controlplane.announce.done",    // the cluster knows

		// A write, on the leader unless it says otherwise.
		"api.apply.planned",        // validated, not proposed
		"api.apply.committed",      // applied here, not answered
		"api.forward.answered",     // a follower: the leader has answered, the client does not know
		"store.propose.handed",     // about to give an entry to the log
		"store.propose.committed",  // applied here, the proposer does not know
		"store.log.append",         // any server: entries are about to be written
		"store.log.appended",       // any server: they are synced, and nobody was told
		"store.replicate.answered", // a follower has said that it has them
		"store.fsm.apply",          // any server: an entry is committed, not applied
		"store.fsm.applied",        // any server: it is applied
		"store.served.raise",       // any server: nobody was shown the state that it has come to
		"store.served.raised",      // any server: it is on the disk that proxies may be told
		"store.barrier.confirmed",  // a quorum has confirmed the leader of a read

		// Folding the log into a snapshot, and being seeded by one.
		"store.snapshot.begun",     // nothing is written
		"store.snapshot.half",      // some of it is
		"store.snapshot.written",   // all of it, under a temporary name
		"store.snapshot.placed",    // in its place; the log is not cut
		"store.log.cut",            // entries are about to be removed from the log
		"store.log.uncut",          // they are removed
		"store.snapshot.received",  // a follower: a leader's snapshot is on disk, not read
		"store.snapshot.installed", // a follower: it is the state

		// Leading.
		"store.term.keep",    // a term or a vote is about to be written
		"store.term.kept",    // it is
		"store.leader.begin", // elected; nothing is committed in the term
		"store.leader.begun", // something is
		"store.leader.ended", // this server has heard that it does not lead

		// Members.
		"api.announce.put",     // the log knows where a server is; it is no voter yet
		"store.member.add",     // about to make a member
		"store.member.added",   // done, not answered
		"api.member.forgotten", // the log has no record of a server that still has a vote
		"store.member.remove",  // about to remove a server
		"store.member.removed", // done, not answered

		// Enrolling and issuing.
		"identity.journal.write",   // about to write down what will be signed
		"identity.journal.written", // written, not synced
		"identity.journal.synced",  // synced, not signed
		"identity.sign.signed",     // signed, given to nobody
		"api.token.created",        // a token is in the log; nobody has seen it
		"api.enrol.redeemed",       // a token is used up, nothing is signed
		"api.enrol.issued",         // signed, not answered
		"api.join.redeemed",        // the same for a server
		"api.join.issued",
		"api.renew.issued",        // renewed, not answered
		"api.deregister.done",     // an instance is gone from the log, the caller does not know
		"api.admin.added",         // an admin is in the log and has no certificate yet
		"agent.enrol.ask",         // an agent is about to show its token
		"agent.enrol.answered",    // it has its certificates, on no disk
		"agent.state.half",        // some of its files are of before, some are new
		"agent.enrol.saved",       // all files are new; that it was enrolling still stands there
		"agent.renew.answered",    // it has a new certificate, on no disk
		"agent.deregister.agreed", // the cluster has forgotten the instance, the agent has not

		// Going on without the quorum, and putting a member in the place of another.
		"controlplane.recover.built",   // the member that is to go on alone is there, in a folder; nothing is decided
		"controlplane.recover.decided", // it is decided; the server is still who it was
		"controlplane.successor.aside", // the old log is moved aside
		"controlplane.successor.moved", // log and keys of the new member are in place
		"controlplane.successor.named", // the folder says whose it is

		// Rotating the key-encryption key.
		"controlplane.key.taken",     // a new key is in a server's key file, and nobody knows
		"api.key.handed",             // every server has the new key; nothing is sealed with it
		"api.key.rotated",            // the root key is sealed with it, the caller does not know
		"controlplane.key.reseal",    // any server: its data keys are about to be sealed anew
		"controlplane.key.resealed",  // they are; its intermediate is sealed by a data key of before
		"controlplane.key.settled",   // the intermediate is, too; log and snapshots are of before
		"controlplane.key.pruned",    // data keys of before are forgotten
		"controlplane.key.forgotten", // the old key is out of a server's key file, and nobody knows

		// Stopping.
		"store.stop.handover", // about to hand leadership over
		"store.stop.shutdown", // about to stop Raft
		"store.stop.released", // everything is closed
	}
}
