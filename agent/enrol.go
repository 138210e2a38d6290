package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 30 * time.Second
)

// ErrNoToken is returned when an instance needs a token and there is none that
// was not used before.
var ErrNoToken = errors.New("a new token is needed")

// first enrols a new instance.
func (a *Agent) first(ctx context.Context) error {
	var errs []error
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"workload", a.cfg.Workload == ""}, {"address of a server", len(a.cfg.Servers) == 0}, {"file with the token", a.cfg.TokenFile == ""},
	} {
		if f.missing {
			errs = append(errs, fmt.Errorf("%s: %w, and to enrol the %s is missing", a.dir, ErrNotEnrolled, f.name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	token, err := readToken(a.cfg.TokenFile)
	if err != nil {
		return err
	}
	e, err := identity.OpenEnrolment(a.dir.enrolling(), a.cfg.Workload)
	if err != nil {
		return err
	}
	return a.enrol(ctx, token, e, record{
		Instance: e.Instance, Workload: a.cfg.Workload, BindAddress: a.cfg.Address != "",
		Address: canonicalIP(a.cfg.Address), EgressAddress: canonicalIP(a.cfg.EgressAddress), Servers: a.cfg.Servers,
		Zone: a.cfg.Zone, Weight: a.cfg.Weight,
	})
}

// again enrols the instance of h anew, with its own id and key, so that its Envoy
// can go on: its node certificate has ended, or the control plane has given it
// up. It returns ErrNoToken unless the token file holds another token than h
// was enrolled with.
func (a *Agent) again(ctx context.Context, h *holding) error {
	hint := fmt.Errorf("instance %s of %s: its certificate has ended on %s, or it was deregistered: %w: ztctl token create --workload %s",
		h.Instance, h.Workload, h.node.NotAfter().UTC().Format(time.RFC3339), ErrNoToken, h.Workload)
	if a.cfg.TokenFile == "" {
		return hint
	}
	token, err := readToken(a.cfg.TokenFile)
	if err != nil {
		return errors.Join(hint, err)
	}
	if token.ID == h.Token {
		return hint
	}
	was := h.record
	was.Servers, was.Near = a.servers(h), 0
	was.Zone, was.Weight = a.place(h)
	return a.enrol(ctx, token, identity.Enrolment{Instance: h.Instance, Key: h.node.Key}, was)
}

// enrol redeems a token for e, as want says, until a server answers or ctx ends;
// and takes the answer into use.
func (a *Agent) enrol(ctx context.Context, token identity.Token, e identity.Enrolment, want record) error {
	svidKey, err := identity.NewKey()
	if err != nil {
		return err
	}
	req, err := enrolRequest(token, e, svidKey, want)
	if err != nil {
		return err
	}
	// A server that does not show the pinned root gets nothing.
	config, err := identity.PinnedClientConfig(token.Pin, a.now, nil)
	if err != nil {
		return err
	}
	config.ServerName = xds.ServerName
	failpoint.Hit("agent.enrol.ask")
	resp, err := a.redeem(ctx, caller{from: want.bound(), tls: config}, want.Servers, req)
	if err != nil {
		return enrolError(err, want.Workload)
	}
	if err := checkAnswer(resp, token, want); err != nil {
		return fmt.Errorf("enrol: the server's answer: %w", err)
	}
	want.TrustDomain, want.Address, want.EgressAddress = resp.TrustDomain, resp.Address, resp.EgressAddress
	want.Token = token.ID
	h, err := (&holding{record: want}).with(resp.Certificates, resp, e.Key, svidKey, a.now())
	if err != nil {
		return fmt.Errorf("enrol: the server's answer: %w", err)
	}
	failpoint.Hit("agent.enrol.answered")
	if err := a.take(h); err != nil {
		return err
	}
	failpoint.Hit("agent.enrol.saved")
	a.log.Info("enrolled", "instance", h.Instance, "workload", h.Workload, "address", h.Address, "token", token.ID)
	return removeIfThere(a.dir.enrolling())
}

func enrolRequest(token identity.Token, e identity.Enrolment, svidKey identity.PrivateKey, want record) (*ztv1.EnrolRequest, error) {
	nodeCSR, err := identity.NewCSR(e.Key)
	if err != nil {
		return nil, err
	}
	svidCSR, err := identity.NewCSR(svidKey)
	if err != nil {
		return nil, err
	}
	return &ztv1.EnrolRequest{
		Token: token.Reveal(), Workload: want.Workload, Instance: e.Instance,
		Address: want.Address, EgressAddress: want.EgressAddress,
		NodeCsr: nodeCSR, SvidCsr: svidCSR, Zone: want.Zone, Weight: want.Weight,
	}, nil
}

// redeem asks the servers, round after round and ever more slowly.
func (a *Agent) redeem(ctx context.Context, c caller, servers []string, req *ztv1.EnrolRequest) (resp *ztv1.EnrolResponse, err error) {
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		err := c.each(ctx, servers, func(ctx context.Context, node ztv1.NodeServiceClient) (err error) {
			resp, err = node.Enrol(ctx, req)
			return err
		})
		var r *refusal
		if err == nil || errors.As(err, &r) {
			return resp, err
		}
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		pause := max(wait, asked(err))
		a.log.Warn("no server enrols now", "error", err, "retry_in", pause)
		if sleep(ctx, pause) != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// enrolError says what to do about a refusal.
func enrolError(err error, workload string) error {
	switch status.Code(err) {
	case codes.NotFound:
		return fmt.Errorf("enrol: there is no workload %s yet: apply a spec that has it; the token is still good: %w", workload, err)
	case codes.PermissionDenied:
		return fmt.Errorf("enrol: refused; if it is the token: it works once, for one workload and a limited time; "+
			"ztctl token create --workload %s makes a new one: %w", workload, err)
	}
	return fmt.Errorf("enrol: %w", err)
}

// checkAnswer compares an answer to what was asked for.
func checkAnswer(resp *ztv1.EnrolResponse, token identity.Token, want record) error {
	roots, err := identity.ParseDER(resp.GetCertificates().GetRoots())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(roots, func(c *x509.Certificate) bool { return identity.PinOf(c) == token.Pin })
	if i < 0 {
		return errors.New("roots without the one that the token pins")
	}
	td, err := identity.RootTrustDomain(roots[i])
	if err != nil {
		return err
	}
	for _, f := range []struct{ name, want, have string }{
		{"instance", want.Instance, resp.Instance},
		{"trust domain of the root", td, resp.TrustDomain},
		{"trust domain", want.TrustDomain, resp.TrustDomain},
		{"address", want.Address, resp.Address},
		{"egress address", want.EgressAddress, resp.EgressAddress},
	} {
		if f.want != "" && f.want != f.have {
			return fmt.Errorf("%s %q, not %q", f.name, f.have, f.want)
		}
	}
	for _, ip := range []string{resp.Address, resp.EgressAddress} {
		if _, err := netip.ParseAddr(ip); err != nil {
			return err
		}
	}
	return nil
}

// with returns h with what a server has signed for these keys, after a look at
// it. What the server did not sign stays.
func (h *holding) with(issued *ztv1.Issued, at placed, nodeKey, svidKey identity.PrivateKey, now time.Time) (*holding, error) {
	next := *h
	if len(issued.GetRoots()) > 0 {
		roots, err := identity.ParseDER(issued.GetRoots())
		if err != nil {
			return nil, err
		}
		for _, r := range roots {
			if td, err := identity.RootTrustDomain(r); err != nil || td != h.TrustDomain {
				return nil, errors.Join(fmt.Errorf("a root of trust domain %q, not %q", td, h.TrustDomain), err)
			}
		}
		next.roots = roots
	}
	if !nodeKey.IsZero() {
		pair, err := newPair(nodeKey, issued.GetNodeChain())
		if err != nil {
			return nil, fmt.Errorf("node certificate: %w", err)
		}
		if uri, err := identity.URI(pair.Leaf()); err != nil || uri != identity.NodeID(h.TrustDomain, h.Instance) {
			return nil, errors.Join(fmt.Errorf("node certificate: for %q", uri), err)
		}
		next.node = pair
	}
	if !svidKey.IsZero() {
		pair, err := newPair(svidKey, issued.GetSvidChain())
		if err != nil {
			return nil, fmt.Errorf("workload certificate: %w", err)
		}
		if uri, err := identity.VerifySVID(pair.Chain, h.TrustDomain, next.roots, now); err != nil || uri != h.svidID() {
			return nil, errors.Join(fmt.Errorf("workload certificate: for %q", uri), err)
		}
		next.svid = pair
	}
	next.record = next.record.at(at)
	return &next, nil
}

// placed is what an answer says of where the servers are.
type placed interface {
	GetServers() []string
	GetNear() uint32
}

// at returns r with the servers of an answer, if they can be called.
func (r record) at(p placed) record {
	servers, near := p.GetServers(), int(p.GetNear())
	if len(servers) > 0 && near <= len(servers) && !slices.ContainsFunc(servers, func(s string) bool { return !isHostPort(s) }) {
		r.Servers, r.Near = slices.Clone(servers), near
	}
	return r
}

// sorted is the servers in an order that depends on nobody who answers, the near first.
func (r record) sorted() []string {
	out := slices.Clone(r.Servers)
	slices.Sort(out[:r.Near])
	slices.Sort(out[r.Near:])
	return out
}

func newPair(key identity.PrivateKey, chain [][]byte) (*identity.KeyPair, error) {
	certs, err := identity.ParseDER(chain)
	if err != nil {
		return nil, err
	}
	return identity.NewKeyPair(key, certs)
}

// svidID is the SPIFFE ID of the workload.
func (r record) svidID() string {
	namespace, name, _ := strings.Cut(r.Workload, "/")
	return identity.WorkloadID(r.TrustDomain, namespace, name)
}

// bound is the address to call servers from; empty: any.
func (r record) bound() string {
	if r.BindAddress {
		return r.Address
	}
	return ""
}

// caller calls servers as the instance of h.
func (a *Agent) caller(h *holding) (caller, error) {
	config, err := identity.ClientConfig(identity.Trust{
		TrustDomain: h.TrustDomain,
		Roots:       func() []*x509.Certificate { return h.roots },
		Certificate: func() (*tls.Certificate, error) { return h.node.TLS(), nil },
		Now:         a.now,
	})
	if err != nil {
		return caller{}, err
	}
	config.ServerName = xds.ServerName // it waits as long as an Envoy
	return caller{from: h.bound(), tls: config}, nil
}

// canonicalIP writes an IP address as servers do; empty stays.
func canonicalIP(s string) string {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.Unmap().String()
	}
	return s
}
