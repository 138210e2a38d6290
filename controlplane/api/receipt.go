package api

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Of receipts.
const (
	// arrives is how long a revision may take to come to this server.
	arrives = 5 * time.Second
	// agentsReturn is how long an agent that does not speak is waited for: that of a
	// proxy which has just gone to another server follows it.
	agentsReturn = 3 * time.Second
	// receiptPause is how long changes are gathered before a receipt is sent again; nine
	// times as long as it takes to look at the proxies, if that is more, up to receiptRest.
	receiptPause = 50 * time.Millisecond
	receiptRest  = time.Second
	// drains is how much longer than its age a connection may live.
	drains = 5 * time.Minute
	// maxNamed is how many proxies a receipt names, unless all are asked for.
	maxNamed = 100
)

// The states of a proxy in a receipt, and their order.
const (
	stateUnconfirmed = "unconfirmed"
	stateSent        = "sent"
	stateNacked      = "nacked"
	stateAcked       = "acked"
	stateEnforced    = "enforced"
)

var stateOrder = []string{stateNacked, stateUnconfirmed, stateSent, stateAcked, stateEnforced}

// WatchReceipt is AdminService.WatchReceipt. "Applied" means that every proxy which
// the revision affects enforces it or a later one: it has ACKed, and its agent has
// read in its Envoy that this is what it works by. Of one without an agent, the ACK is
// the last word. A proxy that is not connected, or whose server does not answer, is
// unconfirmed.
func (s *Server) WatchReceipt(req *ztv1.WatchReceiptRequest, stream ztv1.AdminService_WatchReceiptServer) error {
	ctx := stream.Context()
	if err := s.waitFor(ctx, req.Revision); err != nil {
		return err
	}
	st := s.cfg.Log.State()
	e, err := s.effectOf(st, req.Revision)
	if err != nil {
		return err
	}
	patience := time.NewTimer(agentsReturn)
	defer patience.Stop()
	var last *ztv1.WatchReceiptResponse
	for patient := true; ; {
		changed := s.cfg.Proxies.Changed() // before the look, so that nothing is missed
		began := time.Now()
		receipt := s.receipt(e, patient, req.All)
		took := time.Since(began)
		if !proto.Equal(last, receipt) {
			if err := stream.Send(receipt); err != nil {
				return err
			}
			last = receipt
		}
		if receipt.Complete {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			patient = false
			continue
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(max(receiptPause, 9*took), receiptRest)):
		}
	}
}

// waitFor returns when this server's state has a revision, which may still come.
func (s *Server) waitFor(ctx context.Context, revision uint64) error {
	soon, cancel := context.WithTimeout(ctx, arrives)
	defer cancel()
	err := s.cfg.Log.Watch(soon, func(st *state.State, _ state.Changes) error {
		if st.Revision() >= revision {
			return errDone
		}
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return refuse(codes.NotFound, "there is no revision %d yet; see ztctl history", revision)
	}
	return ignoreDone(err)
}

// receipt is how far a revision has got. The agents that do not speak are waited for
// if patient.
func (s *Server) receipt(e *effect, patient, all bool) *ztv1.WatchReceiptResponse {
	r := e.revision
	out := &ztv1.WatchReceiptResponse{
		Revision: r.GetRevision(), Who: r.GetWho(), Committed: r.GetWhen(), Unreachable: s.cfg.Proxies.Unreachable(),
		Closed: uint32(len(e.closed)),
	}
	if len(e.closed) > 0 {
		out.NoneOpenAfter = timestamppb.New(e.over)
	}
	st := s.cfg.Log.State()
	var confirmed, open []*ztv1.ProxyReceipt
	for _, i := range e.affected {
		instance, enrolled := st.Instance(i.Instance)
		if !enrolled {
			continue // deregistered meanwhile: it is no longer expected
		}
		p := s.proxyReceipt(r, instance)
		if p.State == stateEnforced || p.State == stateAcked && !p.AwaitsAgent && !(patient && instance.Agent) {
			confirmed = append(confirmed, p)
		} else {
			open = append(open, p)
		}
	}
	out.Complete = len(open) == 0
	named := append(open, confirmed...)
	out.Counts = count(named)
	if len(named) > maxNamed && !all {
		slices.SortStableFunc(open, func(a, b *ztv1.ProxyReceipt) int { return cmp.Compare(urgency(a), urgency(b)) })
		named = open[:min(len(open), maxNamed)]
	}
	slices.SortStableFunc(named, func(a, b *ztv1.ProxyReceipt) int {
		return cmp.Or(
			cmp.Compare(urgency(a), urgency(b)),
			strings.Compare(a.Workload, b.Workload), strings.Compare(a.Instance, b.Instance),
		)
	})
	for _, p := range named {
		s.addCuts(p, e)
	}
	out.Proxies, out.Omitted = named, out.Counts.Affected-uint32(len(named))
	return out
}

// urgency is the place of a proxy's state in stateOrder.
func urgency(p *ztv1.ProxyReceipt) int { return slices.Index(stateOrder, p.State) }

// proxyReceipt is how far an instance is with a revision.
func (s *Server) proxyReceipt(r *logv1.Revision, i *logv1.Instance) *ztv1.ProxyReceipt {
	out := &ztv1.ProxyReceipt{Instance: i.Id, Workload: i.Workload, State: stateUnconfirmed}
	h, newest := s.cfg.Proxies.Of(i.Id)
	if h == nil {
		return out
	}
	out.Server, out.Nacks = h.Proxy.GetServer(), h.Proxy.GetNacks()
	reached := func(p *ztv1.Progress, state string, at **timestamppb.Timestamp) bool {
		if upTo(p, newest) < r.GetRevision() {
			return false
		}
		*at = since(p, r)
		out.State, out.When = state, *at
		return true
	}
	if reached(h.Sent, stateSent, &out.SentAt); len(out.Nacks) > 0 {
		out.State, out.When = stateNacked, out.Nacks[0].GetWhen()
	}
	switch {
	case !reached(h.Acked, stateAcked, &out.AckedAt):
	case reached(h.Enforced, stateEnforced, &out.EnforcedAt):
	default:
		out.AwaitsAgent, out.Differs = h.Proxy.GetAgent(), h.Proxy.GetDiffers()
	}
	return out
}

// since is when something first held for a revision: not before that was made. nil:
// that is forgotten.
func since(p *ztv1.Progress, r *logv1.Revision) *timestamppb.Timestamp {
	for n, span := range p.GetSpans() {
		if span.Until != 0 && span.Until < r.GetRevision() {
			continue
		}
		if span.From.AsTime().Before(r.GetWhen().AsTime()) {
			return r.GetWhen() // it held already
		}
		if n == 0 && p.Forgotten {
			return nil
		}
		return span.From
	}
	return nil
}

func count(all []*ztv1.ProxyReceipt) *ztv1.ReceiptCounts {
	c := &ztv1.ReceiptCounts{Affected: uint32(len(all))}
	for _, p := range all {
		switch p.State {
		case stateUnconfirmed:
			c.Unconfirmed++
		case stateSent:
			c.Sent++
		case stateNacked:
			c.Nacked++
		case stateAcked:
			c.Acked++
		case stateEnforced:
			c.Enforced++
		}
	}
	return c
}

// addReceipts adds to revisions, which are newest first and without a gap, how far
// they have got.
func (s *Server) addReceipts(st *state.State, to []*ztv1.Revision, revisions []*logv1.Revision) error {
	if len(to) == 0 {
		return nil
	}
	at, err := s.viewAt(st, revisions[0].Revision)
	if err != nil {
		return err
	}
	for n, r := range revisions {
		before, err := at.Undo(r)
		if err != nil {
			return err
		}
		e, err := effectBetween(st, before, at, r)
		if err != nil {
			return err
		}
		to[n].Receipt, at = s.receipt(e, false, false).Counts, before
	}
	return nil
}

// addCuts adds the connections that a proxy has cut since a revision, of those whom
// the revision no longer admits.
func (s *Server) addCuts(p *ztv1.ProxyReceipt, e *effect) {
	for _, c := range e.closed {
		if c.Service.String() != p.Workload {
			continue
		}
		if n, last := s.cfg.Proxies.Cuts(p.Instance, c.SourceID, c.Port, e.revision.GetWhen().AsTime()); n > 0 {
			p.Cuts = append(p.Cuts, &ztv1.ConnectionsCut{Caller: c.SourceID, Port: c.Port, Connections: n, LastAt: timestamppb.New(last)})
		}
	}
}
