package state

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// auditFormat is the first format with audit records.
const auditFormat = 3

// How much of an entry its record names. Names come from callers, and a record is
// to be small whatever they send.
const (
	maxAuditResources  = 64
	maxAuditNamespaces = 256
	maxAuditText       = 256 // bytes
)

// Audit is the record of one entry.
type Audit struct {
	Record *logv1.AuditRecord
	Bytes  []byte // its canonical encoding
	Hash   []byte // SHA-256 of Bytes
}

// AuditHead is where the audit chain stands: the sequence number of the newest
// record and the SHA-256 of its canonical encoding. 0: there is no record yet.
func (s *State) AuditHead() (sequence uint64, hash []byte) { return s.auditSequence, s.auditHash }

// EncodeAudit is the canonical encoding of a record.
func EncodeAudit(r *logv1.AuditRecord) ([]byte, error) { return marshal.Marshal(r) }

// CheckAudit reads the record that follows a head (sequence and hash) in the chain,
// from what should be its canonical encoding. The error says what is wrong with it.
func CheckAudit(b []byte, sequence uint64, hash []byte) (*Audit, error) {
	a, err := ReadAudit(b)
	switch {
	case err != nil:
		return nil, err
	case a.Record.GetSequence() != sequence+1:
		return nil, fmt.Errorf("says that it is record %d", a.Record.GetSequence())
	case !bytes.Equal(a.Record.GetPrevious(), hash):
		return nil, errors.New("does not follow the record before")
	}
	return a, nil
}

// ReadAudit reads a record without asking what it follows.
func ReadAudit(b []byte) (*Audit, error) {
	r := &logv1.AuditRecord{}
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, errors.New("is not a record")
	}
	if again, err := EncodeAudit(r); err != nil || len(r.ProtoReflect().GetUnknown()) > 0 || !bytes.Equal(again, b) {
		return nil, errors.New("is not as it was written")
	}
	sum := sha256.Sum256(b)
	return &Audit{Record: r, Bytes: b, Hash: sum[:]}, nil
}

// recorded tells whether an entry gets a record: every one does since the first that
// says what to record. Those of before get none, so that an old log gives the states
// that it gave then.
func (s *State) recorded(e *logv1.Entry) bool {
	return s.auditSequence > 0 || e.GetMethod() != ""
}

// audit makes the record of an entry that led from the state before to this one,
// and moves the head of the chain.
func (s *State) audit(before *State, e *logv1.Entry, r Result) *Audit {
	about := aboutOf(before, e, r)
	rec := &logv1.AuditRecord{
		Sequence: s.auditSequence + 1, Index: s.index, When: timestamppb.New(s.when),
		Who: clip(cmp.Or(e.GetSpiffeId(), e.GetWho())), From: clip(e.GetFrom()), Method: clip(e.GetMethod()),
		Operation: operationOf(e), ResourcesTotal: uint64(about.total), Namespaces: about.namespaceList(), Detail: clip(about.detail),
		Outcome: outcomeOf(r), Revision: s.revision, Previous: s.auditHash,
	}
	for _, k := range about.first {
		rec.Resources = append(rec.Resources, &logv1.AuditResource{Kind: clip(k.Kind), Namespace: clip(k.Namespace), Name: clip(k.Name)})
	}
	b, err := EncodeAudit(rec)
	if err != nil {
		panic(err) // every string of it was made valid
	}
	sum := sha256.Sum256(b)
	s.auditSequence, s.auditHash = rec.Sequence, sum[:]
	return &Audit{Record: rec, Bytes: b, Hash: s.auditHash}
}

// operationOf is the name of the entry's operation in the proto.
func operationOf(e *logv1.Entry) string {
	m := e.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("op")); f != nil {
		return string(f.Name())
	}
	return ""
}

// outcomes are the words for why the state refuses; they are part of the records.
var outcomes = []struct {
	err  error
	word string
}{
	{ErrNotInit, "not-initialised"},
	{ErrExists, "exists"},
	{ErrNotFound, "not-found"},
	{ErrInvalid, "invalid"},
	{ErrStaleBase, "stale-base"},
	{ErrRevalidate, "revalidate"},
	{ErrKeyReused, "key-reused"},
	{ErrRootKeyReplaced, "root-key-replaced"},
	{ErrTokenInvalid, "token-invalid"},
	{ErrLastAdmin, "last-admin"},
	{ErrJournal, "journal-differs"},
}

func outcomeOf(r Result) string {
	switch {
	case r.Err == nil && r.Replayed:
		return "replayed"
	case r.Err == nil:
		return "ok"
	}
	for _, o := range outcomes {
		if errors.Is(r.Err, o.err) {
			return o.word
		}
	}
	return "refused"
}

// about is what an entry is about.
type about struct {
	first      []Key // the lowest of all that were added
	total      int
	namespaces map[string]bool
	detail     string
}

func (a *about) add(kind, namespace, name string) { a.addKey(Key{kind, namespace, name}) }

func (a *about) addKey(k Key) {
	a.total++
	if k.Namespace != "" {
		if a.namespaces == nil {
			a.namespaces = make(map[string]bool, 1)
		}
		a.namespaces[k.Namespace] = true
	}
	if n := len(a.first); n < maxAuditResources || k.Compare(a.first[n-1]) < 0 {
		at, _ := slices.BinarySearchFunc(a.first, k, Key.Compare)
		a.first = slices.Insert(a.first, at, k)
		a.first = a.first[:min(len(a.first), maxAuditResources)]
	}
}

// of names something of a workload ("namespace/name").
func (a *about) of(kind, workload, name string) {
	namespace, _, _ := strings.Cut(workload, "/")
	a.add(kind, namespace, name)
}

func (a *about) namespaceList() []string {
	var out []string
	for ns := range a.namespaces {
		out = append(out, clip(ns))
	}
	slices.Sort(out)
	return out[:min(len(out), maxAuditNamespaces)]
}

// aboutOf says what an entry is about, by what it asked for and what it changed.
func aboutOf(before *State, e *logv1.Entry, r Result) about {
	var a about
	switch op := e.GetOp().(type) {
	case *logv1.Entry_Init:
		a.add("Admin", "", op.Init.GetAdmin().GetName())
		a.detail = "trust domain " + op.Init.GetTrustDomain()
	case *logv1.Entry_Apply:
		a.documents(op.Apply, r)
	case *logv1.Entry_Propose:
		for _, ns := range op.Propose.GetNamespaces() {
			a.add("Proposal", ns, ns)
		}
	case *logv1.Entry_PutToken:
		t := op.PutToken.GetToken()
		a.of("Token", t.GetWorkload(), t.GetId())
		a.detail = "for a server"
		if !t.GetServer() {
			a.detail = "for workload " + t.GetWorkload()
		}
	case *logv1.Entry_DeleteToken:
		t, _ := before.Token(op.DeleteToken.GetId())
		a.of("Token", t.GetWorkload(), op.DeleteToken.GetId())
	case *logv1.Entry_Redeem:
		a.redeem(op.Redeem)
	case *logv1.Entry_Endpoints:
		for _, id := range slices.Concat(op.Endpoints.GetWithdraw(), op.Endpoints.GetRestore()) {
			in, _ := before.Instance(id)
			a.of("Instance", in.GetWorkload(), id)
		}
		a.detail = fmt.Sprintf("%d withdrawn, %d restored", len(op.Endpoints.GetWithdraw()), len(op.Endpoints.GetRestore()))
	case *logv1.Entry_Place:
		in, _ := before.Instance(op.Place.GetInstance())
		a.of("Instance", in.GetWorkload(), op.Place.GetInstance())
		a.detail = fmt.Sprintf("zone %q, weight %d", op.Place.GetZone(), op.Place.GetWeight())
	case *logv1.Entry_Deregister:
		in, _ := before.Instance(op.Deregister.GetInstance())
		a.of("Instance", in.GetWorkload(), op.Deregister.GetInstance())
	case *logv1.Entry_PutAdmin:
		ad := op.PutAdmin.GetAdmin()
		a.add("Admin", "", ad.GetName())
		a.detail = "role " + ad.GetRole()
		if len(ad.GetNamespaces()) > 0 {
			a.detail += " of " + joined(ad.GetNamespaces()[:min(len(ad.GetNamespaces()), 16)])
		}
	case *logv1.Entry_DeleteAdmin:
		a.add("Admin", "", op.DeleteAdmin.GetName())
	case *logv1.Entry_PutServer:
		a.add("Server", "", op.PutServer.GetServer().GetId())
		a.detail = "at " + op.PutServer.GetServer().GetClusterAddress()
	case *logv1.Entry_DeleteServer:
		a.add("Server", "", op.DeleteServer.GetId())
	case *logv1.Entry_ReplaceRootKey:
		a.add("Key", "", op.ReplaceRootKey.GetToKey())
		a.detail = "in the place of " + op.ReplaceRootKey.GetFromKey()
	case *logv1.Entry_Restored:
		a.add("Server", "", op.Restored.GetServer().GetId())
		a.detail = "a backup was restored: epoch " + op.Restored.GetEpochId()
		if was := op.Restored.GetRecovered(); was != "" {
			a.detail = fmt.Sprintf("the quorum was lost: epoch %s goes on from server %s", op.Restored.GetEpochId(), was)
			for _, id := range op.Restored.GetLost() {
				a.add("Server", "", id)
			}
		}
	case *logv1.Entry_AnchorJournal:
		a.add("Journal", "", op.AnchorJournal.GetServer())
		a.detail = fmt.Sprintf("%d lines, sha256 %s", op.AnchorJournal.GetLines(), op.AnchorJournal.GetHash())
		if n := op.AnchorJournal.GetLetGo(); n > 0 {
			a.detail += fmt.Sprintf(", %d let go", n)
		}
		if op.AnchorJournal.GetAccept() {
			a.detail += ", accepted"
		}
	case *logv1.Entry_AcceptJournal:
		a.add("Journal", "", op.AcceptJournal.GetServer())
		a.detail = op.AcceptJournal.GetReason()
	case *logv1.Entry_Access:
		if op.Access.GetKind() != "" {
			a.add(op.Access.GetKind(), "", op.Access.GetName())
		}
	}
	return a
}

// joined is strings.Join(words, ", "), or a beginning of it that clip cuts.
func joined(words []string) string {
	n := 0
	for i, w := range words {
		if n += len(w); n > maxAuditText {
			words = append(slices.Clone(words[:i]), w[:len(w)-(n-maxAuditText-1)])
			break
		}
	}
	return strings.Join(words, ", ")
}

// documents names the documents that were changed; those of a refused entry as it
// asked for them.
func (a *about) documents(op *logv1.Apply, r Result) {
	switch {
	case r.Err != nil:
		for _, p := range op.GetPuts() {
			a.addKey(keyOf(p.GetKey()))
		}
		for _, k := range op.GetDeletes() {
			a.addKey(keyOf(k))
		}
	default:
		for _, k := range r.Changed.Keys {
			a.addKey(k)
		}
		for _, ns := range r.Changed.Proposals {
			a.add("Proposal", ns, ns)
		}
	}
}

func (a *about) redeem(op *logv1.Redeem) {
	workload := op.GetInstance().GetWorkload()
	a.of("Token", workload, op.GetId())
	if in := op.GetInstance(); in != nil {
		a.of("Instance", workload, in.GetId())
		a.detail = "of workload " + workload
	}
	if v := op.GetServer(); v != nil {
		a.add("Server", "", v.GetId())
		a.detail = "the key-encryption key is handed over"
	}
}

// clip bounds what callers have chosen, and makes it text.
func clip(s string) string {
	if len(s) > maxAuditText {
		s = s[:maxAuditText-len("…")] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// Anchor returns how far the issuance journal of a server was when it last said.
func (s *State) Anchor(server string) (*logv1.JournalAnchor, bool) {
	return s.anchors.Get([]byte(server))
}

// applyAnchorJournal moves the anchor of a journal; it never goes back, unless an
// admin has accepted that.
func (s *State) applyAnchorJournal(op *logv1.AnchorJournal) Result {
	if sum, err := hex.DecodeString(op.GetHash()); op.GetServer() == "" || op.GetLines() == 0 || err != nil || len(sum) != sha256.Size {
		return Result{Err: fmt.Errorf("%w: anchor of a journal", ErrInvalid)}
	}
	if _, ok := s.Server(op.GetServer()); !ok {
		return Result{Err: fmt.Errorf("server %s: %w", op.GetServer(), ErrNotFound)}
	}
	old, _ := s.Anchor(op.GetServer())
	same := op.GetLines() == old.GetLines() && op.GetHash() == old.GetHash()
	letGo := max(op.GetLetGo(), old.GetLetGo())
	if op.GetAccept() {
		letGo = op.GetLetGo()
	}
	switch {
	case op.GetLetGo() > op.GetLines(), !op.GetAccept() && op.GetLetGo() > old.GetLines():
		return Result{Err: fmt.Errorf("%w: %d lines let go, and %d are anchored", ErrInvalid, op.GetLetGo(), old.GetLines())}
	case op.GetAccept() && !old.GetAccepted() && !same:
		return Result{Err: fmt.Errorf("%w: no admin has accepted that", ErrJournal)}
	case same && letGo == old.GetLetGo() && !old.GetAccepted():
		return Result{}
	case same, op.GetAccept():
	case op.GetLines() <= old.GetLines():
		return Result{Err: fmt.Errorf("%w: %d lines, and there were %d", ErrJournal, op.GetLines(), old.GetLines())}
	case op.GetAfterLines() != old.GetLines() || op.GetAfterHash() != old.GetHash():
		return Result{Err: fmt.Errorf("%w: it goes on from %d lines, and the last anchor is at %d", ErrJournal, op.GetAfterLines(), old.GetLines())}
	}
	s.anchors, _, _ = s.anchors.Insert([]byte(op.GetServer()), &logv1.JournalAnchor{
		Server: op.GetServer(), Lines: op.GetLines(), Hash: op.GetHash(), When: timestamppb.New(s.when), LetGo: letGo,
	})
	return Result{Changed: Changes{Journals: true}}
}

// applyAcceptJournal lets the next anchor of a server's issuance journal be any. That
// one is the server's to say: what it has.
func (s *State) applyAcceptJournal(op *logv1.AcceptJournal) Result {
	old, ok := s.Anchor(op.GetServer())
	switch {
	case op.GetReason() == "":
		return Result{Err: fmt.Errorf("%w: a journal is accepted for a reason", ErrInvalid)}
	case !ok:
		return Result{Err: fmt.Errorf("anchor of a journal of server %s: %w", op.GetServer(), ErrNotFound)}
	case old.GetAccepted():
		return Result{}
	}
	now := proto.CloneOf(old)
	now.Accepted = true
	s.anchors, _, _ = s.anchors.Insert([]byte(op.GetServer()), now)
	return Result{Changed: Changes{Journals: true}}
}
