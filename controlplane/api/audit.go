package api

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// maxAuditScan is how many records one page looks at.
const maxAuditScan = 20_000

// auditBatch is how many records, or lines, travel in one message.
const auditBatch = 256

// ListAudit is AdminService.ListAudit.
func (s *Server) ListAudit(ctx context.Context, req *ztv1.ListAuditRequest) (*ztv1.ListAuditResponse, error) {
	if _, err := s.read(ctx, false); err != nil {
		return nil, err
	}
	size := int(req.PageSize)
	if size == 0 {
		size = 20
	}
	resp, seen := &ztv1.ListAuditResponse{}, 0
	err := s.cfg.Audit.ReadAuditBack(req.Before, func(a *state.Audit) bool {
		r := a.Record
		switch {
		case req.Since != nil && r.When.AsTime().Before(req.Since.AsTime()), r.Revision < req.Revision:
			resp.NextBefore = 0
			return false
		case matches(r, req):
			resp.Records = append(resp.Records, r)
		}
		seen++
		resp.NextBefore = r.Sequence
		return len(resp.Records) < min(size, 1000) && seen < maxAuditScan
	})
	if err != nil {
		return nil, refuse(codes.DataLoss, "%s", err)
	}
	if resp.NextBefore == 1 {
		resp.NextBefore = 0
	}
	return resp, nil
}

func matches(r *logv1.AuditRecord, req *ztv1.ListAuditRequest) bool {
	return strings.Contains(r.Who, req.Who) && strings.Contains(r.Method, req.Method) &&
		(req.Namespace == "" || slices.Contains(r.Namespaces, req.Namespace)) &&
		(req.Revision == 0 || r.Revision == req.Revision && r.Index == req.Revision)
}

// ReadAudit is AdminService.ReadAudit.
func (s *Server) ReadAudit(req *ztv1.ReadAuditRequest, stream ztv1.AdminService_ReadAuditServer) error {
	st := s.cfg.Log.State()
	sequence, hash := st.AuditHead()
	letGo, missing := s.cfg.Audit.Kept()
	if err := stream.Send(&ztv1.ReadAuditResponse{Status: &ztv1.AuditStatus{
		Server: s.cfg.ServerID, TrustDomain: st.TrustDomain(), LetGo: letGo, Missing: missing,
		Head: &logv1.AuditHead{Sequence: sequence, Hash: hash},
	}}); err != nil {
		return err
	}
	if req.Follow {
		return s.cfg.Audit.WatchAudit(stream.Context(), req.From, func(a *state.Audit) error {
			return stream.Send(&ztv1.ReadAuditResponse{Records: [][]byte{a.Bytes}})
		})
	}
	return sendRecords(s.cfg.Audit, req.From, sequence, func(records [][]byte) error {
		return stream.Send(&ztv1.ReadAuditResponse{Records: records})
	})
}

// sendRecords sends the records of a range that are here.
func sendRecords(log Audit, first, last uint64, send func([][]byte) error) error {
	var batch [][]byte
	err := log.ReadAudit(first, func(a *state.Audit) error {
		if a.Record.Sequence > last {
			return errDone
		}
		if batch = append(batch, a.Bytes); len(batch) < auditBatch {
			return nil
		}
		full := batch
		batch = nil
		return send(full)
	})
	sendErr := error(nil)
	if len(batch) > 0 {
		sendErr = send(batch) // also before an error: it is about what comes after them
	}
	if err = ignoreDone(err); err != nil {
		return refuse(codes.DataLoss, "%s", err)
	}
	return sendErr
}

// FetchAudit is PeerService.FetchAudit.
func (s *Server) FetchAudit(req *ztv1.FetchAuditRequest, stream ztv1.PeerService_FetchAuditServer) error {
	letGo, _ := s.cfg.Audit.Kept()
	if err := stream.Send(&ztv1.FetchAuditResponse{LetGo: letGo}); err != nil {
		return err
	}
	return sendRecords(s.cfg.Audit, req.First, req.Last, func(records [][]byte) error {
		return stream.Send(&ztv1.FetchAuditResponse{Records: records})
	})
}

// ReadJournal is AdminService.ReadJournal.
func (s *Server) ReadJournal(_ *ztv1.ReadJournalRequest, stream ztv1.AdminService_ReadJournalServer) error {
	anchor, _ := s.cfg.Log.State().Anchor(s.cfg.ServerID)
	if anchor == nil {
		anchor = &logv1.JournalAnchor{Server: s.cfg.ServerID}
	}
	first := &ztv1.ReadJournalResponse{Anchor: anchor}
	if err := s.cfg.Audit.JournalRefused(); err != nil {
		first.Refused = err.Error()
	}
	lines := batches(func(lines [][]byte) error { return stream.Send(&ztv1.ReadJournalResponse{Lines: lines}) })
	return lines.end(s.cfg.Audit.Journal(func(letGo uint64, hash string) error {
		first.LetGo, first.LetGoHash = letGo, hash
		return stream.Send(first)
	}, lines.add))
}

// ReadRefusals is AdminService.ReadRefusals.
func (s *Server) ReadRefusals(_ *ztv1.ReadRefusalsRequest, stream ztv1.AdminService_ReadRefusalsServer) error {
	lines := batches(func(lines [][]byte) error { return stream.Send(&ztv1.ReadRefusalsResponse{Lines: lines}) })
	return lines.end(s.cfg.Refusals.ReadRefusals(func(letGo uint64, hash string) error {
		return stream.Send(&ztv1.ReadRefusalsResponse{Server: s.cfg.ServerID, LetGo: letGo, LetGoHash: hash})
	}, lines.add))
}

// batch sends lines, many at a time.
type batch struct {
	send  func([][]byte) error
	lines [][]byte
}

func batches(send func([][]byte) error) *batch { return &batch{send: send} }

func (b *batch) add(line []byte) error {
	if b.lines = append(b.lines, line); len(b.lines) < auditBatch {
		return nil
	}
	full := b.lines
	b.lines = nil
	return b.send(full)
}

// end sends what is left, unless something went wrong.
func (b *batch) end(err error) error {
	if err == nil && len(b.lines) > 0 {
		err = b.send(b.lines)
	}
	return err
}

// AcceptJournal is AdminService.AcceptJournal.
func (s *Server) AcceptJournal(ctx context.Context, req *ztv1.AcceptJournalRequest) (*ztv1.AcceptJournalResponse, error) {
	if err := s.cfg.Cluster.Readable(state.AuditChain); err != nil {
		return nil, err
	}
	if _, ok := s.cfg.Log.State().Anchor(req.Server); !ok {
		if err := s.cfg.Log.Barrier(ctx); err != nil {
			return nil, err
		}
		if _, ok := s.cfg.Log.State().Anchor(req.Server); !ok {
			return nil, refuse(codes.NotFound, "no member %q whose issuance journal was anchored", req.Server)
		}
	}
	_, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_AcceptJournal{AcceptJournal: &logv1.AcceptJournal{Server: req.Server, Reason: req.Reason}}})
	return &ztv1.AcceptJournalResponse{}, err
}

// AnchorJournal is PeerService.AnchorJournal.
func (s *Server) AnchorJournal(ctx context.Context, req *ztv1.AnchorJournalRequest) (*ztv1.AnchorJournalResponse, error) {
	if req.Lines == 0 || req.Hash == "" {
		return nil, refuse(codes.InvalidArgument, "an anchor says how many lines there are, and the hash of the last")
	}
	return &ztv1.AnchorJournalResponse{}, s.anchor(ctx, callOf(ctx).principal.Name, req)
}

// AnchorSelf tells the cluster how far this server's issuance journal is.
func (s *Server) AnchorSelf(ctx context.Context, req *ztv1.AnchorJournalRequest) error {
	if s.cfg.Log.IsLeader() {
		ctx = context.WithValue(ctx, callKey{}, call{
			principal: Principal{Role: RoleServer, Name: s.cfg.ServerID}, method: ztv1.PeerService_AnchorJournal_FullMethodName,
		})
		return s.anchor(ctx, s.cfg.ServerID, req)
	}
	conn, err := s.cfg.Cluster.LeaderConn()
	if err != nil {
		return err
	}
	_, err = ztv1.NewPeerServiceClient(conn).AnchorJournal(ctx, req)
	return err
}

func (s *Server) anchor(ctx context.Context, server string, req *ztv1.AnchorJournalRequest) error {
	_, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_AnchorJournal{AnchorJournal: &logv1.AnchorJournal{
		Server: server, Lines: req.Lines, Hash: req.Hash, AfterLines: req.AfterLines, AfterHash: req.AfterHash,
		LetGo: req.LetGo, Accept: req.Accept,
	}}})
	return err
}
