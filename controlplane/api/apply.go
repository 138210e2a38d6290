package api

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/parallel"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// The codes of problems that only a server finds, since they are about what is
// there already.
const (
	codeRetired       = "ZT4001" // the name of a workload is not to be used again yet
	codeOperatorBlock = "ZT4002" // a file's Block has the key of one that Block wrote
)

// Apply is AdminService.Apply.
func (s *Server) Apply(ctx context.Context, req *ztv1.ApplyRequest) (*ztv1.ApplyResponse, error) {
	files := make([]spec.File, 0, len(req.Files))
	for _, f := range req.Files {
		files = append(files, spec.File{Name: f.GetName(), Content: f.GetContent()})
	}
	d := draft{named: map[string]bool{}, merge: req.Merge, shadow: req.Shadow}
	d.docs, d.unread = spec.ParseBy(files, parallel.Each)
	d.canonical = canonicalOf(d.docs)
	for _, doc := range d.docs {
		d.named[doc.Key().Namespace] = true
	}
	return s.change(ctx, wish{
		named: d.named, bases: req.Bases, message: req.Message, dryRun: req.DryRun,
		key: req.IdempotencyKey, detail: req.Detail,
		hash: operationHash(callOf(ctx).principal, &ztv1.ApplyRequest{
			Files: req.Files, Merge: req.Merge, Message: req.Message, Shadow: req.Shadow,
		}),
		plan: func(st *state.State) (*plan, error) { return s.planFiles(st, d) },
	})
}

// draft is what files say.
type draft struct {
	docs      []*spec.Document
	canonical [][]byte        // of docs
	unread    spec.Problems   // of reading them
	named     map[string]bool // their namespaces
	merge     bool            // remove nothing
	shadow    bool            // propose
}

func canonicalOf(docs []*spec.Document) [][]byte {
	out := make([][]byte, len(docs))
	parallel.Chunks(len(docs), worthAProcessor, func(from, to int) {
		for i := from; i < to; i++ {
			out[i] = spec.Canonical(docs[i])
		}
	})
	return out
}

// planFiles validates a draft against a state, as a whole: references, names,
// assertions, and a dry run of the compiler. A proposal is validated as if it were
// to be enforced, but what it breaks of the assertions are warnings: to find that
// out is what it is for.
func (s *Server) planFiles(st *state.State, d draft) (*plan, error) {
	old, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	puts, deletes := diff(st, old, d, now)
	next, sound, problems := validate(st, old, d, documentsOf(puts), deletes)
	if problems = spec.Join(d.unread, problems, taken(st, old, d.docs, now)); len(problems) > 0 {
		return nil, invalid(problems)
	}
	broken, open := judgeAssertions(next, d, now)
	if len(broken) > 0 && !d.shadow {
		return nil, invalid(broken)
	}
	p, err := s.assemble(st, old, next, puts, deletes)
	if err != nil {
		return nil, err
	}
	p.sound = sound
	p.warnings = problemsOf(spec.Join(broken, open, lint(lift(next, now), d)))
	if d.shadow {
		p.proposal = proposalOf(next, d.named)
		return p, compilesInShadow(lift(old, now), lift(next, now), p)
	}
	for _, ns := range slices.Sorted(maps.Keys(d.named)) {
		if _, ok := st.Proposal(ns); ok {
			p.ends = append(p.ends, ns)
		}
	}
	return p, nil
}

// validate is the view that a change of a draft leads to, and what spec.Check has to
// say of all its documents. They are looked at one by one only if it is not known
// of old that they pass, or the change is of what all depend on, or does not pass.
func validate(st *state.State, old *view.View, d draft, puts []*spec.Document, deletes []spec.Key) (next *view.View, sound bool, problems spec.Problems) {
	next = old.With(puts, deletes)
	if len(d.unread) == 0 {
		if next, sound = old.Check(next, puts, deletes); sound {
			return next, true, nil
		}
	}
	problems = spec.Check(merged(next, d.docs), st.TrustDomain())
	return next, len(problems)+len(d.unread) == 0, problems
}

// compilesInShadow runs the compiler dry for every workload that would judge by
// what is proposed beside what is enforced.
func compilesInShadow(enforced, proposed *view.View, p *plan) error {
	for _, ref := range proposed.Index.Touched(enforced.Index, p.changed) {
		if _, ok := enforced.Index.Workload(ref); !ok {
			continue // it has no proxies yet
		}
		if _, err := compile.Workload(enforced.Index, proposed.Index, ref); err != nil {
			return notCompiled(&view.CompileError{Workload: ref, Err: err})
		}
	}
	return nil
}

// judgeAssertions are the assertions that are broken in a view, and what those that
// hold leave open. They are the files', and judged as `ztctl test` does, by files
// alone: a Block that an operator wrote in need is no reason to refuse an apply.
func judgeAssertions(v *view.View, d draft, now time.Time) (broken, open spec.Problems) {
	var blocks []spec.Key
	for b := range v.OfKind(spec.KindBlock) {
		if b.Operator() {
			blocks = append(blocks, b.Key())
		}
	}
	placed := d.placed()
	var assertions []*spec.Document
	for a := range v.OfKind(spec.KindAssertion) {
		if f, ok := placed[a.Key()]; ok {
			a = f
		}
		assertions = append(assertions, a)
		placed[a.Key()] = a
	}
	if len(assertions) == 0 {
		return nil, nil
	}
	if len(blocks) > 0 {
		v = v.With(nil, blocks)
	}
	results := policy.RunTests(v.Index, assertions, now)
	for _, r := range results {
		for _, note := range r.Notes {
			open = append(open, problemAt(placed[r.Assertion], fmt.Sprintf("spec.%s[%d]", r.List, r.Index), policy.CodeUndecided, note, ""))
		}
	}
	return policy.TestProblems(results), open
}

// placed are the documents of a draft, which know their places in the files.
func (d draft) placed() map[spec.Key]*spec.Document {
	out := make(map[spec.Key]*spec.Document, len(d.docs))
	for _, doc := range d.docs {
		out[doc.Key()] = doc
	}
	return out
}

// lint is what somebody should know of the documents of a draft's namespaces.
func lint(v *view.View, d draft) (out spec.Problems) {
	placed := d.placed()
	for ns := range d.named {
		for _, w := range v.Index.LintOf(ns) {
			doc, ok := placed[w.Key]
			if !ok {
				doc, ok = v.Document(w.Key)
			}
			if ok {
				out = append(out, problemAt(doc, w.Path, w.Code, w.Message, w.Hint))
			}
		}
	}
	return out
}

// proposalOf is the documents of namespaces in a view. Blocks that Block wrote
// are no part of it: they hold beside any proposal.
func proposalOf(v *view.View, named map[string]bool) *logv1.Propose {
	p := &logv1.Propose{Namespaces: slices.Sorted(maps.Keys(named))}
	for _, ns := range p.Namespaces {
		for d := range v.OfNamespace(ns) {
			if !d.Operator() {
				p.Puts = append(p.Puts, &logv1.Put{Key: logKey(d.Key()), Document: spec.Canonical(d)})
			}
		}
	}
	slices.SortFunc(p.Puts, func(a, b *logv1.Put) int { return view.KeyOf(a.Key).Compare(view.KeyOf(b.Key)) })
	return p
}

// taken are the problems of keys that files may not use now.
func taken(st *state.State, old *view.View, docs []*spec.Document, now time.Time) spec.Problems {
	var out spec.Problems
	for _, d := range docs {
		before, there := old.Document(d.Key())
		if there && heldByOperator(before, now) {
			out = append(out, problemAt(d, "metadata.name", codeOperatorBlock,
				fmt.Sprintf("%s was written by an operator and is in force", d.Key()), "lift it by `ztctl unblock`, or choose another name"))
		}
		if until, ok := st.Retired(d.Ref().String()); ok && !there && d.GetKind() == spec.KindWorkload && until.After(now) {
			out = append(out, problemAt(d, "metadata.name", codeRetired,
				fmt.Sprintf("the name %s was deleted; a certificate of it may live until %s", d.Ref(), until.UTC().Format(time.RFC3339)),
				"choose another name, or apply it after that"))
		}
	}
	return out
}

// problemAt is a problem of a document at a path.
func problemAt(d *spec.Document, path, code, message, hint string) spec.Problem {
	p := spec.Problem{Code: code, Path: path, Message: message, Hint: hint}
	p.File, p.Line, p.Column = d.At(path)
	return p
}

// heldByOperator tells whether a document is a Block that Block wrote and that has
// not ended: no file touches it.
func heldByOperator(d *spec.Document, now time.Time) bool {
	until := d.GetBlock().GetUntil()
	return d.Operator() && (until == nil || until.AsTime().After(now))
}

// merged are the documents of a view, with those that came from files standing
// in for their stored twins, so that problems name the place in the file.
func merged(v *view.View, fromFiles []*spec.Document) []*spec.Document {
	placed := make(map[spec.Key]*spec.Document, len(fromFiles))
	for _, d := range fromFiles {
		placed[d.Key()] = d
	}
	all := v.Documents()
	for i, d := range all {
		if f, ok := placed[d.Key()]; ok {
			all[i] = f
		}
	}
	return all
}

// diff is what a draft changes: it is the whole truth for every namespace that it
// names, unless it is merged in.
func diff(st *state.State, old *view.View, d draft, now time.Time) (puts []put, deletes []spec.Key) {
	wanted := make(map[spec.Key]bool, len(d.docs))
	for i, doc := range d.docs {
		k := doc.Key()
		wanted[k] = true
		if !stands(st, old, k, d.canonical[i]) {
			puts = append(puts, put{doc, d.canonical[i]})
		}
	}
	if !d.merge {
		for ns := range d.named {
			for doc := range old.OfNamespace(ns) {
				if k := doc.Key(); !wanted[k] && !heldByOperator(doc, now) {
					deletes = append(deletes, k)
				}
			}
		}
	}
	slices.SortFunc(puts, func(a, b put) int { return a.Key().Compare(b.Key()) })
	slices.SortFunc(deletes, spec.Key.Compare)
	return puts, deletes
}

// stands tells whether a document is stored as it is now. Another version may have
// written other bytes of the same.
func stands(st *state.State, old *view.View, k spec.Key, canonical []byte) bool {
	stored, ok := st.Document(state.Key(k))
	if !ok || bytes.Equal(stored.Bytes, canonical) {
		return ok
	}
	before, ok := old.Document(k)
	return ok && bytes.Equal(spec.Canonical(before), canonical)
}
