package controlplane

import (
	"log/slog"
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds"
)

// served is what a state means at a moment. It never changes.
type served struct {
	state *state.State
	view  *view.View // of state, whatever the time
	at    time.Time  // the moment

	index  *policy.Index // of view, without what has ended at the moment
	lifted []spec.Key    // what has ended, sorted

	shadow         *policy.Index // the same of what is proposed; nil: nothing is
	proposed       []spec.Key    // what is proposed, in the documents' order of keys
	liftedInShadow []spec.Key
}

// nothingServed is what is served before the first state: no documents.
func nothingServed(trustDomain string) *served {
	v := view.New(trustDomain)
	return &served{state: state.New(), view: v, index: v.Index}
}

// look is what st means at a moment. What is proposed and cannot be read by this
// version is left out: it has no verdict to change.
func look(views *view.Cache, st *state.State, at time.Time, log *slog.Logger) (*served, error) {
	v, err := views.At(st)
	if err != nil {
		return nil, err
	}
	s := &served{state: st, view: v, at: at}
	s.index, s.lifted = v.Index.Lift(at)
	shadow, keys, err := proposed(v, st)
	if err != nil {
		log.Error("proposal not judged", "error", err)
	}
	if len(keys) > 0 {
		s.proposed = keys
		s.shadow, s.liftedInShadow = shadow.Index.Lift(at)
	}
	return s, nil
}

// next is when s means something else; false: never.
func (s *served) next() (time.Time, bool) {
	first, ok := s.index.NextChange(s.at)
	if s.shadow != nil {
		if t, also := s.shadow.NextChange(s.at); also && (!ok || t.Before(first)) {
			first, ok = t, true
		}
	}
	return first, ok
}

// shadowed is the index that shadow grants are judged by.
func (s *served) shadowed() *policy.Index {
	if s.shadow != nil {
		return s.shadow
	}
	return s.index
}

// compile makes the configuration of a workload.
func (s *served) compile(ref spec.Ref) (*xds.Config, error) {
	return compile.Workload(s.index, s.shadow, ref)
}

// touched are the workloads whose configuration differs from that of old, sorted;
// changed are the keys of the documents in which the two states differ.
func (s *served) touched(old *served, changed []spec.Key) []spec.Ref {
	keys := slices.Concat(changed, old.lifted, s.lifted)
	out := s.index.Touched(old.index, keys)
	if s.shadow == nil && old.shadow == nil {
		return out
	}
	keys = slices.Concat(keys, old.proposed, s.proposed, old.liftedInShadow, s.liftedInShadow)
	out = append(out, s.shadowed().Touched(old.shadowed(), keys)...)
	slices.SortFunc(out, spec.Ref.Compare)
	return slices.Compact(out)
}

// trust is whose certificates proxies accept: trust domain → roots as PEM. The
// control plane's own domain is never among them.
func (s *served) trust(roots []byte) map[string][]byte {
	t := s.index.Trust()
	out := map[string][]byte{}
	for _, alias := range t.Aliases {
		out[alias] = roots
	}
	for domain, bundle := range t.Bundles {
		out[domain] = []byte(bundle)
	}
	delete(out, "control."+s.state.TrustDomain())
	out[s.state.TrustDomain()] = roots
	return out
}

// hosts is what is to be resolved outside of the mesh, by cluster. What is only
// proposed is resolved, too; an Exception that is only proposed accepts nothing.
func (s *served) hosts() map[string]host {
	out := map[string]host{}
	if s.shadow != nil {
		for _, h := range s.shadow.Hosts() {
			cluster := clusterOf(h)
			out[cluster] = host{cluster: cluster, name: h.Host, port: h.Port}
		}
	}
	for _, h := range s.index.Hosts() {
		cluster := clusterOf(h)
		out[cluster] = host{cluster: cluster, name: h.Host, port: h.Port, allowed: h.Allowed}
	}
	return out
}

func clusterOf(h policy.ExternalHost) string {
	if h.Subject.Kind == spec.KindIdentityProvider {
		return xds.JWKSCluster(h.Subject.Name)
	}
	return xds.ExternalCluster(spec.Ref{Namespace: h.Subject.Namespace, Name: h.Subject.Name}.String(), h.Host)
}
