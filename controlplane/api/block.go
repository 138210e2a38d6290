package api

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Block is AdminService.Block. Assertions have no say: what must be cut off is
// cut off.
func (s *Server) Block(ctx context.Context, req *ztv1.BlockRequest) (*ztv1.BlockResponse, error) {
	doc, problems, err := blockDocument(req)
	if err != nil {
		return nil, err
	}
	resp, err := s.change(ctx, wish{
		named: map[string]bool{req.Namespace: true}, message: req.Block.GetReason(), dryRun: req.DryRun,
		key:  req.IdempotencyKey,
		hash: operationHash(callOf(ctx).principal, &ztv1.BlockRequest{Namespace: req.Namespace, Name: req.Name, Block: req.Block}),
		plan: func(st *state.State) (*plan, error) { return s.planBlock(st, doc, problems) },
	})
	if err != nil {
		return nil, err
	}
	return &ztv1.BlockResponse{Revision: resp.Revision, Affected: resp.Affected}, nil
}

// blockDocument is the document that a request asks for, and what a file that said
// the same would have for problems.
func blockDocument(req *ztv1.BlockRequest) (*spec.Document, spec.Problems, error) {
	d := &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindBlock,
		Metadata: &ztv1.Metadata{Namespace: req.Namespace, Name: req.Name},
		Spec:     &ztv1.Document_Block{Block: req.Block},
	}
	_, problems := spec.Parse([]spec.File{{Content: []byte(spec.YAML(&spec.Document{Document: d}))}})
	d.Metadata.Annotations = map[string]string{spec.OperatorAnnotation: spec.OperatorValue}
	b, err := proto.Marshal(d)
	if err != nil {
		return nil, nil, err
	}
	doc, err := spec.Decode(b) // refuses fields that this version would leave out
	if err != nil {
		return nil, nil, refuse(codes.InvalidArgument, "%s", err)
	}
	for i := range problems {
		problems[i].File, problems[i].Line, problems[i].Column = doc.At("")
	}
	return doc, problems, nil
}

// planBlock validates a Block as an apply would. What other documents have for
// problems does not keep it out: they are there already.
func (s *Server) planBlock(st *state.State, doc *spec.Document, problems spec.Problems) (*plan, error) {
	old, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	k := doc.Key()
	before, there := old.Document(k)
	switch {
	case there && !before.Operator():
		return nil, refuse(codes.AlreadyExists, "%s is in the files of its namespace; choose another name", k)
	case !heldByOperator(doc, s.cfg.Now()):
		return nil, refuse(codes.InvalidArgument, "until is over already")
	}
	next := old.With([]*spec.Document{doc}, nil)
	for _, p := range spec.Check(next.Documents(), st.TrustDomain()) {
		if p.File == k.String() {
			problems = append(problems, p)
		}
	}
	if len(problems) > 0 {
		return nil, invalid(spec.Join(problems))
	}
	var puts []*spec.Document
	if !there || string(spec.Canonical(before)) != string(spec.Canonical(doc)) {
		puts = append(puts, doc)
	}
	return s.assemble(st, old, next, puts, nil)
}

// Unblock is AdminService.Unblock.
func (s *Server) Unblock(ctx context.Context, req *ztv1.UnblockRequest) (*ztv1.UnblockResponse, error) {
	resp, err := s.change(ctx, wish{
		named: map[string]bool{req.Namespace: true}, message: "unblock " + req.Namespace + "/" + req.Name,
		key:  req.IdempotencyKey,
		hash: operationHash(callOf(ctx).principal, &ztv1.UnblockRequest{Namespace: req.Namespace, Name: req.Name}),
		plan: func(st *state.State) (*plan, error) {
			return s.planUnblock(st, spec.Key{Kind: spec.KindBlock, Namespace: req.Namespace, Name: req.Name})
		},
	})
	if err != nil {
		return nil, err
	}
	return &ztv1.UnblockResponse{Revision: resp.Revision, Affected: resp.Affected}, nil
}

func (s *Server) planUnblock(st *state.State, k spec.Key) (*plan, error) {
	old, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	before, there := old.Document(k)
	switch {
	case !there:
		return nil, refuse(codes.NotFound, "no %s", k)
	case !before.Operator():
		return nil, refuse(codes.FailedPrecondition, "%s is in the files of its namespace; remove it there", k)
	}
	deletes := []spec.Key{k}
	return s.assemble(st, old, old.With(nil, deletes), nil, deletes)
}
