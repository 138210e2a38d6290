package api

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// LeaderSilence is how long a server renews certificates without having heard a
// leader: what was revoked meanwhile is bounded by it.
const LeaderSilence = 5 * time.Minute

// defaultEgress is where a workload's applications reach out by default.
const defaultEgress = "127.0.0.1"

// Enrol is NodeService.Enrol. Every refusal of a token reads the same. Nothing is
// signed before the token is used up.
func (s *Server) Enrol(ctx context.Context, req *ztv1.EnrolRequest) (*ztv1.EnrolResponse, error) {
	id, hash, err := s.cfg.Issuer.ParseToken(req.Token)
	if err != nil {
		s.metrics.tokens.Inc()
		return nil, state.ErrTokenInvalid
	}
	workload, err := spec.ParseRef(req.Workload, "")
	if err != nil || workload.Namespace == "" {
		return nil, refuse(codes.InvalidArgument, "workload %q is not namespace/name", req.Workload)
	}
	if req.Instance == "" {
		return nil, refuse(codes.InvalidArgument, "instance is missing")
	}
	address, egress, err := addresses(callOf(ctx).address, req.Address, req.EgressAddress)
	if err != nil {
		return nil, err
	}
	keyHash, err := s.cfg.Issuer.KeyHash(req.NodeCsr)
	if err == nil && len(req.SvidCsr) > 0 {
		_, err = s.cfg.Issuer.KeyHash(req.SvidCsr)
	}
	if err != nil {
		return nil, errRequest
	}
	// The answer says where the servers are, and nobody asks again for long.
	if err := s.waitForPeers(ctx); err != nil {
		return nil, err
	}
	instance := &logv1.Instance{
		Id: req.Instance, Workload: workload.String(), Address: address, EgressAddress: egress,
		Agent: len(req.SvidCsr) > 0, KeyHash: keyHash, Enrolled: timestamppb.New(s.cfg.Now()),
		Zone: req.Zone, Weight: req.Weight,
	}
	if req.Zone != "" || req.Weight != 0 {
		if err := s.cfg.Cluster.Readable(state.Places); err != nil {
			return nil, err
		}
	}
	op := &logv1.Redeem{Id: id, SecretHash: hash, Instance: instance}
	if err := s.redeemable(ctx, op); err != nil {
		return nil, err
	}
	result, err := s.redeem(ctx, op)
	if err == nil && result.Replayed {
		// Its token is used up, and only its key speaks for it: it gets what was
		// registered then, where it was registered, and nothing that is new.
		had, ok := s.cfg.Log.State().Instance(instance.Id)
		if !ok || had.Address != address || had.Agent != instance.Agent {
			s.metrics.tokens.Inc()
			err = state.ErrTokenInvalid
		}
		instance = had
	}
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.enrol.redeemed")
	issued, err := s.issue(instance, req.NodeCsr, req.SvidCsr)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.enrol.issued")
	servers, near := s.nodeAddresses(instance.Zone)
	return &ztv1.EnrolResponse{
		Instance: instance.Id, TrustDomain: s.cfg.Issuer.TrustDomain(), Certificates: issued,
		Address: instance.Address, EgressAddress: instance.EgressAddress, Servers: servers, Near: near,
	}, nil
}

// addresses checks what an instance says of itself: it listens where its session
// comes from, and its applications reach out over loopback only.
func addresses(session, address, egress string) (string, string, error) {
	from, err := netip.ParseAddr(session)
	if err != nil {
		return "", "", refuse(codes.InvalidArgument, "this connection has no IP address")
	}
	from = from.Unmap()
	if address == "" {
		address = from.String()
	}
	if egress == "" {
		egress = defaultEgress
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "", "", refuse(codes.InvalidArgument, "address %q is not an IP address", address)
	}
	if a.Unmap() != from {
		return "", "", refuse(codes.PermissionDenied, "address %s is not where this connection comes from (%s); enrol from the address that peers will dial", a, from)
	}
	e, err := netip.ParseAddr(egress)
	if err != nil || !e.IsLoopback() {
		return "", "", refuse(codes.InvalidArgument, "egress address %q is not a loopback IP address", egress)
	}
	return from.String(), e.Unmap().String(), nil
}

// issue signs for an instance what it sent requests for.
func (s *Server) issue(i *logv1.Instance, nodeCSR, svidCSR []byte) (*ztv1.Issued, error) {
	out := &ztv1.Issued{Roots: s.cfg.Issuer.Roots()}
	if len(nodeCSR) > 0 {
		chain, notAfter, err := s.cfg.Issuer.Node(nodeCSR, i.Id)
		if err != nil {
			return nil, err
		}
		out.NodeChain, out.NodeNotAfter = chain, timestamppb.New(notAfter)
	}
	if len(svidCSR) > 0 {
		v, err := s.cfg.Views.At(s.cfg.Log.State())
		if err != nil {
			return nil, err
		}
		ref, err := spec.ParseRef(i.Workload, "")
		if err != nil {
			return nil, err
		}
		chain, notAfter, err := s.cfg.Issuer.Workload(svidCSR, ref.Namespace, ref.Name, v.Index.Settings(ref).SVIDTTL)
		if err != nil {
			return nil, err
		}
		out.SvidChain, out.SvidNotAfter = chain, timestamppb.New(notAfter)
	}
	return out, nil
}

// nodeAddresses is where the node port of every server is: first those in a zone, near
// of them; among them, and among the others, this one first. A server that has not said
// yet where it is, is left out.
func (s *Server) nodeAddresses(zone string) (addresses []string, near uint32) {
	var inside, outside []string
	for m := range s.cfg.Log.State().Servers() {
		if m.NodeAddress == "" {
			continue
		}
		to := &outside
		if zone != "" && m.Zone == zone {
			to = &inside
		}
		if *to = append(*to, m.NodeAddress); m.Id == s.cfg.ServerID {
			slices.Reverse(*to)
		}
	}
	return append(inside, outside...), uint32(len(inside))
}

// Renew is NodeService.Renew.
func (s *Server) Renew(ctx context.Context, req *ztv1.RenewRequest) (*ztv1.RenewResponse, error) {
	if silence := s.cfg.Now().Sub(s.cfg.Log.HeardLeader()); silence > LeaderSilence {
		return nil, refuse(codes.Unavailable, "no leader heard for %v: this server does not renew now; ask another one", silence.Round(time.Second))
	}
	i, ok := s.cfg.Log.State().Instance(callOf(ctx).principal.Name)
	if !ok {
		return nil, refuse(codes.PermissionDenied, "not enrolled")
	}
	for _, csr := range [][]byte{req.NodeCsr, req.SvidCsr} {
		if len(csr) == 0 {
			continue
		}
		if _, err := s.cfg.Issuer.KeyHash(csr); err != nil {
			return nil, errRequest
		}
	}
	if len(req.SvidCsr) > 0 && !i.Agent {
		return nil, refuse(codes.PermissionDenied, "this instance takes its workload's certificate by SDS over ADS")
	}
	issued, err := s.issue(i, req.NodeCsr, req.SvidCsr)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.renew.issued")
	servers, near := s.nodeAddresses(i.Zone)
	return &ztv1.RenewResponse{Certificates: issued, Servers: servers, Near: near}, nil
}

// Place is NodeService.Place.
func (s *Server) Place(ctx context.Context, req *ztv1.PlaceRequest) (*ztv1.PlaceResponse, error) {
	id := callOf(ctx).principal.Name
	i, ok := s.cfg.Log.State().Instance(id)
	if !ok {
		return nil, refuse(codes.PermissionDenied, "not enrolled")
	}
	if i.Zone != req.Zone || i.Weight != req.Weight {
		if err := s.cfg.Cluster.Readable(state.Places); err != nil {
			return nil, err
		}
		if err := s.limits.place(id); err != nil {
			return nil, err
		}
		if _, err := s.propose(ctx, &logv1.Entry{Op: &logv1.Entry_Place{Place: &logv1.Place{Instance: id, Zone: req.Zone, Weight: req.Weight}}}); err != nil {
			return nil, err
		}
	}
	servers, near := s.nodeAddresses(req.Zone)
	return &ztv1.PlaceResponse{Servers: servers, Near: near}, nil
}

// Deregister is NodeService.Deregister.
func (s *Server) Deregister(ctx context.Context, _ *ztv1.DeregisterRequest) (*ztv1.DeregisterResponse, error) {
	return &ztv1.DeregisterResponse{}, s.deregister(ctx, once{}, callOf(ctx).principal.Name)
}

// EnrolServer is NodeService.EnrolServer.
func (s *Server) EnrolServer(ctx context.Context, req *ztv1.EnrolServerRequest) (*ztv1.EnrolServerResponse, error) {
	id, hash, err := s.cfg.Issuer.ParseToken(req.Token)
	if err != nil {
		s.metrics.tokens.Inc()
		return nil, state.ErrTokenInvalid
	}
	if req.Server == "" {
		return nil, refuse(codes.InvalidArgument, "server is missing")
	}
	if _, err := s.cfg.Issuer.KeyHash(req.IntermediateCsr); err != nil {
		return nil, errRequest
	}
	// A server that was given no peers would never find them. The first one may
	// not have said yet where it is.
	if err := s.waitForPeers(ctx); err != nil {
		return nil, err
	}
	// Who bears no token learns nothing of keys.
	if err := s.redeemable(ctx, &logv1.Redeem{Id: id, SecretHash: hash, Server: &logv1.Server{Id: req.Server}}); err != nil {
		return nil, err
	}
	keyID, key, err := s.admitServer(ctx, req, id, hash)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.join.redeemed")
	intermediate, err := s.cfg.Issuer.Intermediate(req.IntermediateCsr, req.Server)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("api.join.issued")
	resp := &ztv1.EnrolServerResponse{
		TrustDomain: s.cfg.Issuer.TrustDomain(), Intermediate: intermediate, Roots: s.cfg.Issuer.Roots(),
		KeyId: keyID, KeyEncryptionKey: key,
	}
	_, resp.Epoch = s.cfg.Log.State().Epoch()
	resp.Peers = clusterAddresses(s.cfg.Log.State())
	return resp, nil
}

// admitServer uses the token up for a server, and returns the key that it is to have.
// The key is not replaced before the server is a member, of which a rotation knows.
func (s *Server) admitServer(ctx context.Context, req *ztv1.EnrolServerRequest, token string, hash []byte) (keyID string, key []byte, err error) {
	s.membership.Lock()
	defer s.membership.Unlock()
	if keyID, key, err = s.cfg.Issuer.KeyFor(req.KeyIds); err != nil {
		return "", nil, err
	}
	server, err := s.newServer(req)
	if err != nil {
		return "", nil, err
	}
	_, err = s.redeem(ctx, &logv1.Redeem{Id: token, SecretHash: hash, Server: server})
	return keyID, key, err
}

// newServer is the record of a server that joins. One that reads less than all of
// the others do is refused: it would stop at what the log holds already, or keep the
// others from what they do.
func (s *Server) newServer(req *ztv1.EnrolServerRequest) (*logv1.Server, error) {
	v := &logv1.Server{Id: req.Server, Version: req.Version, Format: req.Format, Replica: req.Replica}
	lowest := s.cfg.Cluster.Lowest()
	if reads := state.Reads(v); reads < lowest {
		return nil, refuse(codes.FailedPrecondition, "this server (%s) reads log format %d, and the cluster uses %d: install the version of the other servers (%s)",
			req.Version, reads, lowest, s.cfg.Version)
	}
	if v.Replica {
		if err := s.cfg.Cluster.Readable(state.Replicas); err != nil {
			return nil, err
		}
	} else if state.FormatOf(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: v}}}) > lowest {
		v.Format = 0 // unsaid until all read that it is said
	}
	return v, nil
}

func clusterAddresses(st *state.State) []string {
	var out []string
	for m := range st.Servers() {
		if m.ClusterAddress != "" {
			out = append(out, m.ClusterAddress)
		}
	}
	return out
}

func (s *Server) waitForPeers(ctx context.Context) error {
	return ignoreDone(s.cfg.Log.Watch(ctx, func(st *state.State, _ state.Changes) error {
		if len(clusterAddresses(st)) > 0 {
			return errDone
		}
		return nil
	}))
}
