package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// renewTimeout bounds one round over the servers.
const renewTimeout = time.Minute

// renewer keeps one certificate from ending.
func (a *Agent) renewer(name string, pair *identity.KeyPair, renew func(context.Context) (*identity.KeyPair, error)) *identity.Renewer {
	log := a.log.With("certificate", name)
	return &identity.Renewer{
		NotBefore: pair.Leaf().NotBefore, NotAfter: pair.NotAfter(),
		Now: a.now, Timeout: renewTimeout,
		Renew: func(ctx context.Context) (notBefore, notAfter time.Time, err error) {
			p, err := renew(ctx)
			if err != nil {
				return time.Time{}, time.Time{}, err
			}
			return p.Leaf().NotBefore, p.NotAfter(), nil
		},
		Report: func(r identity.Renewal) {
			switch {
			case r.Err == nil:
				log.Info("renewed", "not_after", r.NotAfter, "next", r.Next)
			case r.Expired:
				log.Error("the certificate has ended and is not renewed", "error", r.Err, "not_after", r.NotAfter, "next", r.Next)
			default:
				log.Warn("not renewed", "error", r.Err, "not_after", r.NotAfter, "next", r.Next)
			}
		},
	}
}

// renewSVID gets a workload certificate for a fresh key.
func (a *Agent) renewSVID(ctx context.Context) (*identity.KeyPair, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return nil, err
	}
	if err := a.renew(ctx, &ztv1.RenewRequest{SvidCsr: csr}, identity.PrivateKey{}, key); err != nil {
		return nil, err
	}
	return a.holding.Load().svid, nil
}

// renewNode gets a certificate for the instance's own key.
func (a *Agent) renewNode(ctx context.Context) (*identity.KeyPair, error) {
	key := a.holding.Load().node.Key // the same for the life of the instance
	csr, err := identity.NewCSR(key)
	if err != nil {
		return nil, err
	}
	if err := a.renew(ctx, &ztv1.RenewRequest{NodeCsr: csr}, key, identity.PrivateKey{}); err != nil {
		return nil, err
	}
	return a.holding.Load().node, nil
}

// renew makes one call and takes the answer into use. An instance that may not
// renew any more is enrolled again if there is a new token, which brings both
// certificates.
func (a *Agent) renew(ctx context.Context, req *ztv1.RenewRequest, nodeKey, svidKey identity.PrivateKey) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	h := a.holding.Load()
	if !a.now().Before(h.node.NotAfter()) {
		return a.again(ctx, h)
	}
	c, err := a.caller(h)
	if err != nil {
		return err
	}
	c.tls.ServerName = identity.RenewalServerName // of all calls only these have that lane
	var resp *ztv1.RenewResponse
	err = c.each(ctx, a.servers(h), func(ctx context.Context, node ztv1.NodeServiceClient) (err error) {
		resp, err = node.Renew(ctx, req)
		return err
	})
	if status.Code(err) == codes.PermissionDenied {
		if again := a.again(ctx, h); !errors.Is(again, ErrNoToken) {
			return again
		}
	}
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	next, err := h.with(resp.Certificates, resp, nodeKey, svidKey, a.now())
	if err != nil {
		return fmt.Errorf("renew: the server's answer: %w", err)
	}
	failpoint.Hit("agent.renew.answered")
	return a.take(next)
}

// take puts h into use: in memory and for the Envoy first, since a full disk is
// no reason to let a certificate end; then on disk. Its caller holds changing,
// or is alone.
func (a *Agent) take(h *holding) error {
	before := a.holding.Swap(h)
	if a.secrets != nil { // else Run has not come that far
		if err := a.secrets.publish(h); err != nil {
			return err
		}
	}
	if err := a.dir.save(h); err != nil {
		return err
	}
	if before == nil || slices.Equal(before.sorted(), h.sorted()) && before.Near == h.Near {
		return nil
	}
	a.log.Info("the control plane has other servers now; Envoy takes them at its next start", "servers", h.Servers)
	return a.writeBootstrap(h)
}
