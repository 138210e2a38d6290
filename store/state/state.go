// Package state is what the cluster has agreed on, as a value.
//
// It owns the meaning of a log entry: [Apply] takes a [State] and an entry and
// returns the next State. It refuses to know what a document says (only its
// bytes and its key), who may ask for what, where entries come from, and what
// time it is: ids, randomness, hashes and time are chosen before an entry is
// proposed.
//
// Invariants:
//   - Apply is total, pure and deterministic: the same entries at the same
//     indexes give the same bytes of [State.WriteTo], on every server, by every
//     version that knows the format.
//   - A State never changes. Its collections are persistent, so the next State
//     shares with it whatever an entry did not touch, and any number of
//     goroutines may read any number of States while the next one is made.
//   - A refused entry changes nothing but Index and When.
//   - Revision and When only grow.
//
// Messages that go in (entries) and come out (accessors) are shared, not copied:
// nobody may change them afterwards.
//
// The caller of Apply is store's FSM, from raft's one FSM goroutine. Everybody
// else reads.
package state

import (
	"encoding/binary"
	"iter"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Format is the newest format of entries and snapshots that this version knows.
// What needs no newer one is written in the oldest that says it; see [FormatOf].
//
//	1  the first
//	2  names of workloads that are not to be used again yet, and proposals
//	3  changes validated on top of others that are not agreed on yet, epochs, and root
//	   keys under another key-encryption key; the audit chain, and anchors of
//	   issuance journals; what servers say they read, and read replicas
const Format = 3

// How much is remembered.
const (
	// MaxRevisions and MaxRevisionBytes bound the history. The bytes are those of
	// the changed documents before and after; the newest revision is always kept.
	MaxRevisions     = 1000
	MaxRevisionBytes = 256 << 20
	// MaxOutcomes and OutcomeAge bound the memory of idempotency keys.
	MaxOutcomes = 100_000
	OutcomeAge  = 24 * time.Hour
)

// Document is one stored document. Bytes is its canonical form.
type Document struct {
	Key      Key
	Bytes    []byte
	Revision uint64 // the one that last changed it
}

// State is one immutable state of the cluster. The zero value is not usable; see
// [New] and [Read].
type State struct {
	index    uint64
	revision uint64
	lineage  Lineage
	when     time.Time

	trustDomain   string
	clusterID     string
	roots         [][]byte
	sealedRootKey []byte
	epoch         uint64 // how often the cluster was restored
	epochID       string // "" in the first epoch
	retiredKeys   []string

	documents  *tree[*Document] // by Key.radix
	namespaces *tree[uint64]    // name → the revision that last changed it
	tokens     *tree[*logv1.Token]
	instances  *tree[*logv1.Instance]
	members    *iradix.Tree[struct{}] // workload NUL instance id
	admins     *tree[*logv1.Admin]
	servers    *tree[*logv1.Server]
	retired    *tree[*logv1.Retired]       // by workload; some have ended
	retiredEnd *iradix.Tree[string]        // until, then workload → workload: the first to end first
	proposals  *tree[*logv1.Proposal]      // by namespace
	anchors    *tree[*logv1.JournalAnchor] // by server

	auditSequence uint64 // of the newest record of the audit chain
	auditHash     []byte // its hash

	history      *tree[*logv1.Revision] // by big-endian revision
	historyBytes int
	outcomes     *tree[*logv1.Outcome] // by idempotency key
	outcomeOrder *iradix.Tree[string]  // when, then key → key: oldest first
}

// New returns the state before the first entry.
func New() *State {
	return &State{
		when:         time.Unix(0, 0).UTC(),
		documents:    newTree(encodeDocument),
		namespaces:   newTree(encodeNumber),
		tokens:       newTree(encodeMessage[*logv1.Token]),
		instances:    newTree(encodeMessage[*logv1.Instance]),
		members:      iradix.New[struct{}](),
		admins:       newTree(encodeMessage[*logv1.Admin]),
		servers:      newTree(encodeMessage[*logv1.Server]),
		retired:      newTree(encodeMessage[*logv1.Retired]),
		retiredEnd:   iradix.New[string](),
		proposals:    newTree(encodeMessage[*logv1.Proposal]),
		anchors:      newTree(encodeMessage[*logv1.JournalAnchor]),
		history:      newTree(encodeMessage[*logv1.Revision]),
		outcomes:     newTree(encodeMessage[*logv1.Outcome]),
		outcomeOrder: iradix.New[string](),
	}
}

// Index is the Raft index of the last entry applied.
func (s *State) Index() uint64 { return s.index }

// Revision is the index of the last entry that changed documents; 0: none has.
func (s *State) Revision() uint64 { return s.revision }

// Lineage tells which changes the documents have come from.
func (s *State) Lineage() Lineage { return s.lineage }

// When is the time of the state, in UTC: the latest that any entry was stamped
// with. Before the first entry it is the Unix epoch.
func (s *State) When() time.Time { return s.when }

// Initialized tells whether an Init entry has been applied.
func (s *State) Initialized() bool { return s.clusterID != "" }

// TrustDomain is "" before Init.
func (s *State) TrustDomain() string { return s.trustDomain }

// ClusterID is "" before Init.
func (s *State) ClusterID() string { return s.clusterID }

// Roots returns the root certificates; DER.
func (s *State) Roots() [][]byte { return s.roots }

// SealedRootKey returns the root's key under the key-encryption key.
func (s *State) SealedRootKey() []byte { return s.sealedRootKey }

// Epoch returns how often the cluster was restored from a backup, and a random id of
// the time since. Servers of another epoch are of another cluster, though they have
// its root. The id of the first epoch is that of the cluster.
func (s *State) Epoch() (number uint64, id string) {
	if s.epoch == 0 {
		return 0, s.clusterID
	}
	return s.epoch, s.epochID
}

// Raised returns the state as if the log had gone on by so many entries that had no
// effect: whatever is numbered by the log's index is then numbered above what it was
// by a log that is lost.
func (s *State) Raised(by uint64) *State {
	next := *s
	next.index += by
	return &next
}

// Document returns one document.
func (s *State) Document(k Key) (Document, bool) {
	d, ok := s.documents.Get(k.radix())
	if !ok {
		return Document{}, false
	}
	return *d, true
}

// Documents returns the documents of a kind and a namespace (each empty: all),
// sorted by kind, namespace and name.
func (s *State) Documents(kind, namespace string) iter.Seq[Document] {
	return s.DocumentsAfter(Key{}, kind, namespace)
}

// DocumentsAfter is Documents without those up to and including the key after,
// which need not exist: the next page.
func (s *State) DocumentsAfter(after Key, kind, namespace string) iter.Seq[Document] {
	return func(yield func(Document) bool) {
		from := after
		if kind > from.Kind {
			from = Key{Kind: kind, Namespace: namespace}
		}
		it := s.documents.Root().Iterator()
		it.SeekLowerBound(from.radix())
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			d := r.value
			k := d.Key
			switch {
			case kind != "" && k.Kind != kind:
				return
			case namespace != "" && k.Namespace < namespace:
				it = s.seek(Key{Kind: k.Kind, Namespace: namespace})
			case namespace != "" && k.Namespace > namespace:
				if kind != "" {
					return
				}
				it = s.seek(Key{Kind: k.Kind + "\x01"}) // above every key of this kind
			case k == after:
			case !yield(*d):
				return
			}
		}
	}
}

// seek returns an iterator at the first document that is not below k.
func (s *State) seek(k Key) *iradix.Iterator[record[*Document]] {
	it := s.documents.Root().Iterator()
	it.SeekLowerBound(k.radix())
	return it
}

// NumDocuments tells how many documents there are.
func (s *State) NumDocuments() int { return s.documents.Len() }

// NamespaceRevision returns the revision that last changed a document of the
// namespace, also when it holds none now; 0: none ever has.
func (s *State) NamespaceRevision(namespace string) uint64 {
	rev, _ := s.namespaces.Get([]byte(namespace))
	return rev
}

// Namespaces returns every namespace that was ever changed with the revision
// that last did, sorted by name.
func (s *State) Namespaces() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		it := s.namespaces.Root().Iterator()
		for k, rev, ok := it.Next(); ok; k, rev, ok = it.Next() {
			if !yield(string(k), rev.value) {
				return
			}
		}
	}
}

// Token returns one token that is neither used nor expired by the time of the
// state.
func (s *State) Token(id string) (*logv1.Token, bool) {
	t, ok := s.tokens.Get([]byte(id))
	if !ok || s.expired(t) {
		return nil, false
	}
	return t, true
}

// Tokens returns the tokens that are neither used nor expired, sorted by id.
func (s *State) Tokens() iter.Seq[*logv1.Token] {
	return func(yield func(*logv1.Token) bool) {
		for t := range values(s.tokens) {
			if !s.expired(t) && !yield(t) {
				return
			}
		}
	}
}

func (s *State) expired(t *logv1.Token) bool {
	return !t.GetExpires().AsTime().After(s.when)
}

// Instance returns one enrolled instance.
func (s *State) Instance(id string) (*logv1.Instance, bool) { return s.instances.Get([]byte(id)) }

// Instances returns every enrolled instance, sorted by id.
func (s *State) Instances() iter.Seq[*logv1.Instance] { return values(s.instances) }

// InstancesOf returns the instances of one workload ("namespace/name"), sorted
// by id.
func (s *State) InstancesOf(workload string) iter.Seq[*logv1.Instance] {
	return func(yield func(*logv1.Instance) bool) {
		prefix := memberKey(workload, "")
		it := s.members.Root().Iterator()
		it.SeekPrefix(prefix)
		for k, _, ok := it.Next(); ok; k, _, ok = it.Next() {
			if in, found := s.instances.Get(k[len(prefix):]); found && !yield(in) {
				return
			}
		}
	}
}

// Admin returns one admin.
func (s *State) Admin(name string) (*logv1.Admin, bool) { return s.admins.Get([]byte(name)) }

// Admins returns every admin, sorted by name.
func (s *State) Admins() iter.Seq[*logv1.Admin] { return values(s.admins) }

// Server returns one server.
func (s *State) Server(id string) (*logv1.Server, bool) { return s.servers.Get([]byte(id)) }

// Servers returns every server that has announced itself, sorted by id.
func (s *State) Servers() iter.Seq[*logv1.Server] { return values(s.servers) }

// Retired tells until when the name of a workload ("namespace/name") that was
// deleted is not to be used again, while that is ahead of the state's time.
func (s *State) Retired(workload string) (until time.Time, ok bool) {
	r, ok := s.retired.Get([]byte(workload))
	if !ok || !laterThan(r.GetUntil(), s.when) {
		return time.Time{}, false
	}
	return r.GetUntil().AsTime(), true
}

// Proposal returns what is proposed for a namespace. Its puts are all documents of
// the namespace as they would be, sorted by key.
func (s *State) Proposal(namespace string) (*logv1.Proposal, bool) {
	return s.proposals.Get([]byte(namespace))
}

// Proposals returns every proposal, sorted by namespace.
func (s *State) Proposals() iter.Seq[*logv1.Proposal] { return values(s.proposals) }

// Outcome returns what an idempotency key has led to while it is remembered. A
// door looks here first, so that a retry is answered even though the puts that
// it would compute now are others; it compares OperationHash.
func (s *State) Outcome(key string) (*logv1.Outcome, bool) {
	o, ok := s.outcomes.Get([]byte(key))
	if !ok || s.when.Sub(o.GetWhen().AsTime()) >= OutcomeAge {
		return nil, false
	}
	return o, true
}

// values returns the values of a tree in the order of their keys.
func values[T any](t *tree[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		it := t.Root().Iterator()
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r.value) {
				return
			}
		}
	}
}

func memberKey(workload, id string) []byte { return []byte(workload + "\x00" + id) }

func revisionKey(revision uint64) []byte { return binary.BigEndian.AppendUint64(nil, revision) }
