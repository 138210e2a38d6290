package api

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/parallel"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// plan is what a wish comes to, on a state that is known to be valid with it.
type plan struct {
	puts     []*logv1.Put
	deletes  []*logv1.Key
	retired  []*logv1.Retired // names of the workloads among deletes
	ends     []string         // namespaces whose proposal ends
	proposal *logv1.Propose   // instead of all of these
	changed  []spec.Key       // of puts and deletes
	affected []*ztv1.InstanceRef
	warnings []*ztv1.Problem
	old      *view.View // what it was made on
	next     *view.View // what puts and deletes lead to
	sound    bool       // next has passed spec.Check as a whole
}

// namespaces are those whose documents it changes.
func (p *plan) namespaces() map[string]bool {
	out := map[string]bool{}
	for _, put := range p.puts {
		out[put.GetKey().GetNamespace()] = true
	}
	for _, k := range p.deletes {
		out[k.GetNamespace()] = true
	}
	return out
}

// worthAProcessor is how many documents are worth waking another processor for.
const worthAProcessor = 64

// empty tells whether nothing is to be agreed on.
func (p *plan) empty() bool { return len(p.changed)+len(p.ends) == 0 && p.proposal == nil }

// response is what the caller is told when st holds what the wish came to, with what
// changes has shown of it.
func (p *plan) response(st *state.State, w wish, shown []*ztv1.Change) *ztv1.ApplyResponse {
	return &ztv1.ApplyResponse{
		Revision: st.Revision(), Changes: shown, Affected: p.affected, Bases: bases(st, w.named), Warnings: p.warnings,
	}
}

func (p *plan) entry(st *state.State, w wish) *logv1.Entry {
	e := &logv1.Entry{IdempotencyKey: w.key, OperationHash: w.hash}
	if p.proposal != nil {
		p.proposal.Message = w.message
		e.Op = &logv1.Entry_Propose{Propose: p.proposal}
		return e
	}
	lineage := st.Lineage()
	e.Op = &logv1.Entry_Apply{Apply: &logv1.Apply{
		Bases: w.bases, Lineage: lineage[:], Puts: p.puts, Deletes: p.deletes, Message: w.message,
		Retired: p.retired, EndsProposals: p.ends,
	}}
	return e
}

// put is a document that is to be put, and its canonical form.
type put struct {
	*spec.Document
	canonical []byte
}

func documentsOf(puts []put) []*spec.Document {
	out := make([]*spec.Document, len(puts))
	for i, p := range puts {
		out[i] = p.Document
	}
	return out
}

// assemble is the plan that leads from one view to the next by puts and deletes.
// The compiler is run dry for every workload that they touch.
func (s *Server) assemble(st *state.State, old, next *view.View, puts []put, deletes []spec.Key) (*plan, error) {
	p := &plan{old: old, next: next, changed: make([]spec.Key, 0, len(puts)+len(deletes))}
	now := s.cfg.Now()
	for _, d := range puts {
		k := d.Key()
		p.changed = append(p.changed, k)
		p.puts = append(p.puts, &logv1.Put{Key: logKey(k), Document: d.canonical})
	}
	p.changed = append(p.changed, deletes...)
	var life time.Duration // of certificates of late; found once
	for _, k := range deletes {
		p.deletes = append(p.deletes, logKey(k))
		if k.Kind != spec.KindWorkload {
			continue
		}
		if life == 0 {
			life = lifeOfLate(st, now)
		}
		ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}
		until := now.Add(max(life, old.Index.Settings(ref).SVIDTTL) + retiredMargin)
		p.retired = append(p.retired, &logv1.Retired{Workload: ref.String(), Until: timestamppb.New(until)})
	}
	old, next = lift(old, now), lift(next, now)
	refs, err := view.Affected(old, next, next.Index.Touched(old.Index, p.changed), enrolled(st))
	if err != nil {
		return nil, notCompiled(err)
	}
	p.affected = instancesOf(st, refs)
	return p, nil
}

// changes shows the documents that change, in as much detail as is asked for.
func (p *plan) changes(detail ztv1.Detail) []*ztv1.Change {
	out := make([]*ztv1.Change, len(p.changed))
	parallel.Chunks(len(out), worthAProcessor, func(from, to int) {
		for i := from; i < to; i++ {
			k := p.changed[i]
			before, _ := p.old.Document(k)
			after, _ := p.next.Document(k)
			out[i] = change(k, before, after, detail)
		}
	})
	return out
}

// lift is a view without what has ended at now, which is what the compiler takes.
func lift(v *view.View, now time.Time) *view.View {
	_, ended := v.Index.Lift(now)
	if len(ended) == 0 {
		return v
	}
	return v.With(nil, ended)
}

// notCompiled is an error of the compiler as a refusal.
func notCompiled(err error) error {
	var failed *view.CompileError
	if errors.As(err, &failed) {
		return invalid(spec.Problems{failed.Problem()})
	}
	return err
}

// A name is retired for as long as a certificate of it may live, and a margin for
// clocks that differ. No certificate lives longer than maxSVIDTTL (Mesh.svidTTL).
const (
	retiredMargin = 5 * time.Minute
	maxSVIDTTL    = 24 * time.Hour
)

// lifeOfLate is how long a certificate that was issued until now may live by what
// any settings said of late that are still kept: more than needed does no harm.
func lifeOfLate(st *state.State, now time.Time) time.Duration {
	longest := time.Second // never zero
	for r := range st.Revisions(0) {
		if now.Sub(r.When.AsTime()) > maxSVIDTTL {
			break // what was issued before it has ended
		}
		for _, c := range r.Changes {
			longest = max(longest, lifeBefore(c))
		}
	}
	return longest
}

// lifeBefore is the svidTTL that a document said before a change; what cannot be
// read may have said anything.
func lifeBefore(c *logv1.Change) time.Duration {
	kind := c.GetKey().GetKind()
	if kind != spec.KindMesh && kind != spec.KindSegment {
		return 0
	}
	d := &ztv1.Document{}
	if proto.Unmarshal(c.GetBefore(), d) != nil {
		return maxSVIDTTL
	}
	if kind == spec.KindMesh && d.GetMesh().GetSvidTtl() == nil {
		return spec.DefaultSVIDTTL
	}
	return max(d.GetMesh().GetSvidTtl().AsDuration(), d.GetSegment().GetSvidTtl().AsDuration())
}

func logKey(k spec.Key) *logv1.Key {
	return &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

// change shows one document before and after; nil is not there.
func change(k spec.Key, before, after *spec.Document, detail ztv1.Detail) *ztv1.Change {
	c := named(k, before != nil, after != nil)
	if !shows(detail, c.Action) {
		return c
	}
	if before != nil {
		c.Before = spec.YAML(before)
	}
	if after != nil {
		c.After = spec.YAML(after)
	}
	return c
}

// named is a change of a document that was there before, or is after, or both.
func named(k spec.Key, before, after bool) *ztv1.Change {
	c := &ztv1.Change{Action: "change", Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
	switch {
	case !before:
		c.Action = "add"
	case !after:
		c.Action = "remove"
	}
	return c
}

// shows tells whether the document is shown of what is changed so.
func shows(detail ztv1.Detail, action string) bool {
	switch detail {
	case ztv1.Detail_DETAIL_NAMES:
		return false
	case ztv1.Detail_DETAIL_DIFFERENCES:
		return action == "change"
	default:
		return true
	}
}

// enrolled tells whether a workload has instances in a state.
func enrolled(st *state.State) func(spec.Ref) bool {
	return func(ref spec.Ref) bool {
		for range st.InstancesOf(ref.String()) {
			return true
		}
		return false
	}
}

// instancesOf are the enrolled instances of these workloads, sorted.
func instancesOf(st *state.State, refs []spec.Ref) []*ztv1.InstanceRef {
	var out []*ztv1.InstanceRef
	for _, ref := range refs {
		for i := range st.InstancesOf(ref.String()) {
			out = append(out, &ztv1.InstanceRef{Instance: i.Id, Workload: i.Workload})
		}
	}
	return out
}

// effect is what a past revision has changed.
type effect struct {
	revision *logv1.Revision
	affected []*ztv1.InstanceRef // instances whose configuration it changed
	closed   []policy.Pair       // whom it no longer admits, or no longer did in its time, sorted
	// over is when no connection of these is open any more; zero: there are none.
	over time.Time
}

// affected are the instances whose configuration a past revision changed.
func (s *Server) affected(st *state.State, revision uint64) ([]*ztv1.InstanceRef, error) {
	e, err := s.effectOf(st, revision)
	if err != nil {
		return nil, err
	}
	return e.affected, nil
}

// effectOf is what a past revision has changed: the documents as they were are made
// again by undoing what came after.
func (s *Server) effectOf(st *state.State, revision uint64) (*effect, error) {
	r, kept := revisionAt(st, revision)
	if !kept {
		return nil, noRevision(st, revision)
	}
	at, err := s.viewAt(st, revision)
	if err != nil {
		return nil, err
	}
	before, err := at.Undo(r)
	if err != nil {
		return nil, err
	}
	e, err := effectBetween(st, before, at, r)
	if err != nil {
		return nil, err
	}
	e.lapse(at.Index, s.until(st, revision))
	return e, nil
}

// until is when the revision after this one was made; now, if there is none.
func (s *Server) until(st *state.State, revision uint64) time.Time {
	later, _ := st.RevisionsAfter(revision)
	for next := range later {
		return next.When.AsTime()
	}
	return s.cfg.Now()
}

// lapse adds whom the clock alone has closed, of the proxies that are affected, while the
// documents of this revision were the newest: their grants have ended.
func (e *effect) lapse(ix *policy.Index, until time.Time) {
	when := e.revision.When.AsTime()
	affected := map[string]bool{}
	for _, i := range e.affected {
		affected[i.Workload] = true
	}
	lapsed := slices.DeleteFunc(ix.Closed(ix, nil, when, until), func(p policy.Pair) bool { return !affected[p.Service.String()] })
	if len(lapsed) == 0 {
		return
	}
	e.closed = slices.SortedFunc(slices.Values(append(e.closed, lapsed...)), policy.Pair.Compare)
	e.bound(lastChange(ix, when, until), lapsed, ix)
}

// lastChange is the newest moment, after one and not after the other, at which the clock
// changes what the documents admit; from, if there is none. It looks back from the end,
// ever further: between the two there may be the openings of years.
func lastChange(ix *policy.Index, from, until time.Time) time.Time {
	for back := time.Minute; ; back *= 2 {
		start := until.Add(-back)
		if start.Before(from) {
			start = from
		}
		last := start
		for at, ok := ix.NextChange(last); ok && !at.After(until); at, ok = ix.NextChange(last) {
			last = at
		}
		if last.After(start) || start.Equal(from) {
			return last
		}
	}
}

// bound notes that pairs were closed at a time: the connections of each are over when
// they have their age, by any of the documents.
func (e *effect) bound(closed time.Time, pairs []policy.Pair, by ...*policy.Index) {
	for _, p := range pairs {
		for _, ix := range by {
			if over := closed.Add(ix.Settings(p.Service).MaxConnectionAge + drains); over.After(e.over) {
				e.over = over
			}
		}
	}
}

// effectBetween is effectOf where the documents before and after are known, without what
// the clock has closed.
func effectBetween(st *state.State, before, at *view.View, r *logv1.Revision) (*effect, error) {
	changed := make([]spec.Key, 0, len(r.Changes))
	for _, c := range r.Changes {
		changed = append(changed, view.KeyOf(c.Key))
	}
	when := r.When.AsTime()
	old, next := lift(before, when), lift(at, when)
	refs := next.Index.Touched(old.Index, changed)
	refs = slices.DeleteFunc(refs, func(ref spec.Ref) bool { return !enrolled(st)(ref) })
	refs, err := view.Affected(old, next, refs, enrolled(st))
	if err != nil {
		return nil, err
	}
	e := &effect{revision: r, affected: instancesOf(st, refs), closed: at.Index.Closed(before.Index, changed, when, when)}
	e.bound(when, e.closed, before.Index, at.Index)
	return e, nil
}
