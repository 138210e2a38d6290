package api

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane/view"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Rollback is AdminService.Rollback: an apply of documents as they were.
func (s *Server) Rollback(ctx context.Context, req *ztv1.RollbackRequest) (*ztv1.RollbackResponse, error) {
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	changed, err := changedSince(st, req.Revision)
	if err != nil {
		if _, retry := st.Outcome(req.IdempotencyKey); req.IdempotencyKey == "" || !retry {
			return nil, err
		}
		changed = map[string]bool{} // what it came to is known, whatever is kept by now
	}
	named := changed
	if len(req.Namespaces) > 0 {
		named = map[string]bool{}
		for _, ns := range req.Namespaces {
			named[ns] = true
		}
	} else if err := s.mayRollBack(ctx, st, changed); err != nil {
		return nil, err
	}
	bases := maps.Clone(req.Bases)
	for ns := range named {
		if _, seen := bases[ns]; len(bases) > 0 && !seen {
			bases[ns] = 0 // it has changed after the caller saw what would be rolled back
		}
	}
	message := req.Message
	if message == "" {
		message = fmt.Sprintf("rollback to revision %d", req.Revision)
	}
	resp, err := s.change(ctx, wish{
		named: named, bases: bases, message: message, dryRun: req.DryRun,
		key: req.IdempotencyKey, detail: req.Detail,
		// Which namespaces have changed since is not what was asked for: by a retry it
		// may be more of them.
		hash: operationHash(callOf(ctx).principal, &ztv1.RollbackRequest{
			Revision: req.Revision, Namespaces: req.Namespaces, Message: req.Message,
		}),
		plan: func(st *state.State) (*plan, error) { return s.planRollback(st, req.Revision, named) },
	})
	if err != nil {
		return nil, err
	}
	return &ztv1.RollbackResponse{
		Revision: resp.Revision, Changes: resp.Changes, Affected: resp.Affected, Bases: resp.Bases, Warnings: resp.Warnings,
	}, nil
}

// mayRollBack tells an editor of some of the namespaces how to roll these back.
func (s *Server) mayRollBack(ctx context.Context, st *state.State, changed map[string]bool) error {
	for _, ns := range slices.Sorted(maps.Keys(changed)) {
		if err := s.may(ctx, st, ns); err != nil {
			return refuse(codes.PermissionDenied, "namespace %s has changed since, too, and is not yours to change; name the namespaces to roll back", ns)
		}
	}
	return nil
}

// changedSince are the namespaces whose documents have changed after a revision. It
// must be one that is kept, with everything that came after it.
func changedSince(st *state.State, revision uint64) (map[string]bool, error) {
	if _, kept := revisionAt(st, revision); !kept {
		return nil, noRevision(st, revision)
	}
	out := map[string]bool{}
	for r := range st.Revisions(0) {
		if r.Revision <= revision {
			break
		}
		for _, c := range r.Changes {
			out[c.GetKey().GetNamespace()] = true
		}
	}
	return out, nil
}

// noRevision says why a revision cannot be looked at.
func noRevision(st *state.State, revision uint64) error {
	oldest := st.Revision()
	for r := range st.Revisions(0) {
		oldest = r.Revision
	}
	if revision < oldest {
		return refuse(codes.OutOfRange, "revision %d is no longer kept: the oldest is %d; apply the files as they were then, or restore a backup", revision, oldest)
	}
	return refuse(codes.NotFound, "there is no revision %d; see ztctl history", revision)
}

// planRollback is planFiles of the documents of namespaces as they were at a
// revision: what came after it is undone, the newest first.
func (s *Server) planRollback(st *state.State, revision uint64, named map[string]bool) (*plan, error) {
	then, err := s.viewAt(st, revision)
	if err != nil {
		return nil, err
	}
	d := draft{named: named}
	for _, ns := range slices.Sorted(maps.Keys(named)) {
		for doc := range then.OfNamespace(ns) {
			if !doc.Operator() {
				d.docs = append(d.docs, doc)
			}
		}
	}
	d.canonical = canonicalOf(d.docs)
	return s.planFiles(st, d)
}

// viewAt is the documents as they were at a revision.
func (s *Server) viewAt(st *state.State, revision uint64) (*view.View, error) {
	at, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	for r := range st.Revisions(0) {
		if r.Revision == revision {
			return at, nil
		}
		if r.Revision < revision {
			break
		}
		if at, err = at.Undo(r); err != nil {
			return nil, err
		}
	}
	return nil, noRevision(st, revision)
}
