package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// anchorEvery is how often a server tells the cluster how far its issuance journal
// is, if it has moved.
const anchorEvery = time.Minute

// audited is what is on record on this server, as the API sees it.
type audited struct {
	*store.Store
	journal *identity.Journal
}

func (a audited) Kept() (letGo uint64, missing []*ztv1.AuditRange) {
	_, anchor := a.AuditHeads()
	for _, h := range a.AuditHoles() {
		missing = append(missing, &ztv1.AuditRange{First: h.First, Last: h.Last})
	}
	return anchor.Sequence, missing
}

func (a audited) Journal(f func([]byte) error) error { return a.journal.Each(f) }

// fillAudit asks the other servers for audit records that are missing here, until
// ctx ends. What they send is believed only if the chain leads through it.
func fillAudit(ctx context.Context, s *store.Store, others *cluster, log *slog.Logger) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		for _, hole := range s.AuditHoles() {
			for id, address := range others.addresses() {
				conn, err := others.conn(address)
				if err == nil {
					err = fillFrom(ctx, s, conn, &ztv1.FetchAuditRequest{First: hole.First, Last: hole.Last})
				}
				if err == nil {
					log.Info("audit records fetched", "first", hole.First, "last", hole.Last, "server", id)
					break
				}
				log.Debug("audit records not fetched", "first", hole.First, "last", hole.Last, "server", id, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func fillFrom(ctx context.Context, s *store.Store, conn grpc.ClientConnInterface, req *ztv1.FetchAuditRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	stream, err := ztv1.NewPeerServiceClient(conn).FetchAudit(ctx, req)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	var batch [][]byte
	return s.FillAudit(store.AuditRange{First: req.First, Last: req.Last}, first.LetGo, func() ([]byte, error) {
		for len(batch) == 0 {
			resp, err := stream.Recv()
			if err != nil {
				return nil, err // io.EOF at the end
			}
			batch = resp.Records
		}
		b := batch[0]
		batch = batch[1:]
		return b, nil
	})
}

// checkJournal holds this server's issuance journal to what the cluster remembers of
// it, whenever that may be news. One that was cut or rewritten signs nothing more.
func (s *Server) checkJournal(ctx context.Context, agreedOn *store.Store) error {
	return agreedOn.Watch(ctx, func(st *state.State, changed state.Changes) error {
		anchor, ok := st.Anchor(s.id)
		if !changed.Journals || !ok {
			return nil
		}
		_ = s.leadsThrough(anchor) // it has said so, and signs nothing more
		return nil
	})
}

// leadsThrough holds the issuance journal to an anchor; nil is the start. What does
// not hold ends all signing.
func (s *Server) leadsThrough(anchor *logv1.JournalAnchor) error {
	err := s.journal.LeadsThrough(identity.Head{Lines: anchor.GetLines(), Hash: anchor.GetHash()})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("the issuance journal does not lead through its anchor of %v, so this server signs nothing more: %w", anchor.GetWhen().AsTime(), err)
	s.journal.Refuse(err)
	s.cfg.Logger.Error("issuance journal refused; find out who changed it, then remove this server and join it anew", "error", err)
	return err
}

// anchorJournal tells the cluster how far this server's issuance journal is.
func (s *Server) anchorJournal(ctx context.Context, door *api.Server, agreedOn *store.Store) error {
	every := s.cfg.AnchorEvery
	if every == 0 {
		every = anchorEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := s.anchorOnce(ctx, door, agreedOn); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("issuance journal not anchored", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s *Server) anchorOnce(ctx context.Context, door *api.Server, agreedOn *store.Store) error {
	head, err := s.journal.Durable()
	if err != nil || head.Lines == 0 {
		return err
	}
	a, _ := agreedOn.State().Anchor(s.id)
	if a.GetLines() == head.Lines && a.GetHash() == head.Hash {
		return nil
	}
	// The state takes it only if this is still the last anchor.
	if err := s.leadsThrough(a); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return door.AnchorSelf(ctx, &ztv1.AnchorJournalRequest{
		Lines: head.Lines, Hash: head.Hash, AfterLines: a.GetLines(), AfterHash: a.GetHash(),
	})
}
