package api

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Lives of join tokens.
const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 24 * time.Hour
)

// errDone ends a watch that has seen what it waited for.
var errDone = errors.New("done")

func ignoreDone(err error) error {
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// CreateToken is AdminService.CreateToken.
func (s *Server) CreateToken(ctx context.Context, req *ztv1.CreateTokenRequest) (*ztv1.CreateTokenResponse, error) {
	if req.Server == (req.Workload != "") {
		return nil, refuse(codes.InvalidArgument, "a token is for a workload (namespace/name) or for a server: name exactly one")
	}
	ttl := defaultTokenTTL
	if req.Ttl != nil {
		ttl = req.Ttl.AsDuration()
	}
	if ttl <= 0 || ttl > maxTokenTTL {
		return nil, refuse(codes.InvalidArgument, "ttl is %v; it must be above 0 and at most %v", ttl, maxTokenTTL)
	}
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := s.mayMakeToken(ctx, st, req); err != nil {
		return nil, err
	}
	w := keyed(ctx, req, req.IdempotencyKey)
	seed := ""
	if w.key != "" { // a retry makes the same token
		seed = callOf(ctx).principal.String() + "\x00" + w.key
	}
	token, id, hash, err := s.cfg.Issuer.NewToken(seed)
	if err != nil {
		return nil, err
	}
	t := &logv1.Token{
		Id: id, SecretHash: hash, Workload: req.Workload, Server: req.Server,
		Expires: timestamppb.New(s.cfg.Now().Add(ttl)), CreatedBy: callOf(ctx).principal.String(),
	}
	result, err := s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_PutToken{PutToken: &logv1.PutToken{Token: t}}})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.token.created")
	if result.Replayed {
		made, ok := s.cfg.Log.State().Token(id)
		if !ok || !bytes.Equal(made.SecretHash, hash) {
			return nil, refuse(codes.FailedPrecondition, "the token of this idempotency key was made, and has been used or has ended; ask for another one with another key")
		}
		t = made
	}
	return &ztv1.CreateTokenResponse{Token: token, Info: tokenInfo(t)}, nil
}

func (s *Server) mayMakeToken(ctx context.Context, st *state.State, req *ztv1.CreateTokenRequest) error {
	if req.Server {
		if a, ok := st.Admin(callOf(ctx).principal.Name); !ok || a.Role != "admin" {
			return refuse(codes.PermissionDenied, "a server token needs role admin")
		}
		return nil
	}
	ref, err := spec.ParseRef(req.Workload, "")
	if err != nil || ref.Namespace == "" {
		return refuse(codes.InvalidArgument, "workload %q is not namespace/name", req.Workload)
	}
	if err := s.may(ctx, st, ref.Namespace); err != nil {
		return err
	}
	if _, ok := st.Document(state.Key{Kind: "Workload", Namespace: ref.Namespace, Name: ref.Name}); !ok {
		return refuse(codes.NotFound, "no Workload %s; apply it first", ref)
	}
	return nil
}

func tokenInfo(t *logv1.Token) *ztv1.TokenInfo {
	return &ztv1.TokenInfo{Id: t.Id, Workload: t.Workload, Server: t.Server, Expires: t.Expires, CreatedBy: t.CreatedBy}
}

// ListTokens is AdminService.ListTokens.
func (s *Server) ListTokens(ctx context.Context, req *ztv1.ListTokensRequest) (*ztv1.ListTokensResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	resp := &ztv1.ListTokensResponse{Staleness: stale}
	for t := range st.Tokens() {
		if t.Expires.AsTime().After(s.cfg.Now()) {
			resp.Tokens = append(resp.Tokens, tokenInfo(t))
		}
	}
	return resp, nil
}

// DeleteToken is AdminService.DeleteToken.
func (s *Server) DeleteToken(ctx context.Context, req *ztv1.DeleteTokenRequest) (*ztv1.DeleteTokenResponse, error) {
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	w := keyed(ctx, req, req.IdempotencyKey)
	if done, err := s.replayed(ctx, w); done || err != nil {
		return &ztv1.DeleteTokenResponse{}, err
	}
	t, ok := st.Token(req.Id)
	if !ok {
		return nil, refuse(codes.NotFound, "no token %q", req.Id)
	}
	if err := s.may(ctx, st, namespaceOf(t.Workload)); err != nil {
		return nil, err
	}
	_, err = s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_DeleteToken{DeleteToken: &logv1.DeleteToken{Id: req.Id}}})
	return &ztv1.DeleteTokenResponse{}, err
}

// namespaceOf is the namespace of a workload in the form namespace/name; empty,
// which only an admin may change, for anything else.
func namespaceOf(workload string) string {
	ref, err := spec.ParseRef(workload, "")
	if err != nil {
		return ""
	}
	return ref.Namespace
}

// DeregisterInstance is AdminService.DeregisterInstance.
func (s *Server) DeregisterInstance(ctx context.Context, req *ztv1.DeregisterInstanceRequest) (*ztv1.DeregisterInstanceResponse, error) {
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	w := keyed(ctx, req, req.IdempotencyKey)
	if done, err := s.replayed(ctx, w); done || err != nil {
		return &ztv1.DeregisterInstanceResponse{}, err
	}
	i, ok := st.Instance(req.Instance)
	if !ok {
		return nil, refuse(codes.NotFound, "no instance %q", req.Instance)
	}
	if err := s.may(ctx, st, namespaceOf(i.Workload)); err != nil {
		return nil, err
	}
	return &ztv1.DeregisterInstanceResponse{}, s.deregister(ctx, w, req.Instance)
}

func (s *Server) deregister(ctx context.Context, w once, instance string) error {
	_, err := s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: instance}}})
	failpoint.Hit("api.deregister.done")
	return err
}

// ListAdmins is AdminService.ListAdmins.
func (s *Server) ListAdmins(ctx context.Context, req *ztv1.ListAdminsRequest) (*ztv1.ListAdminsResponse, error) {
	st, stale, err := s.readAged(ctx, req.Stale)
	if err != nil {
		return nil, err
	}
	resp := &ztv1.ListAdminsResponse{Staleness: stale}
	for a := range st.Admins() {
		resp.Admins = append(resp.Admins, adminInfo(a))
	}
	return resp, nil
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// AddAdmin is AdminService.AddAdmin. The certificate is signed before the role
// is committed: without the role it is worth nothing.
func (s *Server) AddAdmin(ctx context.Context, req *ztv1.AddAdminRequest) (*ztv1.AddAdminResponse, error) {
	if (req.Role == "editor") != (len(req.Namespaces) > 0) {
		return nil, refuse(codes.InvalidArgument, "namespaces go with role editor, and with no other")
	}
	for _, ns := range req.Namespaces {
		if !label.MatchString(ns) {
			return nil, refuse(codes.InvalidArgument, "namespace %q is not a DNS label", ns)
		}
	}
	resp := &ztv1.AddAdminResponse{Roots: s.cfg.Issuer.Roots()}
	if len(req.Csr) > 0 {
		chain, notAfter, err := s.cfg.Issuer.Admin(req.Csr, req.Name)
		if err != nil {
			return nil, errRequest
		}
		resp.Chain, resp.NotAfter = chain, timestamppb.New(notAfter)
	}
	admin := &logv1.Admin{Name: req.Name, Role: req.Role, Namespaces: slices.Compact(slices.Sorted(slices.Values(req.Namespaces)))}
	asked := proto.CloneOf(req)
	asked.Csr = nil // a retry may bring another key
	w := keyed(ctx, asked, req.IdempotencyKey)
	if _, err := s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: admin}}}); err != nil {
		return nil, err
	}
	failpoint.Hit("api.admin.added")
	return resp, nil
}

// RemoveAdmin is AdminService.RemoveAdmin.
func (s *Server) RemoveAdmin(ctx context.Context, req *ztv1.RemoveAdminRequest) (*ztv1.RemoveAdminResponse, error) {
	w := keyed(ctx, req, req.IdempotencyKey)
	_, err := s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: req.Name}}})
	return &ztv1.RemoveAdminResponse{}, err
}
