package api

import (
	"bytes"
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// once is what makes a call take effect at most once, however often it is made. The
// zero value is that of a call without a key.
type once struct {
	key  string
	hash []byte // operationHash of what the caller asks for
}

// keyed is the once of a request, which says everything about what it asks for.
func keyed(ctx context.Context, req proto.Message, key string) once {
	if key == "" {
		return once{}
	}
	asked := proto.Clone(req).ProtoReflect()
	asked.Clear(asked.Descriptor().Fields().ByName("idempotency_key"))
	return once{key, operationHash(callOf(ctx).principal, asked.Interface())}
}

// replayed tells whether the call has had its effect before: it is answered as it was
// then. The handler asks before it looks for what the call has removed.
func (s *Server) replayed(ctx context.Context, w once) (bool, error) {
	if w.key == "" {
		return false, nil
	}
	if err := s.cfg.Log.Barrier(ctx); err != nil {
		return false, err
	}
	o, known := s.cfg.Log.State().Outcome(w.key)
	if known && !bytes.Equal(o.OperationHash, w.hash) {
		return false, state.ErrKeyReused
	}
	return known, nil
}

// proposeOnce is propose for a call that is to take effect at most once.
func (s *Server) proposeOnce(ctx context.Context, w once, e *logv1.Entry) (state.Result, error) {
	e.IdempotencyKey, e.OperationHash = w.key, w.hash
	return s.propose(ctx, e)
}

// unknown is ErrUnknown with the key by which the caller can ask again.
type unknown struct {
	key string
	err error
}

func (u *unknown) Error() string { return u.err.Error() }
func (u *unknown) Unwrap() error { return u.err }

// withKey adds the key of a request to an error that leaves its outcome open.
func withKey(req any, err error) error {
	if !errors.Is(err, ErrUnknown) {
		return err
	}
	k, _ := req.(interface{ GetIdempotencyKey() string })
	if k == nil {
		return &unknown{err: err}
	}
	return &unknown{k.GetIdempotencyKey(), err}
}

// readAged is read, and how old the answer may be if the caller asked for a stale
// one; nil otherwise.
func (s *Server) readAged(ctx context.Context, stale bool) (*state.State, *ztv1.Staleness, error) {
	// Before the state: what was heard by then is in it, or about to be.
	heard := s.cfg.Log.HeardLeader()
	st, err := s.read(ctx, stale)
	if err != nil || !stale {
		return st, nil, err
	}
	age := &ztv1.Staleness{Server: s.cfg.ServerID, Revision: st.Revision()}
	if !heard.IsZero() {
		age.Age = durationpb.New(max(s.cfg.Now().Sub(heard), 0))
	}
	return st, age, nil
}
