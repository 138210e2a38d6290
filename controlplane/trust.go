package controlplane

import (
	"bytes"
	"errors"
	"maps"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// tryAgain is how soon what could not be done is tried again.
const tryAgain = 5 * time.Second

var errNoLeaderHeard = errors.New("no leader heard for too long")

// mayIssue says why this server, which heard a leader last at a time, must not issue
// certificates now.
func (s *Server) mayIssue(heard time.Time) error {
	if err := s.clock.check(); err != nil {
		return err
	}
	if s.cfg.Now().Sub(heard) > api.LeaderSilence {
		return errNoLeaderHeard
	}
	return nil
}

// issue makes the workload's certificate for an instance without an agent. Where
// that is not possible now, it is tried again; what it has stays.
func (r *reconciler) issue(id string, p *proxy) {
	if p.agent {
		return
	}
	svid, renewAt, err := r.newSVID(id, p.workload)
	switch {
	case err == nil:
		p.svid, p.renewAt = svid, renewAt
	case p.svid == nil && errors.Is(err, errNoLeaderHeard):
		p.renewAt = r.now() // a server that has just started hears one in a moment
	default:
		r.log.Error("certificate of a proxy not issued", "instance", id, "error", err)
		p.renewAt = r.now().Add(tryAgain)
	}
}

func (r *reconciler) newSVID(id string, ref spec.Ref) (*xds.Resource, time.Time, error) {
	if err := r.mayIssue(); err != nil {
		return nil, time.Time{}, err
	}
	if _, ok := r.served.state.Instance(id); !ok {
		return nil, time.Time{}, errNotEnrolled
	}
	pair, err := r.authority.MakeSVID(
		identity.WorkloadID(r.served.state.TrustDomain(), ref.Namespace, ref.Name), r.served.index.Settings(ref).SVIDTTL)
	if err != nil {
		return nil, time.Time{}, err
	}
	key, err := pair.Key.PEM()
	if err != nil {
		return nil, time.Time{}, err
	}
	leaf := pair.Leaf()
	return xds.SVID(identity.EncodePEM(pair.Chain), key.Reveal()), identity.RenewAt(leaf.NotBefore, leaf.NotAfter, 0), nil
}

// tellSecrets gives an instance what it takes from here: whose certificates it
// accepts, for each server-first port who may connect, and, if it has no agent, its
// certificate. Until that is there, nothing.
func (r *reconciler) tellSecrets(id string, p *proxy) {
	if !p.agent && p.svid == nil {
		return
	}
	secrets := []*xds.Resource{r.bundle}
	if p.svid != nil {
		secrets = append(secrets, p.svid)
	}
	if c := r.configs[p.workload]; c != nil {
		for _, in := range c.Inbound {
			if in.ServerFirst {
				secrets = append(secrets, xds.Peers(c.Config, in.Name, r.trust))
			}
		}
	}
	r.fleet.SetSecrets(id, secrets)
}

// tellTrust sends the secrets that a change may have changed: to everybody where it
// is whom to trust, else to those that are told something.
func (r *reconciler) tellTrust(tell map[string]*xds.Resources) {
	trust := r.served.trust(identity.EncodePEM(r.roots))
	if !maps.EqualFunc(trust, r.trust, bytes.Equal) {
		r.trust, r.bundle = trust, xds.Bundle(trust)
		for id, p := range r.connected {
			r.tellSecrets(id, p)
		}
		return
	}
	for id := range tell {
		if p := r.connected[id]; p != nil {
			r.tellSecrets(id, p)
		}
	}
}
