package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// workloadKind is the one kind that other collections refer to: the workload of
// an instance must exist as such a document.
const workloadKind = "Workload"

// Result is what one entry has led to.
type Result struct {
	// Revision is the newest revision after the entry; of a replay, the one after
	// its first time.
	Revision uint64
	// Err is why the entry was refused; see the errors of this package. A refused
	// entry has changed nothing.
	Err error
	// Replayed: the same entry has had its effect before, and has none now.
	Replayed bool
	// Changed tells what the entry has changed.
	Changed Changes
	// After is the state that Apply has returned.
	After *State
	// Audit is the record of the entry, whatever came of it, to be kept by the
	// caller; nil for entries of before there were records.
	Audit *Audit
}

// Apply returns the state after the entry at a Raft index, and what to answer to
// whoever proposed it. It is total: there is no entry that makes it panic. On
// ErrUnknownEntry the state is returned as it was, and the caller must stop.
//
// The entry belongs to the states from now on; nobody may change it.
func Apply(s *State, index uint64, e *logv1.Entry) (*State, Result) {
	if e.GetFormat() < 1 || e.GetFormat() > Format || e.GetOp() == nil {
		return s, Result{Revision: s.revision, Err: fmt.Errorf("%w: format %d, operation %T", ErrUnknownEntry, e.GetFormat(), e.GetOp())}
	}
	if index <= s.index {
		return s, Result{Revision: s.revision, Err: fmt.Errorf("%w: index %d after %d", ErrUnknownEntry, index, s.index)}
	}
	next := new(State)
	*next = *s
	next.index = index
	if laterThan(e.GetWhen(), s.when) {
		next.when = e.GetWhen().AsTime()
	}
	r := next.take(e)
	if !r.Replayed || r.Revision == 0 {
		r.Revision = next.revision
	}
	if s.recorded(e) {
		r.Audit = next.audit(s, e, r)
	}
	r.After = next
	return next, r
}

// take carries an entry out on a copy of the state that has seen only its index and
// time, unless the entry is refused or has had its effect before.
func (s *State) take(e *logv1.Entry) Result {
	if o, ok := s.Outcome(e.GetIdempotencyKey()); ok {
		if !bytes.Equal(o.GetOperationHash(), e.GetOperationHash()) {
			return Result{Err: ErrKeyReused}
		}
		return Result{Revision: o.GetRevision(), Replayed: true}
	}
	if needs := FormatOf(e); e.GetFormat() < needs {
		return Result{Err: fmt.Errorf("%w: format %d, its fields are of format %d", ErrInvalid, e.GetFormat(), needs)}
	}
	before := *s
	r := s.apply(e)
	if r.Err != nil {
		*s = before
		return Result{Err: r.Err}
	}
	if e.GetIdempotencyKey() != "" {
		s.remember(&logv1.Outcome{
			Key:           e.GetIdempotencyKey(),
			When:          timestamppb.New(s.when),
			Revision:      s.revision,
			OperationHash: e.GetOperationHash(),
		})
	}
	return r
}

// FormatOf returns the oldest format that a reader of the entry must know, whatever
// the entry itself says. An entry that says less is refused: an older reader would
// leave out what it does not know, and diverge.
func FormatOf(e *logv1.Entry) uint32 {
	if e.GetFrom() != "" || e.GetMethod() != "" || e.GetSpiffeId() != "" {
		return 3
	}
	switch op := e.GetOp().(type) {
	case *logv1.Entry_ReplaceRootKey, *logv1.Entry_Restored, *logv1.Entry_AnchorJournal, *logv1.Entry_Access,
		*logv1.Entry_AcceptJournal, *logv1.Entry_Place:
		return 3
	case *logv1.Entry_Propose:
		return 2
	case *logv1.Entry_Apply:
		if len(op.Apply.GetLineage()) > 0 || op.Apply.Judged != nil {
			return 3
		}
		if len(op.Apply.GetRetired())+len(op.Apply.GetEndsProposals()) > 0 {
			return 2
		}
	case *logv1.Entry_PutServer:
		return formatOfServer(op.PutServer.GetServer())
	case *logv1.Entry_Redeem:
		return max(formatOfServer(op.Redeem.GetServer()), formatOfInstance(op.Redeem.GetInstance()))
	}
	return 1
}

func formatOfServer(v *logv1.Server) uint32 {
	if v.GetFormat() > 0 || v.GetReplica() || v.GetZone() != "" {
		return 3
	}
	return 1
}

func formatOfInstance(in *logv1.Instance) uint32 {
	if in.GetZone() != "" || in.GetWeight() != 0 {
		return 3
	}
	return 1
}

// Try tells why the state would refuse an entry now, without applying it.
func (s *State) Try(e *logv1.Entry) error {
	next := *s
	if laterThan(e.GetWhen(), s.when) {
		next.when = e.GetWhen().AsTime()
	}
	return next.apply(e).Err
}

// apply carries the operation out on a copy that nobody else has seen. When it
// returns an error the copy is thrown away.
func (s *State) apply(e *logv1.Entry) Result {
	if op, ok := e.GetOp().(*logv1.Entry_Init); ok {
		return s.applyInit(op.Init)
	}
	if !s.Initialized() {
		return Result{Err: ErrNotInit}
	}
	switch op := e.GetOp().(type) {
	case *logv1.Entry_Apply:
		return s.applyDocuments(e, op.Apply)
	case *logv1.Entry_PutToken:
		return s.applyPutToken(op.PutToken.GetToken())
	case *logv1.Entry_DeleteToken:
		return s.applyDeleteToken(op.DeleteToken.GetId())
	case *logv1.Entry_Redeem:
		return s.applyRedeem(op.Redeem)
	case *logv1.Entry_Endpoints:
		return s.applyEndpoints(op.Endpoints)
	case *logv1.Entry_Place:
		return s.applyPlace(op.Place)
	case *logv1.Entry_Deregister:
		return s.applyDeregister(op.Deregister.GetInstance())
	case *logv1.Entry_PutAdmin:
		return s.applyPutAdmin(op.PutAdmin.GetAdmin())
	case *logv1.Entry_DeleteAdmin:
		return s.applyDeleteAdmin(op.DeleteAdmin.GetName())
	case *logv1.Entry_PutServer:
		return s.applyPutServer(op.PutServer.GetServer())
	case *logv1.Entry_DeleteServer:
		return s.applyDeleteServer(op.DeleteServer.GetId())
	case *logv1.Entry_Propose:
		return s.applyPropose(e.GetWho(), op.Propose)
	case *logv1.Entry_ReplaceRootKey:
		return s.applyReplaceRootKey(op.ReplaceRootKey)
	case *logv1.Entry_Restored:
		return s.applyRestored(op.Restored)
	case *logv1.Entry_AnchorJournal:
		return s.applyAnchorJournal(op.AnchorJournal)
	case *logv1.Entry_AcceptJournal:
		return s.applyAcceptJournal(op.AcceptJournal)
	case *logv1.Entry_Access:
		return Result{}
	default:
		return Result{Err: ErrUnknownEntry}
	}
}

func (s *State) applyInit(op *logv1.Init) Result {
	if s.Initialized() {
		return Result{Err: ErrExists}
	}
	if op.GetTrustDomain() == "" || op.GetClusterId() == "" || op.GetAdmin().GetName() == "" || op.GetAdmin().GetRole() != adminRole {
		return Result{Err: fmt.Errorf("%w: init needs a trust domain, a cluster id and an admin", ErrInvalid)}
	}
	s.trustDomain, s.clusterID = op.GetTrustDomain(), op.GetClusterId()
	s.roots, s.sealedRootKey = op.GetRoots(), op.GetSealedRootKey()
	s.admins, _, _ = s.admins.Insert([]byte(op.GetAdmin().GetName()), op.GetAdmin())
	return Result{Changed: Changes{Trust: true, Admins: true}}
}

// applyDocuments checks what the change was computed and validated against, and
// then makes it whole: deletes first, then puts in their order. What is put as it
// already stands, or deleted where nothing stands, is no change; without any
// change there is no revision. Proposals that it ends are ended in any case.
func (s *State) applyDocuments(e *logv1.Entry, op *logv1.Apply) Result {
	if err := s.checkBases(op); err != nil {
		return Result{Err: err}
	}
	if judged := op.GetJudged(); judged != nil {
		if now, _ := s.Admin(judged.GetName()); !sameMessage(now, judged) {
			return Result{Err: fmt.Errorf("%w: the rights of admin %s have changed", ErrRevalidate, judged.GetName())}
		}
	}
	keys, after, err := target(op)
	if err != nil {
		return Result{Err: err}
	}
	for _, r := range op.GetRetired() {
		if !r.GetUntil().IsValid() {
			return Result{Err: fmt.Errorf("%w: %s is retired without a time", ErrInvalid, r.GetWorkload())}
		}
	}
	revision := &logv1.Revision{Revision: s.index, When: timestamppb.New(s.when), Who: e.GetWho(), Message: op.GetMessage()}
	c := Changes{Proposals: s.endProposals(op.GetEndsProposals())}
	gone := make(map[string]bool) // workloads
	docs, namespaces := s.documents.Txn(), s.namespaces.Txn()
	for _, k := range keys {
		want := after[k]
		var before []byte
		old, had := docs.Get(k.radix())
		if had {
			before = old.Bytes
		}
		switch {
		case want == nil && !had, want != nil && had && bytes.Equal(want, before):
			continue
		case want == nil:
			docs.Delete(k.radix())
			if k.Kind == workloadKind {
				gone[k.Namespace+"/"+k.Name] = true
			}
		default:
			docs.Insert(k.radix(), &Document{Key: k, Bytes: want, Revision: s.index})
		}
		namespaces.Insert([]byte(k.Namespace), s.index)
		revision.Changes = append(revision.Changes, &logv1.Change{Key: k.proto(), Before: before, After: want})
		c.Keys = append(c.Keys, k)
	}
	if len(revision.Changes) == 0 {
		return Result{Changed: c}
	}
	s.documents, s.namespaces, s.revision = docs.Commit(), namespaces.Commit(), s.index
	if len(op.GetLineage()) > 0 {
		s.lineage = s.lineage.after(revision.Changes)
	} else {
		s.lineage = lineageOf(s.revision)
	}
	s.record(revision)
	s.forgetWorkloads(gone, &c)
	s.retire(op.GetRetired(), gone)
	return Result{Changed: c}
}

func (s *State) checkBases(op *logv1.Apply) error {
	stale := false
	if seeded == "unchecked-base" {
		op = &logv1.Apply{ValidatedAt: op.GetValidatedAt(), Lineage: op.GetLineage()}
	}
	for ns, base := range op.GetBases() {
		stale = stale || s.NamespaceRevision(ns) != base
	}
	if stale {
		current := make(map[string]uint64, len(op.GetBases()))
		for ns := range op.GetBases() {
			current[ns] = s.NamespaceRevision(ns)
		}
		return &StaleBaseError{Current: current}
	}
	if len(op.GetLineage()) > 0 {
		if !bytes.Equal(op.GetLineage(), s.lineage[:]) {
			return fmt.Errorf("%w: validated at lineage %x, now at %x", ErrRevalidate, op.GetLineage(), s.lineage)
		}
		return nil
	}
	if op.GetValidatedAt() != s.revision {
		return fmt.Errorf("%w: validated at %d, now at %d", ErrRevalidate, op.GetValidatedAt(), s.revision)
	}
	return nil
}

// target returns the keys that an Apply names, sorted, and what it wants of each;
// nil: not there.
func target(op *logv1.Apply) (keys []Key, after map[Key][]byte, err error) {
	after = make(map[Key][]byte, len(op.GetDeletes())+len(op.GetPuts()))
	for _, d := range op.GetDeletes() {
		after[keyOf(d)] = nil
	}
	for _, p := range op.GetPuts() {
		if len(p.GetDocument()) == 0 {
			return nil, nil, fmt.Errorf("%w: %s is put without a document", ErrInvalid, keyOf(p.GetKey()))
		}
		after[keyOf(p.GetKey())] = p.GetDocument()
	}
	keys = slices.SortedFunc(maps.Keys(after), Key.Compare)
	for _, k := range keys {
		if !k.valid() {
			return nil, nil, fmt.Errorf("%w: key %q", ErrInvalid, k.String())
		}
	}
	return keys, after, nil
}

// forgetWorkloads removes the instances of workloads that are gone, and the
// tokens bound to them.
func (s *State) forgetWorkloads(gone map[string]bool, c *Changes) {
	for w := range gone {
		for in := range s.InstancesOf(w) {
			c.InstanceIDs = append(c.InstanceIDs, in.GetId())
		}
	}
	slices.Sort(c.InstanceIDs)
	for _, id := range c.InstanceIDs {
		s.removeInstance(id)
	}
	if len(gone) == 0 {
		return
	}
	tokens := s.tokens.Txn()
	for t := range values(s.tokens) {
		if gone[t.GetWorkload()] {
			tokens.Delete([]byte(t.GetId()))
			c.Tokens = true
		}
	}
	s.tokens = tokens.Commit()
}

// retire keeps the names of workloads that are gone, and takes the occasion to
// drop those that may be used again.
func (s *State) retire(names []*logv1.Retired, gone map[string]bool) {
	if len(names) == 0 {
		return
	}
	retired, end := s.retired.Txn(), s.retiredEnd.Txn()
	for {
		k, workload, ok := end.Root().Minimum()
		if !ok {
			break
		}
		if old, _ := retired.Get([]byte(workload)); laterThan(old.GetUntil(), s.when) {
			break
		}
		end.Delete(k)
		retired.Delete([]byte(workload))
	}
	for _, r := range names {
		if !gone[r.GetWorkload()] || !laterThan(r.GetUntil(), s.when) {
			continue
		}
		if old, had := retired.Insert([]byte(r.GetWorkload()), r); had {
			end.Delete(retiredKey(old))
		}
		end.Insert(retiredKey(r), r.GetWorkload())
	}
	s.retired, s.retiredEnd = retired.Commit(), end.Commit()
}

// retiredKey sorts by the end, then by workload.
func retiredKey(r *logv1.Retired) []byte {
	t := r.GetUntil().AsTime()
	b := binary.BigEndian.AppendUint64(nil, uint64(t.Unix())^1<<63) // before 1970, too
	b = binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
	return append(b, r.GetWorkload()...)
}

// record puts a revision into the history and lets the oldest go.
func (s *State) record(r *logv1.Revision) {
	history := s.history.Txn()
	history.Insert(revisionKey(r.GetRevision()), r)
	s.historyBytes += revisionSize(r)
	n := s.history.Len() + 1
	for n > MaxRevisions || s.historyBytes > MaxRevisionBytes && n > 1 {
		k, oldest, _ := history.Root().Minimum()
		history.Delete(k)
		s.historyBytes -= revisionSize(oldest.value)
		n--
	}
	s.history = history.Commit()
}

func revisionSize(r *logv1.Revision) int {
	n := 0
	for _, c := range r.GetChanges() {
		n += len(c.GetBefore()) + len(c.GetAfter())
	}
	return n
}

// remember keeps the outcome of a key and lets those go that are too old or too
// many, oldest first.
func (s *State) remember(o *logv1.Outcome) {
	outcomes, order := s.outcomes.Txn(), s.outcomeOrder.Txn()
	n := s.outcomes.Len()
	if old, had := outcomes.Insert([]byte(o.GetKey()), o); had {
		order.Delete(outcomeKey(old))
	} else {
		n++
	}
	order.Insert(outcomeKey(o), o.GetKey())
	for {
		k, key, _ := order.Root().Minimum()
		oldest, _ := outcomes.Get([]byte(key))
		if n <= MaxOutcomes && s.when.Sub(oldest.GetWhen().AsTime()) < OutcomeAge {
			break
		}
		order.Delete(k)
		outcomes.Delete([]byte(key))
		n--
	}
	s.outcomes, s.outcomeOrder = outcomes.Commit(), order.Commit()
}

// outcomeKey sorts by time, then by key.
func outcomeKey(o *logv1.Outcome) []byte {
	t := o.GetWhen().AsTime()
	b := binary.BigEndian.AppendUint64(nil, uint64(t.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
	return append(b, o.GetKey()...)
}

// laterThan tells whether a timestamp is set, in range and after t.
func laterThan(ts *timestamppb.Timestamp, t time.Time) bool {
	return ts.IsValid() && ts.AsTime().After(t)
}
