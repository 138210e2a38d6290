package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// sourceFile is ServerKeys.Source where keys lie in a file: there they can be put.
const sourceFile = "file"

// GetKeys is AdminService.GetKeys.
func (s *Server) GetKeys(ctx context.Context, _ *ztv1.GetKeysRequest) (*ztv1.GetKeysResponse, error) {
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	return &ztv1.GetKeysResponse{
		Current: s.cfg.Keys.Current(st), Retired: st.RetiredKeys(), Servers: s.cfg.Keys.Servers(ctx, false),
	}, nil
}

// RotateKey is AdminService.RotateKey. No server joins or leaves meanwhile: one that
// was given the key of before by a call that is not answered yet is a member whose
// keys are not known, and the root key stays as it is.
func (s *Server) RotateKey(ctx context.Context, req *ztv1.RotateKeyRequest) (*ztv1.RotateKeyResponse, error) {
	s.membership.Lock()
	defer s.membership.Unlock()
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	w := once{}
	if !req.DryRun {
		w = keyed(ctx, req, req.IdempotencyKey)
		if done, err := s.replayed(ctx, w); err != nil {
			return nil, err
		} else if done {
			resp := &ztv1.RotateKeyResponse{To: s.cfg.Keys.Current(st)}
			if r := st.RetiredKeys(); len(r) > 0 {
				resp.From = r[len(r)-1]
			}
			return resp, nil
		}
	}
	if err := s.cfg.Cluster.Readable(state.Rotation); err != nil {
		return nil, err
	}
	servers := s.cfg.Keys.Servers(ctx, true)
	to, err := s.nextKey(st, req.To, servers)
	if err != nil {
		return nil, err
	}
	resp := &ztv1.RotateKeyResponse{From: s.cfg.Keys.Current(st), To: to, Servers: servers}
	if req.DryRun {
		return resp, nil
	}
	if to == "" {
		if to, err = s.cfg.Keys.Make(ctx); err != nil {
			return nil, err
		}
		resp.To = to
	}
	if err := s.handKey(ctx, to, servers); err != nil {
		return nil, err
	}
	failpoint.Hit("api.key.handed")
	sealed, replaces, err := s.cfg.Keys.Reseal(st, to)
	if err != nil {
		return nil, err
	}
	_, err = s.proposeOnce(ctx, w, &logv1.Entry{Op: &logv1.Entry_ReplaceRootKey{ReplaceRootKey: &logv1.ReplaceRootKey{
		SealedRootKey: sealed, Replaces: replaces, FromKey: resp.From, ToKey: to,
	}}})
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.key.rotated")
	return resp, nil
}

// nextKey is the key to rotate to: the one that is asked for, or that the leader has
// beside the current one; empty: a new one is to be made. It is refused, and every
// server named, unless all of them have it or can be handed it.
func (s *Server) nextKey(st *state.State, asked string, servers []*ztv1.ServerKeys) (string, error) {
	current, here := s.cfg.Keys.Current(st), serverKeys(servers, s.cfg.ServerID)
	switch {
	case here == nil:
		return "", refuse(codes.FailedPrecondition, "the leader has not announced itself yet; try again")
	case here.SourceError != "":
		return "", refuse(codes.FailedPrecondition, "nothing was changed; the leader (%s): %s", here.Server, here.SourceError)
	case asked == current && asked != "":
		return "", refuse(codes.FailedPrecondition, "the root key is sealed with %s already", asked)
	case st.RetiredKey(asked):
		return "", refuse(codes.FailedPrecondition, "key %s was replaced before, and is not used again", asked)
	case asked != "" && !slices.Contains(here.KeyIds, asked):
		return "", refuse(codes.FailedPrecondition, "the leader (%s) does not have key %s; its keys, from %s, are %s",
			here.Server, asked, here.Source, strings.Join(here.KeyIds, ", "))
	}
	to := asked
	if to == "" {
		var fresh []string
		for _, id := range here.KeyIds {
			if id != current && !st.RetiredKey(id) {
				fresh = append(fresh, id)
			}
		}
		switch {
		case len(fresh) > 1:
			return "", refuse(codes.FailedPrecondition, "the leader (%s) has more than one key that was not used yet; name the one to go to with --to, or drop what is not meant: %s",
				here.Server, strings.Join(fresh, ", "))
		case len(fresh) == 1:
			to = fresh[0]
		case here.Source != sourceFile:
			return "", refuse(codes.FailedPrecondition, "the leader (%s) has no further key, and its keys, from %s, are not for this cluster to make: "+
				"let every server's source give a new key beside %s, then try again", here.Server, here.Source, current)
		}
	}
	if bad := cannotOpen(to, current, servers); len(bad) > 0 {
		return "", refuse(codes.FailedPrecondition, "nothing was changed; these servers could not open what would be sealed anew:\n  %s", strings.Join(bad, "\n  "))
	}
	return to, nil
}

// cannotOpen says which servers have not the key to rotate to, and why they cannot be
// handed it.
func cannotOpen(to, current string, servers []*ztv1.ServerKeys) (bad []string) {
	for _, r := range servers {
		switch has := slices.Contains(r.KeyIds, to); {
		case r.Error != "":
			bad = append(bad, fmt.Sprintf("%s: %s; start it, or remove it (ztctl members remove)", r.Server, r.Error))
		case r.SourceError != "":
			bad = append(bad, fmt.Sprintf("%s: %s", r.Server, r.SourceError))
		case !slices.Contains(r.KeyIds, current):
			bad = append(bad, fmt.Sprintf("%s: it does not have the current key %s", r.Server, current))
		case has || r.Source == sourceFile:
		case to == "":
			bad = append(bad, fmt.Sprintf("%s: its keys are from %s, to which no new one can be handed: let the sources of all servers give one, then name it with --to", r.Server, r.Source))
		default:
			bad = append(bad, fmt.Sprintf("%s: its keys, from %s, are %s, and not %s; let it give that one, too (env: and start it again)",
				r.Server, r.Source, strings.Join(r.KeyIds, ", "), to))
		}
	}
	return bad
}

// handKey sees to it that every server has a key.
func (s *Server) handKey(ctx context.Context, id string, servers []*ztv1.ServerKeys) error {
	var bad []string
	for _, r := range servers {
		if r.Server == s.cfg.ServerID || slices.Contains(r.KeyIds, id) {
			continue
		}
		now, err := s.cfg.Keys.Hand(ctx, r.Server, id)
		if err != nil || !slices.Contains(now.GetKeyIds(), id) {
			s.cfg.Logger.Warn("key-encryption key not handed over", "server", r.Server, "key", id, "error", err)
			bad = append(bad, r.Server+": "+status.Convert(err).Message())
		}
	}
	if len(bad) > 0 {
		return refuse(codes.FailedPrecondition, "the root key is sealed as before; key %s could not be handed to\n  %s", id, strings.Join(bad, "\n  "))
	}
	return nil
}

func serverKeys(servers []*ztv1.ServerKeys, id string) *ztv1.ServerKeys {
	for _, r := range servers {
		if r.Server == id {
			return r
		}
	}
	return nil
}

// DropKey is AdminService.DropKey.
func (s *Server) DropKey(ctx context.Context, req *ztv1.DropKeyRequest) (*ztv1.DropKeyResponse, error) {
	s.membership.Lock()
	defer s.membership.Unlock()
	st, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	current := s.cfg.Keys.Current(st)
	if req.KeyId == current {
		return nil, refuse(codes.FailedPrecondition, "key %s seals the root key; rotate first", current)
	}
	servers := s.cfg.Keys.Servers(ctx, true)
	if bad := wouldBreak(req.KeyId, current, servers); len(bad) > 0 {
		return nil, refuse(codes.FailedPrecondition, "nothing was dropped; without key %s these servers would not open what they have:\n  %s",
			req.KeyId, strings.Join(bad, "\n  "))
	}
	if !slices.ContainsFunc(servers, func(r *ztv1.ServerKeys) bool { return slices.Contains(r.KeyIds, req.KeyId) }) && !st.RetiredKey(req.KeyId) {
		return nil, refuse(codes.NotFound, "no server has a key %q", req.KeyId)
	}
	if req.DryRun {
		return &ztv1.DropKeyResponse{Servers: servers}, nil
	}
	if _, err := s.proposeOnce(ctx, keyed(ctx, req, req.IdempotencyKey), &logv1.Entry{Op: &logv1.Entry_Access{
		Access: &logv1.Access{Kind: "Key", Name: req.KeyId},
	}}); err != nil {
		return nil, err
	}
	resp := &ztv1.DropKeyResponse{}
	for _, r := range servers {
		now, err := s.cfg.Keys.ForgetAt(ctx, r.Server, req.KeyId)
		if err != nil {
			return nil, refuse(codes.Unavailable, "key %s is dropped in part; run it again. Server %s: %s", req.KeyId, r.Server, status.Convert(err).Message())
		}
		resp.Servers = append(resp.Servers, now)
	}
	return resp, nil
}

// wouldBreak says which servers need a key, or may need it.
func wouldBreak(id, current string, servers []*ztv1.ServerKeys) (bad []string) {
	for _, r := range servers {
		switch {
		case r.Error != "":
			bad = append(bad, fmt.Sprintf("%s: %s; start it, or remove it (ztctl members remove)", r.Server, r.Error))
		case r.SourceError != "":
			bad = append(bad, fmt.Sprintf("%s: %s", r.Server, r.SourceError))
		case !slices.Contains(r.KeyIds, current):
			bad = append(bad, fmt.Sprintf("%s: it does not have the current key %s", r.Server, current))
		case r.DataKeysSealedBy == id:
			bad = append(bad, fmt.Sprintf("%s: its data keys are still sealed with it", r.Server))
		case r.RootCopySealedBy == id:
			bad = append(bad, fmt.Sprintf("%s: its copy of the root key is still sealed with it", r.Server))
		}
	}
	return bad
}

// GetKeyReport is PeerService.GetKeyReport.
func (s *Server) GetKeyReport(ctx context.Context, req *ztv1.GetKeyReportRequest) (*ztv1.GetKeyReportResponse, error) {
	return &ztv1.GetKeyReportResponse{Keys: s.cfg.Keys.Local(ctx, req.Reload)}, nil
}

// TakeKey is PeerService.TakeKey.
func (s *Server) TakeKey(ctx context.Context, req *ztv1.TakeKeyRequest) (*ztv1.TakeKeyResponse, error) {
	if err := s.fromLeader(ctx); err != nil {
		return nil, err
	}
	if err := s.cfg.Keys.Take(ctx, req.KeyId, req.Key); err != nil {
		return nil, refuse(codes.FailedPrecondition, "take key %s: %s", req.KeyId, err)
	}
	return &ztv1.TakeKeyResponse{Keys: s.cfg.Keys.Local(ctx, false)}, nil
}

// ForgetKey is PeerService.ForgetKey.
func (s *Server) ForgetKey(ctx context.Context, req *ztv1.ForgetKeyRequest) (*ztv1.ForgetKeyResponse, error) {
	if err := s.fromLeader(ctx); err != nil {
		return nil, err
	}
	if err := s.cfg.Keys.Forget(ctx, req.KeyId); err != nil {
		return nil, refuse(codes.FailedPrecondition, "forget key %s: %s", req.KeyId, err)
	}
	return &ztv1.ForgetKeyResponse{Keys: s.cfg.Keys.Local(ctx, false)}, nil
}

// fromLeader refuses who is not the leader, as far as this server knows.
func (s *Server) fromLeader(ctx context.Context) error {
	if c := callOf(ctx); c.forwarded || c.principal.Name != s.cfg.Cluster.Report().Leader {
		return refuse(codes.PermissionDenied, "only the leader hands keys over")
	}
	return nil
}
