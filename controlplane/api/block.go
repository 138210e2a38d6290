package api

import (
	"bytes"
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Block is AdminService.Block. Assertions have no say: what must be cut off is
// cut off.
func (s *Server) Block(ctx context.Context, req *ztv1.BlockRequest) (*ztv1.BlockResponse, error) {
	b, err := readBlock(req)
	if err != nil {
		return nil, err
	}
	resp, err := s.change(ctx, wish{
		named: map[string]bool{req.Namespace: true}, message: req.Block.GetReason(), dryRun: req.DryRun,
		key: req.IdempotencyKey, detail: ztv1.Detail_DETAIL_NAMES,
		hash: operationHash(callOf(ctx).principal, &ztv1.BlockRequest{Namespace: req.Namespace, Name: req.Name, Block: req.Block}),
		plan: func(st *state.State) (*plan, error) { return s.planBlock(st, b) },
	})
	if err != nil {
		return nil, err
	}
	return &ztv1.BlockResponse{Revision: resp.Revision, Affected: resp.Affected}, nil
}

// block is a Block that is asked for.
type block struct {
	doc      *spec.Document // as it is stored
	file     *spec.Document // as a file would say it
	problems spec.Problems  // that the file would have
}

func readBlock(req *ztv1.BlockRequest) (b block, err error) {
	d := &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindBlock,
		Metadata: &ztv1.Metadata{Namespace: req.Namespace, Name: req.Name},
		Spec:     &ztv1.Document_Block{Block: req.Block},
	}
	if b.file, err = sealed(d); err != nil {
		return b, err
	}
	_, b.problems = spec.Parse([]spec.File{{Content: []byte(spec.YAML(b.file))}})
	for i := range b.problems {
		b.problems[i].File, b.problems[i].Line, b.problems[i].Column = b.file.At("")
	}
	d.Metadata.Annotations = map[string]string{spec.OperatorAnnotation: spec.OperatorValue}
	b.doc, err = sealed(d)
	return b, err
}

// sealed is a document that shares nothing with d. Fields that this version would
// leave out are refused.
func sealed(d *ztv1.Document) (*spec.Document, error) {
	b, err := proto.Marshal(d)
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "%s", err)
	}
	doc, err := spec.Decode(b)
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "%s", err)
	}
	return doc, nil
}

// namedByBlocks are the kinds that a Block refers to. The others are most of a spec,
// and a Block is not to wait for them.
var namedByBlocks = map[string]bool{
	spec.KindMesh: true, spec.KindWorkload: true, spec.KindService: true, spec.KindIdentityProvider: true,
}

// planBlock validates a Block as if a file said it; once written, it may come to
// name what is there no more. What other documents have for problems does not
// keep it out: they are there already.
func (s *Server) planBlock(st *state.State, b block) (*plan, error) {
	old, err := s.cfg.Views.At(st)
	if err != nil {
		return nil, err
	}
	k := b.doc.Key()
	before, there := old.Document(k)
	switch {
	case there && !before.Operator():
		return nil, refuse(codes.AlreadyExists, "%s is in the files of its namespace; choose another name", k)
	case !heldByOperator(b.doc, s.cfg.Now()):
		return nil, refuse(codes.InvalidArgument, "until is over already")
	}
	next := old.With([]*spec.Document{b.doc}, nil)
	problems := slices.Clone(b.problems)
	around := slices.DeleteFunc(old.Documents(), func(d *spec.Document) bool { return !namedByBlocks[d.GetKind()] })
	for _, p := range spec.Check(append(around, b.file), st.TrustDomain()) {
		if p.File == k.String() {
			problems = append(problems, p)
		}
	}
	if len(problems) > 0 {
		return nil, invalid(spec.Join(problems))
	}
	var puts []put
	canonical := spec.Canonical(b.doc)
	if !there || !bytes.Equal(spec.Canonical(before), canonical) {
		puts = append(puts, put{b.doc, canonical})
	}
	return s.assemble(st, old, next, puts, nil)
}

// Unblock is AdminService.Unblock.
func (s *Server) Unblock(ctx context.Context, req *ztv1.UnblockRequest) (*ztv1.UnblockResponse, error) {
	resp, err := s.change(ctx, wish{
		named: map[string]bool{req.Namespace: true}, message: "unblock " + req.Namespace + "/" + req.Name,
		key: req.IdempotencyKey, detail: ztv1.Detail_DETAIL_NAMES,
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
