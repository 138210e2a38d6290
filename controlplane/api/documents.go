package api

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// read is the state that a read may be answered from: linearizable unless the
// caller asked for a stale one.
func (s *Server) read(ctx context.Context, stale bool) (*state.State, error) {
	if !stale {
		if err := s.cfg.Log.Barrier(ctx); err != nil {
			return nil, err
		}
	}
	return s.cfg.Log.State(), nil
}

func stored(d state.Document) (*ztv1.StoredDocument, error) {
	doc := &ztv1.Document{}
	if err := proto.Unmarshal(d.Bytes, doc); err != nil {
		return nil, fmt.Errorf("document %s: %w", d.Key, err)
	}
	return &ztv1.StoredDocument{Document: doc, Revision: d.Revision}, nil
}

// GetDocument is AdminService.GetDocument.
func (s *Server) GetDocument(ctx context.Context, req *ztv1.GetDocumentRequest) (*ztv1.GetDocumentResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	d, ok := st.Document(state.Key{Kind: req.Kind, Namespace: req.Namespace, Name: req.Name})
	if !ok {
		return nil, refuse(codes.NotFound, "no %s %s/%s at revision %d", req.Kind, req.Namespace, req.Name, st.Revision())
	}
	doc, err := stored(d)
	if err != nil {
		return nil, err
	}
	return &ztv1.GetDocumentResponse{Document: doc, Revision: st.Revision(), Staleness: stale}, nil
}

// ListDocuments is AdminService.ListDocuments. A page token names the revision
// and the last key sent. Later pages are only given while that revision is the
// newest: the caller starts again otherwise.
func (s *Server) ListDocuments(ctx context.Context, req *ztv1.ListDocumentsRequest) (*ztv1.ListDocumentsResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	after, err := parsePageToken(req.PageToken, st.Revision())
	if err != nil {
		return nil, err
	}
	size := int(req.PageSize)
	if size == 0 || size > 1000 {
		size = 1000
	}
	resp := &ztv1.ListDocumentsResponse{Revision: st.Revision(), Staleness: stale, Namespaces: map[string]uint64{}}
	for ns, r := range st.Namespaces() {
		resp.Namespaces[ns] = r
	}
	for d := range st.DocumentsAfter(after, req.Kind, req.Namespace) {
		if len(resp.Documents) == size {
			resp.NextPageToken = pageToken(st.Revision(), resp.Documents[size-1].Document)
			break
		}
		doc, err := stored(d)
		if err != nil {
			return nil, err
		}
		resp.Documents = append(resp.Documents, doc)
	}
	return resp, nil
}

func pageToken(revision uint64, last *ztv1.Document) string {
	return fmt.Sprintf("%d:%s:%s:%s", revision, last.Kind, last.Metadata.Namespace, last.Metadata.Name)
}

func parsePageToken(token string, newest uint64) (state.Key, error) {
	if token == "" {
		return state.Key{}, nil
	}
	parts := strings.Split(token, ":")
	if len(parts) != 4 {
		return state.Key{}, refuse(codes.InvalidArgument, "page_token is not one of this API")
	}
	revision, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return state.Key{}, refuse(codes.InvalidArgument, "page_token is not one of this API")
	}
	if revision != newest {
		return state.Key{}, refuse(codes.Aborted, "the list was begun at revision %d, now it is %d; begin again", revision, newest)
	}
	return state.Key{Kind: parts[1], Namespace: parts[2], Name: parts[3]}, nil
}

// ListRevisions is AdminService.ListRevisions.
func (s *Server) ListRevisions(ctx context.Context, req *ztv1.ListRevisionsRequest) (*ztv1.ListRevisionsResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	size := int(req.PageSize)
	if size == 0 {
		size = 20
	}
	most := 1000
	if req.Receipts {
		most = 100
	}
	resp := &ztv1.ListRevisionsResponse{Staleness: stale}
	var listed []*logv1.Revision
	for r := range st.Revisions(req.Before) {
		if len(resp.Revisions) == min(size, most) {
			break
		}
		rev, err := revisionOf(r, req.Detail)
		if err != nil {
			return nil, err
		}
		resp.Revisions, listed = append(resp.Revisions, rev), append(listed, r)
	}
	if req.Receipts {
		return resp, s.addReceipts(st, resp.Revisions, listed)
	}
	return resp, nil
}

func revisionOf(r *logv1.Revision, detail ztv1.Detail) (*ztv1.Revision, error) {
	changes, err := changesOf(r.GetChanges(), detail)
	if err != nil {
		return nil, err
	}
	return &ztv1.Revision{Revision: r.Revision, When: r.When, Who: r.Who, Message: r.Message, Changes: changes}, nil
}

func changesOf(changes []*logv1.Change, detail ztv1.Detail) ([]*ztv1.Change, error) {
	out := make([]*ztv1.Change, 0, len(changes))
	for _, c := range changes {
		k := view.KeyOf(c.GetKey())
		if n := named(k, len(c.GetBefore()) > 0, len(c.GetAfter()) > 0); !shows(detail, n.Action) {
			out = append(out, n)
			continue
		}
		before, err := decodeIfAny(c.GetBefore())
		if err != nil {
			return nil, err
		}
		after, err := decodeIfAny(c.GetAfter())
		if err != nil {
			return nil, err
		}
		out = append(out, change(k, before, after, detail))
	}
	return out, nil
}

func decodeIfAny(b []byte) (*spec.Document, error) {
	if len(b) == 0 {
		return nil, nil
	}
	return spec.Decode(b)
}

// WatchDocuments is AdminService.WatchDocuments: every revision after the given
// one, in order, none left out; where that cannot be kept any more, it ends.
func (s *Server) WatchDocuments(req *ztv1.WatchDocumentsRequest, stream ztv1.AdminService_WatchDocumentsServer) error {
	last := req.FromRevision
	if last == 0 {
		last = s.cfg.Log.State().Revision()
	}
	return s.cfg.Log.Watch(stream.Context(), func(st *state.State, _ state.Changes) error {
		missed, complete := st.RevisionsAfter(last)
		if !complete {
			return refuse(codes.OutOfRange, "the changes after revision %d are no longer kept; list, then watch from the list's revision", last)
		}
		for r := range missed {
			last = r.Revision
			asked := &logv1.Revision{Revision: r.Revision, When: r.When, Who: r.Who, Message: r.Message, Changes: matching(r.Changes, req)}
			if len(asked.Changes) == 0 {
				continue
			}
			rev, err := revisionOf(asked, req.Detail)
			if err != nil {
				return err
			}
			if err := stream.Send(&ztv1.WatchDocumentsResponse{Revision: rev}); err != nil {
				return err
			}
		}
		return nil
	})
}

func matching(changes []*logv1.Change, req *ztv1.WatchDocumentsRequest) []*logv1.Change {
	var out []*logv1.Change
	for _, c := range changes {
		if (req.Kind == "" || req.Kind == c.Key.GetKind()) && (req.Namespace == "" || req.Namespace == c.Key.GetNamespace()) {
			out = append(out, c)
		}
	}
	return out
}

// Can is AdminService.Can.
func (s *Server) Can(ctx context.Context, req *ztv1.CanRequest) (*ztv1.CanResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	v, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	test, err := testOf(req)
	if err != nil {
		return nil, err
	}
	d, err := policy.Can(v.Index, cmp.Or(req.Namespace, namespaceOf(req.Caller)), test, s.cfg.Now())
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "%s", err)
	}
	resp := &ztv1.CanResponse{Allowed: d.Allowed, Reason: d.Reason, Revision: st.Revision(), Hints: d.Hints, Staleness: stale}
	if d.Asks != (spec.Ref{}) {
		resp.Asks = d.Asks.String()
	}
	for _, g := range d.Grants {
		resp.Grants = append(resp.Grants, g.String())
	}
	return resp, nil
}

// testOf is what Can is asked, as an Assertion would ask it, and held to the same
// form.
func testOf(req *ztv1.CanRequest) (*ztv1.Test, error) {
	t := &ztv1.Test{
		As:      &ztv1.Subject{Workload: req.Caller, User: req.User},
		Request: req.Request, Want: "allow", Source: req.Source, Headers: req.Headers,
	}
	if strings.HasPrefix(req.Caller, "spiffe://") {
		t.As = &ztv1.Subject{SpiffeId: req.Caller, User: req.User}
	}
	asked := &spec.Document{Document: &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindAssertion,
		Metadata: &ztv1.Metadata{Namespace: cmp.Or(req.Namespace, "default"), Name: "can"},
		Spec:     &ztv1.Document_Assertion{Assertion: &ztv1.Assertion{Tests: []*ztv1.Test{t}}},
	}}
	if _, problems := spec.Parse([]spec.File{{Content: []byte(spec.YAML(asked))}}); len(problems) > 0 {
		p := problems[0]
		return nil, refuse(codes.InvalidArgument, "%s: %s", strings.TrimPrefix(p.Path, "spec.tests[0]."), p.Message)
	}
	t.At = req.At // may be finer than what files say
	return t, nil
}
