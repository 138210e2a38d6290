package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/journal"
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

func (a audited) Journal(begin func(uint64, string) error, line func([]byte) error) error {
	return a.journal.Each(func(h journal.Head) error { return begin(h.Lines, h.Hash) }, line)
}

func (a audited) JournalRefused() error { return a.journal.Refused() }

// refused is what was refused on this server, as the API sees it.
type refused struct{ *refusals.Log }

func (r refused) Refused(who, method, from string, code codes.Code, reason string) {
	r.Add(refusals.Refusal{Who: who, What: method, From: from, Code: code.String(), Reason: reason})
}

func (r refused) ReadRefusals(begin func(uint64, string) error, line func([]byte) error) error {
	r.Flush()
	return r.Each(func(h journal.Head) error { return begin(h.Lines, h.Hash) }, line)
}

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

// errAnchorBehind is why nothing is signed while this server may only have to catch up:
// its journal has let go of more than the anchor that it knows allows.
var errAnchorBehind = errors.New("the issuance journal has let go of more lines than were to go, as far as this server knows")

// checkJournal holds this server's issuance journal to what the cluster remembers of
// it, whenever that may be news. One that was cut or rewritten signs nothing more,
// until an admin accepts it. What the cluster knows to be let go of, goes.
func (s *Server) checkJournal(ctx context.Context, agreedOn *store.Store) error {
	return agreedOn.Watch(ctx, func(st *state.State, changed state.Changes) error {
		anchor, ok := st.Anchor(s.id)
		if !changed.Journals || !ok {
			return nil
		}
		if err := s.leadsThrough(anchor); err == nil {
			if err := s.journal.LetGo(anchor.GetLetGo()); err != nil {
				return fmt.Errorf("issuance journal: %w", err)
			}
		}
		if anchor.GetAccepted() {
			select {
			case s.accepted <- struct{}{}:
			default:
			}
		}
		return nil
	})
}

// leadsThrough holds the issuance journal to an anchor; nil is the start. Nothing is
// signed while it does not hold.
func (s *Server) leadsThrough(anchor *logv1.JournalAnchor) error {
	err := s.journal.LeadsThrough(identity.Head{Lines: anchor.GetLines(), Hash: anchor.GetHash()})
	if errors.Is(err, journal.ErrLetGo) || err == nil && s.journal.LetGoOf().Lines > anchor.GetLetGo() {
		err = errAnchorBehind
	}
	if err != nil {
		err = fmt.Errorf("the issuance journal does not lead through its anchor of %v, so this server signs nothing: %w", anchor.GetWhen().AsTime(), err)
	}
	was := s.journal.Refused()
	s.journal.Refuse(err)
	switch {
	case err != nil && was == nil:
		s.cfg.Logger.Error("issuance journal refused; find out who changed it, then accept that, or remove this server and join it anew", "error", err)
	case err == nil && was != nil:
		s.cfg.Logger.Info("issuance journal taken; this server signs again")
	}
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
		case <-s.accepted:
		}
	}
}

func (s *Server) anchorOnce(ctx context.Context, door *api.Server, agreedOn *store.Store) error {
	head, err := s.journal.Durable()
	if err != nil || head.Lines == 0 {
		return err
	}
	a, _ := agreedOn.State().Anchor(s.id)
	// Only lines that the cluster has an anchor after: what is left goes on from there.
	keep := s.cfg.Issuance.withDefaults()
	letGo := min(s.journal.Spare(keep.MaxBytes, keep.MaxAge, s.cfg.Now()), a.GetLines())
	if a.GetLines() == head.Lines && a.GetHash() == head.Hash && letGo <= a.GetLetGo() && !a.GetAccepted() {
		return nil
	}
	// The state takes it only if this is still the last anchor, or one was accepted.
	cut := s.leadsThrough(a)
	if cut != nil && !a.GetAccepted() {
		return cut
	}
	req := &ztv1.AnchorJournalRequest{Lines: head.Lines, Hash: head.Hash, AfterLines: a.GetLines(), AfterHash: a.GetHash(), LetGo: letGo}
	if cut != nil {
		req.Accept, req.LetGo = true, s.journal.LetGoOf().Lines
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return door.AnchorSelf(ctx, req)
}

// Issuance says how much of the issuance journal is kept. Zero values stand for the
// defaults. Lines go in whole segments, after they were anchored, and the audit log has
// on record up to where.
type Issuance struct {
	// SegmentBytes is the size above which a segment is ended. Default 16 MiB.
	SegmentBytes int64
	// MaxBytes is how much is kept. Default 1 GiB.
	MaxBytes int64
	// MaxAge is how long a segment is kept after its end. Default: for ever.
	MaxAge time.Duration
}

func (i Issuance) withDefaults() Issuance {
	if i.MaxBytes == 0 {
		i.MaxBytes = 1 << 30
	}
	return i
}
