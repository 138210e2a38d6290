package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// wish is a change of documents that somebody asks for.
type wish struct {
	named   map[string]bool   // the namespaces whose documents it is about
	bases   map[string]uint64 // as in ApplyRequest
	key     string            // of idempotency
	hash    []byte            // operationHash
	message string
	dryRun  bool
	// plan finds out what the wish comes to. It is asked again when the state
	// has moved on.
	plan func(*state.State) (*plan, error)
}

// change makes a wish come true, or says why not. Each is judged, rights
// included, by what the one before has made: there is one applier at a time.
func (s *Server) change(ctx context.Context, w wish) (*ztv1.ApplyResponse, error) {
	if err := s.mayAll(ctx, s.cfg.Log.State(), w.named); err != nil {
		return nil, err
	}
	select {
	case <-s.applier:
		defer func() { s.applier <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		if err := s.cfg.Log.Barrier(ctx); err != nil {
			return nil, err
		}
		st := s.cfg.Log.State()
		if err := s.mayAll(ctx, st, w.named); err != nil {
			return nil, err
		}
		if resp, err := s.replay(ctx, st, w); resp != nil || err != nil {
			return resp, err
		}
		if err := checkBases(st, w.bases); err != nil {
			return nil, err
		}
		p, err := w.plan(st)
		if err != nil {
			return nil, err
		}
		if w.dryRun || p.empty() {
			return p.response(st, w.named), nil
		}
		failpoint.Hit("api.apply.planned")
		result, err := s.propose(ctx, p.entry(st, w))
		if errors.Is(err, state.ErrRevalidate) {
			continue // an entry of an earlier leader came in between
		}
		if err != nil {
			return nil, err
		}
		if result.Replayed {
			continue // the same wish, by an earlier leader, came in between
		}
		failpoint.Hit("api.apply.committed")
		if result.Revision > st.Revision() {
			s.metrics.applies.Inc()
		}
		resp := p.response(s.cfg.Log.State(), w.named)
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
// come to other puts. What a retry may say anew is left out of req by the caller.
func operationHash(who Principal, req proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		panic(err) // a message that was just unmarshalled
	}
	prefix := who.String() + "\x00" + string(req.ProtoReflect().Descriptor().FullName()) + "\x00"
	h := sha256.Sum256(append([]byte(prefix), b...))
	return h[:]
}

// replay answers a retry of what has taken effect.
func (s *Server) replay(ctx context.Context, st *state.State, w wish) (*ztv1.ApplyResponse, error) {
	if w.key == "" {
		return nil, nil
	}
	outcome, known := st.Outcome(w.key)
	if !known {
		return nil, nil
	}
	if !bytes.Equal(outcome.OperationHash, w.hash) {
		return nil, state.ErrKeyReused
	}
	resp := &ztv1.ApplyResponse{Revision: outcome.Revision, Bases: bases(st, w.named)}
	r, kept := revisionAt(st, outcome.Revision)
	if !kept || r.Who != callOf(ctx).principal.String() || !proto.Equal(r.When, outcome.When) {
		return resp, nil // no longer kept; or it changed no document, and the revision is another's
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

func bases(st *state.State, named map[string]bool) map[string]uint64 {
	out := make(map[string]uint64, len(named))
	for ns := range named {
		out[ns] = st.NamespaceRevision(ns)
	}
	return out
}
