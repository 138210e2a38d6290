package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// loader builds a State from the records of a snapshot.
type loader struct {
	s       *State
	format  uint32 // of the header
	section int    // of the record added last; sections only go up
	last    []byte // its key; within a section keys only go up

	documents    *txn[*Document]
	tokens       *txn[*logv1.Token]
	instances    *txn[*logv1.Instance]
	members      *iradix.Txn[struct{}]
	admins       *txn[*logv1.Admin]
	servers      *txn[*logv1.Server]
	retired      *txn[*logv1.Retired]
	retiredEnd   *iradix.Txn[string]
	proposals    *txn[*logv1.Proposal]
	anchors      *txn[*logv1.JournalAnchor]
	namespaces   *txn[uint64]
	history      *txn[*logv1.Revision]
	outcomes     *txn[*logv1.Outcome]
	outcomeOrder *iradix.Txn[string]

	newest map[Key][]byte // the bytes of each document in the newest revision seen
}

func newLoader() *loader {
	s := New()
	return &loader{
		s:         s,
		documents: s.documents.Txn(), tokens: s.tokens.Txn(), instances: s.instances.Txn(), members: s.members.Txn(),
		admins: s.admins.Txn(), servers: s.servers.Txn(), namespaces: s.namespaces.Txn(), history: s.history.Txn(),
		outcomes: s.outcomes.Txn(), outcomeOrder: s.outcomeOrder.Txn(), retired: s.retired.Txn(), retiredEnd: s.retiredEnd.Txn(),
		proposals: s.proposals.Txn(), anchors: s.anchors.Txn(),
		newest: make(map[Key][]byte),
	}
}

func (l *loader) header(h *logv1.Header) error {
	if h.GetFormat() < 1 || h.GetFormat() > Format {
		return fmt.Errorf("format %d is not known, the newest known is %d", h.GetFormat(), Format)
	}
	if n := len(h.GetLineage()); n != 0 && (n != len(Lineage{}) || h.GetFormat() < 3) {
		return errors.New("the header's lineage is not of its format")
	}
	if !h.GetWhen().IsValid() || h.GetWhen().AsTime().Before(l.s.when) || h.GetRevision() > h.GetIndex() {
		return errors.New("the header contradicts itself")
	}
	if h.GetFormat() < 3 && (h.GetEpoch() != 0 || h.GetEpochId() != "") || (h.GetEpoch() == 0) != (h.GetEpochId() == "") {
		return errors.New("the header's epoch contradicts itself")
	}
	if a := h.GetAudit(); a != nil && (h.GetFormat() < auditFormat || a.GetSequence() == 0 || len(a.GetHash()) != sha256.Size) {
		return errors.New("the header contradicts itself about the audit chain")
	}
	if len(h.GetRetiredKeys()) > 0 && h.GetFormat() < 3 {
		return errors.New("the header's retired keys are not of its format")
	}
	l.format = h.GetFormat()
	l.s.index, l.s.revision, l.s.when = h.GetIndex(), h.GetRevision(), h.GetWhen().AsTime()
	if l.s.lineage = lineageOf(l.s.revision); len(h.GetLineage()) > 0 {
		l.s.lineage = Lineage(h.GetLineage())
	}
	l.s.trustDomain, l.s.clusterID = h.GetTrustDomain(), h.GetClusterId()
	l.s.roots, l.s.sealedRootKey = h.GetRoots(), h.GetSealedRootKey()
	l.s.epoch, l.s.epochID, l.s.retiredKeys = h.GetEpoch(), h.GetEpochId(), h.GetRetiredKeys()
	l.s.auditSequence, l.s.auditHash = h.GetAudit().GetSequence(), h.GetAudit().GetHash()
	return nil
}

// add loads one record that is neither header nor end.
func (l *loader) add(rec *logv1.Record) error {
	if l.format < 2 && (rec.GetRetired() != nil || rec.GetProposal() != nil) {
		return fmt.Errorf("a record of format 2 in a snapshot of format %d", l.format)
	}
	if l.format < 3 && rec.GetJournalAnchor() != nil {
		return fmt.Errorf("a record of format 3 in a snapshot of format %d", l.format)
	}
	if l.format < formatOfServer(rec.GetServer()) {
		return fmt.Errorf("a server of format 3 in a snapshot of format %d", l.format)
	}
	switch r := rec.GetRecord().(type) {
	case *logv1.Record_Document:
		return l.document(r.Document)
	case *logv1.Record_Token:
		l.tokens.Insert([]byte(r.Token.GetId()), r.Token)
		return l.ascend(2, []byte(r.Token.GetId()))
	case *logv1.Record_Instance:
		l.instances.Insert([]byte(r.Instance.GetId()), r.Instance)
		l.members.Insert(memberKey(r.Instance.GetWorkload(), r.Instance.GetId()), struct{}{})
		return l.ascend(3, []byte(r.Instance.GetId()))
	case *logv1.Record_Admin:
		l.admins.Insert([]byte(r.Admin.GetName()), r.Admin)
		return l.ascend(4, []byte(r.Admin.GetName()))
	case *logv1.Record_Server:
		l.servers.Insert([]byte(r.Server.GetId()), r.Server)
		return l.ascend(5, []byte(r.Server.GetId()))
	case *logv1.Record_Namespace:
		l.namespaces.Insert([]byte(r.Namespace.GetName()), r.Namespace.GetRevision())
		return l.ascend(6, []byte(r.Namespace.GetName()))
	case *logv1.Record_Revision:
		return l.revision(r.Revision)
	case *logv1.Record_Outcome:
		if !r.Outcome.GetWhen().IsValid() {
			return errors.New("an outcome without a time")
		}
		if seeded == "double-apply" {
			return nil
		}
		if _, twice := l.outcomes.Insert([]byte(r.Outcome.GetKey()), r.Outcome); twice {
			return errors.New("an idempotency key twice")
		}
		l.outcomeOrder.Insert(outcomeKey(r.Outcome), r.Outcome.GetKey())
		return l.ascend(8, outcomeKey(r.Outcome))
	case *logv1.Record_Retired:
		if !r.Retired.GetUntil().IsValid() {
			return errors.New("a retired name without a time")
		}
		l.retired.Insert([]byte(r.Retired.GetWorkload()), r.Retired)
		l.retiredEnd.Insert(retiredKey(r.Retired), r.Retired.GetWorkload())
		return l.ascend(9, []byte(r.Retired.GetWorkload()))
	case *logv1.Record_Proposal:
		return l.proposal(r.Proposal)
	case *logv1.Record_JournalAnchor:
		l.anchors.Insert([]byte(r.JournalAnchor.GetServer()), r.JournalAnchor)
		return l.ascend(25, []byte(r.JournalAnchor.GetServer()))
	default:
		return errors.New("a record of an unknown kind")
	}
}

func (l *loader) document(d *logv1.StoredDocument) error {
	k := keyOf(d.GetPut().GetKey())
	if !k.valid() || len(d.GetPut().GetDocument()) == 0 {
		return fmt.Errorf("document %q", k.String())
	}
	l.documents.Insert(k.radix(), &Document{Key: k, Bytes: d.GetPut().GetDocument(), Revision: d.GetRevision()})
	return l.ascend(1, k.radix())
}

func (l *loader) proposal(p *logv1.Proposal) error {
	var last []byte
	for _, put := range p.GetPuts() {
		k := keyOf(put.GetKey())
		if !k.valid() || k.Namespace != p.GetNamespace() || len(put.GetDocument()) == 0 || bytes.Compare(k.radix(), last) <= 0 {
			return fmt.Errorf("proposed document %q", k.String())
		}
		last = k.radix()
	}
	l.proposals.Insert([]byte(p.GetNamespace()), p)
	return l.ascend(10, []byte(p.GetNamespace()))
}

// revision loads one past change. A document's bytes stand in the snapshot up to
// three times: as stored, as the "after" of one change and the "before" of the
// next. In memory they are one value again.
func (l *loader) revision(r *logv1.Revision) error {
	for _, c := range r.GetChanges() {
		k := keyOf(c.GetKey())
		if b := l.newest[k]; bytes.Equal(b, c.GetBefore()) {
			c.Before = b
		}
		if d, ok := l.documents.Get(k.radix()); ok && bytes.Equal(d.Bytes, c.GetAfter()) {
			c.After = d.Bytes
		}
		l.newest[k] = c.GetAfter()
	}
	l.history.Insert(revisionKey(r.GetRevision()), r)
	l.s.historyBytes += revisionSize(r)
	return l.ascend(7, revisionKey(r.GetRevision()))
}

// ascend checks that sections come in their order and keys within them too, which
// also makes each key unique.
func (l *loader) ascend(section int, key []byte) error {
	if section < l.section || section == l.section && bytes.Compare(key, l.last) <= 0 || len(key) == 0 && section != 6 {
		return errors.New("a record out of order")
	}
	l.section, l.last = section, key
	return nil
}

func (l *loader) commit() *State {
	s := l.s
	s.documents, s.tokens, s.instances, s.members = l.documents.Commit(), l.tokens.Commit(), l.instances.Commit(), l.members.Commit()
	s.admins, s.servers, s.namespaces, s.history = l.admins.Commit(), l.servers.Commit(), l.namespaces.Commit(), l.history.Commit()
	s.outcomes, s.outcomeOrder = l.outcomes.Commit(), l.outcomeOrder.Commit()
	s.retired, s.retiredEnd, s.proposals = l.retired.Commit(), l.retiredEnd.Commit(), l.proposals.Commit()
	s.anchors = l.anchors.Commit()
	return s
}
