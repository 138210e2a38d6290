package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Apply is AdminService.Apply.
func (s *Server) Apply(ctx context.Context, req *ztv1.ApplyRequest) (*ztv1.ApplyResponse, error) {
	files := make([]spec.File, 0, len(req.Files))
	for _, f := range req.Files {
		files = append(files, spec.File{Name: f.GetName(), Content: f.GetContent()})
	}
	docs, unread := spec.Parse(files)
	named := map[string]bool{}
	for _, d := range docs {
		named[d.Key().Namespace] = true
	}
	if err := s.mayAll(ctx, s.cfg.Log.State(), named); err != nil {
		return nil, err
	}

	// One applier at a time: each validates against what the one before made.
	select {
	case <-s.applier:
		defer func() { s.applier <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	hash := operationHash(callOf(ctx).principal, req)
	for {
		if err := s.cfg.Log.Barrier(ctx); err != nil {
			return nil, err
		}
		st := s.cfg.Log.State()
		if err := s.mayAll(ctx, st, named); err != nil {
			return nil, err
		}
		if resp, err := s.replay(st, req.IdempotencyKey, hash, named); resp != nil || err != nil {
			return resp, err
		}
		if err := checkBases(st, req.Bases); err != nil {
			return nil, err
		}
		p, err := s.plan(st, docs, unread, named, req.Merge)
		if err != nil {
			return nil, err
		}
		if req.DryRun || len(p.changes) == 0 {
			return p.response(st), nil
		}
		result, err := s.propose(ctx, &logv1.Entry{
			IdempotencyKey: req.IdempotencyKey,
			OperationHash:  hash,
			Op: &logv1.Entry_Apply{Apply: &logv1.Apply{
				Bases: req.Bases, ValidatedAt: st.Revision(), Puts: p.puts, Deletes: p.deletes, Message: req.Message,
			}},
		})
		if errors.Is(err, state.ErrRevalidate) {
			continue // an entry of an earlier leader came in between
		}
		if err != nil {
			return nil, err
		}
		if result.Replayed {
			continue // the same apply, by an earlier leader, came in between
		}
		s.metrics.applies.Inc()
		resp := p.response(s.cfg.Log.State())
		resp.Revision = result.Revision
		return resp, nil
	}
}

func (s *Server) mayAll(ctx context.Context, st *state.State, namespaces map[string]bool) error {
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		if err := s.may(ctx, st, ns); err != nil {
			return err
		}
	}
	return nil
}

// operationHash is over who asked for what, not over what it comes to: a retry may
// come to other puts. The bases are left out, so that a retry may name new ones.
func operationHash(who Principal, req *ztv1.ApplyRequest) []byte {
	r := &ztv1.ApplyRequest{Files: req.Files, Merge: req.Merge, Message: req.Message}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		panic(err) // a message that was just unmarshalled
	}
	h := sha256.Sum256(append([]byte(who.String()+"\x00"), b...))
	return h[:]
}

// replay answers a retry of an apply that has taken effect.
func (s *Server) replay(st *state.State, key string, hash []byte, named map[string]bool) (*ztv1.ApplyResponse, error) {
	if key == "" {
		return nil, nil
	}
	outcome, known := st.Outcome(key)
	if !known {
		return nil, nil
	}
	if !bytes.Equal(outcome.OperationHash, hash) {
		return nil, state.ErrKeyReused
	}
	resp := &ztv1.ApplyResponse{Revision: outcome.Revision, Bases: bases(st, named)}
	r, kept := revisionAt(st, outcome.Revision)
	if !kept {
		return resp, nil
	}
	var err error
	if resp.Changes, err = changesOf(r); err != nil {
		return nil, err
	}
	resp.Affected, err = s.affected(st, outcome.Revision)
	return resp, err
}

// checkBases is what the state machine checks again: the client saw the newest
// revision of each namespace that it names.
func checkBases(st *state.State, bases map[string]uint64) error {
	for ns, base := range bases {
		if st.NamespaceRevision(ns) == base {
			continue
		}
		stale := &state.StaleBaseError{Current: make(map[string]uint64, len(bases))}
		for ns := range bases {
			stale.Current[ns] = st.NamespaceRevision(ns)
		}
		return stale
	}
	return nil
}

func revisionAt(st *state.State, revision uint64) (*logv1.Revision, bool) {
	for r := range st.Revisions(revision + 1) {
		return r, r.Revision == revision
	}
	return nil, false
}

// plan is what an apply would do to a state. The state is known to be valid
// with it.
type plan struct {
	puts     []*logv1.Put
	deletes  []*logv1.Key
	changes  []*ztv1.Change
	named    map[string]bool
	affected []*ztv1.InstanceRef
}

func (p *plan) response(st *state.State) *ztv1.ApplyResponse {
	return &ztv1.ApplyResponse{
		Revision: st.Revision(), Changes: p.changes, Affected: p.affected, Bases: bases(st, p.named),
	}
}

func bases(st *state.State, named map[string]bool) map[string]uint64 {
	out := make(map[string]uint64, len(named))
	for ns := range named {
		out[ns] = st.NamespaceRevision(ns)
	}
	return out
}

// plan validates the files against a state, as a whole: references, tests, and
// a dry run of the compiler for every workload that the change touches. unread
// are the problems of reading the files.
func (s *Server) plan(st *state.State, docs []*spec.Document, unread spec.Problems, named map[string]bool, merge bool) (*plan, error) {
	old, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	puts, deletes := diff(old, docs, named, merge)
	next := old.With(puts, deletes)
	if problems := spec.Join(unread, spec.Check(merged(next, docs), st.TrustDomain())); len(problems) > 0 {
		return nil, invalid(problems)
	}
	if problems := policy.TestProblems(policy.RunTests(next.Index, merged(next, docs))); len(problems) > 0 {
		return nil, invalid(problems)
	}
	p := &plan{named: named}
	changed := make([]spec.Key, 0, len(puts)+len(deletes))
	for _, d := range puts {
		k := d.Key()
		changed = append(changed, k)
		p.puts = append(p.puts, &logv1.Put{Key: logKey(k), Document: spec.Canonical(d)})
		before, _ := old.Document(k)
		p.changes = append(p.changes, change(k, before, d))
	}
	for _, k := range deletes {
		changed = append(changed, k)
		p.deletes = append(p.deletes, logKey(k))
		before, _ := old.Document(k)
		p.changes = append(p.changes, change(k, before, nil))
	}
	refs, err := view.Affected(old, next, changed)
	var failed *view.CompileError
	if errors.As(err, &failed) {
		return nil, invalid(spec.Problems{failed.Problem()})
	}
	if err != nil {
		return nil, err
	}
	p.affected = instancesOf(st, refs)
	return p, nil
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

// diff is what the files change: the files are the whole truth for every
// namespace that they name, unless they are merged in.
func diff(old *view.View, docs []*spec.Document, named map[string]bool, merge bool) (puts []*spec.Document, deletes []spec.Key) {
	wanted := make(map[spec.Key]bool, len(docs))
	for _, d := range docs {
		k := d.Key()
		wanted[k] = true
		before, ok := old.Document(k)
		if !ok || string(spec.Canonical(before)) != string(spec.Canonical(d)) {
			puts = append(puts, d)
		}
	}
	if !merge {
		for _, d := range old.Documents() {
			if k := d.Key(); named[k.Namespace] && !wanted[k] {
				deletes = append(deletes, k)
			}
		}
	}
	slices.SortFunc(puts, func(a, b *spec.Document) int { return a.Key().Compare(b.Key()) })
	slices.SortFunc(deletes, spec.Key.Compare)
	return puts, deletes
}

func logKey(k spec.Key) *logv1.Key {
	return &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

// change shows one document before and after; nil is not there.
func change(k spec.Key, before, after *spec.Document) *ztv1.Change {
	c := &ztv1.Change{Action: "change", Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
	if before != nil {
		c.Before = spec.YAML(before)
	} else {
		c.Action = "add"
	}
	if after != nil {
		c.After = spec.YAML(after)
	} else {
		c.Action = "remove"
	}
	return c
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

// affected are the instances whose configuration a past revision changed: the
// documents as they were are made again by undoing what came after.
func (s *Server) affected(st *state.State, revision uint64) ([]*ztv1.InstanceRef, error) {
	at, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	for r := range st.Revisions(0) {
		before, err := at.Undo(r)
		if err != nil {
			return nil, err
		}
		if r.Revision != revision {
			at = before
			continue
		}
		changed := make([]spec.Key, 0, len(r.Changes))
		for _, c := range r.Changes {
			changed = append(changed, view.KeyOf(c.Key))
		}
		refs, err := view.Affected(before, at, changed)
		if err != nil {
			return nil, err
		}
		return instancesOf(st, refs), nil
	}
	return nil, refuse(codes.NotFound, "revision %d is not one of those that are kept", revision)
}
