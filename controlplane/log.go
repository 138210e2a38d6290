package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/api"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// agreed is the store as the API sees it: the same, in the API's own errors.
type agreed struct {
	*store.Store
	clock *clock
}

func (a agreed) Propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	if err := a.clock.check(); err != nil { // it would stamp the entry
		return state.Result{}, err
	}
	r, err := a.Store.Propose(ctx, e)
	return r, storeError(err)
}

func (a agreed) Submit(ctx context.Context, e *logv1.Entry) (api.Submitted, error) {
	p, err := a.Store.Submit(ctx, e)
	if err != nil {
		return nil, storeError(err)
	}
	return submitted{p}, nil
}

// submitted is a proposal with the API's own errors.
type submitted struct{ *store.Proposal }

func (s submitted) Wait(ctx context.Context) (state.Result, error) {
	r, err := s.Proposal.Wait(ctx)
	return r, storeError(err)
}

func (a agreed) Barrier(ctx context.Context) error { return storeError(a.Store.Barrier(ctx)) }

func (a agreed) HeardLeader() time.Time { return a.Store.LastContact() }

func storeError(err error) error {
	switch {
	case errors.Is(err, store.ErrUnknown):
		return fmt.Errorf("%w: %w", api.ErrUnknown, err)
	case errors.Is(err, store.ErrFull):
		return fmt.Errorf("%w: %w", api.ErrFull, err)
	case errors.Is(err, store.ErrTooLarge):
		return fmt.Errorf("%w: %w", api.ErrTooLarge, err)
	case errors.Is(err, store.ErrAudit):
		return fmt.Errorf("%w: %w", api.ErrNotRecorded, err)
	case errors.Is(err, store.ErrNotLeader), errors.Is(err, store.ErrBusy), errors.Is(err, store.ErrClosed):
		return fmt.Errorf("%w: %w", api.ErrNoLeader, err)
	}
	return err
}

var errLeads = errors.New("leads")

// waitLeader returns when this server leads.
func waitLeader(ctx context.Context, s *store.Store) error {
	err := s.WatchLeader(ctx, func(leads bool, _ uint64) error {
		if leads {
			return errLeads
		}
		return nil
	})
	if errors.Is(err, errLeads) {
		return nil
	}
	return err
}
