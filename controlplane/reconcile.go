package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// reconciler turns what was agreed into what the connected proxies are told. It
// is called from three sides: the store's watch (a new state), the fleet (a proxy
// connects) and a clock (certificates and gates age); one lock makes them one
// loop.
//
// What it serves always comes from one state that compiled as a whole. If a newer
// one does not, it keeps the last good one and says so.
type reconciler struct {
	fleet     *serve.Fleet
	views     *view.Cache
	authority *identity.Authority
	roots     []*x509.Certificate
	// mayIssue says whether this server has heard a leader lately enough.
	mayIssue func() bool
	log      *slog.Logger
	now      func() time.Time
	skew     prometheus.Gauge

	mu        sync.Mutex   // guards what follows; held while the fleet is told
	state     *state.State // the last good one; nil before the first
	view      *view.View   // of state
	shared    *pool
	gates     gates                    // closed at state
	configs   map[spec.Ref]*xds.Config // compiled at state, of workloads with a connected instance
	connected map[string]*svid         // by instance
}

// svid is when a proxy without an agent is due for a certificate from here. One
// with an agent never is.
type svid struct {
	agent   bool
	renewAt time.Time
}

// newReconciler completes what start has filled in.
func newReconciler(r *reconciler, metrics prometheus.Registerer) *reconciler {
	r.gates, r.shared = gates{}, newPool()
	r.configs = map[spec.Ref]*xds.Config{}
	r.connected = map[string]*svid{}
	r.skew = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "zt_controlplane_stuck", Help: "1 while the newest revision does not compile here and an older one is served.",
	})
	metrics.MustRegister(r.skew)
	return r
}

// OnState is the store's watch. Its error ends the process.
func (r *reconciler) OnState(st *state.State, _ state.Changes) error {
	if !st.Initialized() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.advance(st); err != nil {
		r.skew.Set(1)
		r.log.Error("revision not served; the last good one is", "revision", st.Revision(), "error", err)
		return nil
	}
	r.skew.Set(0)
	return nil
}

// advance makes st the state that is served. On error nothing has changed.
func (r *reconciler) advance(st *state.State) error {
	next, err := r.views.At(st)
	if err != nil {
		return err
	}
	was, old := r.state, r.view
	if was == nil {
		was, old = state.New(), view.New(st.TrustDomain())
	}
	changed := state.Diff(was, st)
	keys := keysOf(changed.Keys)
	touched := next.Index.Touched(old.Index, keys)

	closed := r.gates.clone()
	closed.fold(st, old, next, was.Revision(), keys, r.now())
	configs, tell, err := r.compile(st, next, touched)
	if err != nil {
		return err
	}

	// Nothing can fail from here on.
	regated := r.gates.changed(closed)
	r.state, r.view, r.gates = st, next, closed
	for _, id := range changed.InstanceIDs {
		if _, enrolled := st.Instance(id); !enrolled && r.connected[id] != nil {
			tell[id] = nil
			delete(r.connected, id)
		}
	}
	r.fleet.SetEndpoints(r.endpoints(was, changed, touched))
	for _, ref := range touched {
		delete(r.configs, ref)
		if c := configs[ref]; c != nil {
			r.configs[ref] = c
		}
	}
	for _, workload := range regated {
		r.tellGates(workload)
	}
	r.fleet.Set(st.Revision(), tell)
	return nil
}

// compile makes what the connected instances of the touched workloads are told,
// all of it or nothing.
func (r *reconciler) compile(st *state.State, next *view.View, touched []spec.Ref) (map[spec.Ref]*xds.Config, map[string]*xds.Resources, error) {
	configs, tell := map[spec.Ref]*xds.Config{}, map[string]*xds.Resources{}
	for _, ref := range touched {
		if r.configs[ref] == nil {
			continue // nobody of it is connected here
		}
		if _, exists := next.Index.Workload(ref); !exists {
			continue // its instances are gone, too
		}
		c, err := compile.Workload(next.Index, ref)
		if err != nil {
			return nil, nil, fmt.Errorf("compile %s: %w", ref, err)
		}
		configs[ref] = c
		for i := range st.InstancesOf(ref.String()) {
			if r.connected[i.Id] == nil {
				continue
			}
			if tell[i.Id], err = r.build(c, i); err != nil {
				return nil, nil, fmt.Errorf("build %s: %w", ref, err)
			}
		}
	}
	return configs, tell, nil
}

func keysOf(keys []state.Key) []spec.Key {
	out := make([]spec.Key, len(keys))
	for i, k := range keys {
		out[i] = spec.Key(k)
	}
	return out
}

func (r *reconciler) build(c *xds.Config, i *logv1.Instance) (*xds.Resources, error) {
	source := xds.FromADS
	if i.Agent {
		source = xds.FromAgent
	}
	built, err := xds.Build(c, xds.Instance{ID: i.Id, Address: i.Address, Egress: i.EgressAddress, Secrets: source})
	if err != nil {
		return nil, err
	}
	r.shared.share(built)
	return built, nil
}

// endpoints are the clusters whose endpoints a change may have moved: those of
// workloads that were touched, or of which an instance came, went or moved.
func (r *reconciler) endpoints(was *state.State, changed state.Changes, touched []spec.Ref) map[string]*xds.Resource {
	refs := map[string]bool{}
	for _, ref := range touched {
		refs[ref.String()] = true
	}
	for _, id := range changed.InstanceIDs {
		for _, st := range []*state.State{was, r.state} {
			if i, ok := st.Instance(id); ok {
				refs[i.Workload] = true
			}
		}
	}
	out := map[string]*xds.Resource{}
	for name := range refs {
		ref, err := spec.ParseRef(name, "")
		if err != nil {
			continue // the door lets no such workload in
		}
		w, ok := r.view.Index.Workload(ref)
		if !ok {
			continue // no cluster names it any more
		}
		for _, port := range w.Ports {
			cluster := xds.ClusterName(name, port.Name)
			var eps []xds.Endpoint
			for i := range r.state.InstancesOf(name) {
				if !i.Withdrawn {
					eps = append(eps, xds.Endpoint{Address: i.Address, Port: port.Number})
				}
			}
			out[cluster] = xds.Endpoints(cluster, eps)
		}
	}
	return out
}

// tellGates sends a workload's connected instances its closed gates.
func (r *reconciler) tellGates(workload string) {
	gates := xds.Gates(r.gates.keys(workload))
	for i := range r.state.InstancesOf(workload) {
		if r.connected[i.Id] != nil {
			r.fleet.SetGates(i.Id, gates)
		}
	}
}

var errNotEnrolled = errors.New("not enrolled")

// OnConnect is the fleet's: an instance has come, and is told everything.
func (r *reconciler) OnConnect(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.connect(id); err != nil {
		r.log.Error("proxy not served", "instance", id, "error", err)
		r.fleet.Set(r.fleet.Revision(), map[string]*xds.Resources{id: nil})
	}
}

func (r *reconciler) connect(id string) error {
	if r.state == nil {
		return errors.New("no state yet")
	}
	i, ok := r.state.Instance(id)
	if !ok {
		return errNotEnrolled
	}
	ref, err := spec.ParseRef(i.Workload, "")
	if err != nil {
		return err
	}
	c := r.configs[ref]
	if c == nil {
		if c, err = compile.Workload(r.view.Index, ref); err != nil {
			return err
		}
	}
	resources, err := r.build(c, i)
	if err != nil {
		return err
	}
	r.configs[ref] = c
	r.connected[id] = &svid{agent: i.Agent}
	r.issue(id) // without a certificate its listeners stay closed, and all else waits ready
	r.fleet.SetGates(id, xds.Gates(r.gates.keys(i.Workload)))
	r.fleet.Set(r.state.Revision(), map[string]*xds.Resources{id: resources})
	return nil
}

// issue gives an instance what it takes from here: nothing if it has an agent,
// otherwise its workload's certificate, made now, and the bundle. Where that is
// not possible now, it is tried again.
func (r *reconciler) issue(id string) {
	s := r.connected[id]
	if s.agent {
		r.fleet.SetSecrets(id, []*xds.Resource{xds.Bundle(map[string][]byte{r.state.TrustDomain(): identity.EncodePEM(r.roots)})})
		return
	}
	secrets, leaf, err := r.secrets(id)
	if err != nil {
		r.log.Error("certificate of a proxy not issued", "instance", id, "error", err)
		s.renewAt = r.now().Add(issueAgain)
		return
	}
	s.renewAt = identity.RenewAt(leaf.NotBefore, leaf.NotAfter, 0)
	r.fleet.SetSecrets(id, secrets)
}

// issueAgain is how soon a certificate that could not be issued is tried again.
const issueAgain = 5 * time.Second

func (r *reconciler) secrets(id string) ([]*xds.Resource, *x509.Certificate, error) {
	if !r.mayIssue() {
		return nil, nil, errors.New("no leader heard for too long")
	}
	i, ok := r.state.Instance(id)
	if !ok {
		return nil, nil, errNotEnrolled
	}
	ref, err := spec.ParseRef(i.Workload, "")
	if err != nil {
		return nil, nil, err
	}
	td := r.state.TrustDomain()
	pair, err := r.authority.MakeSVID(identity.WorkloadID(td, ref.Namespace, ref.Name), r.view.Index.Mesh().SVIDTTL)
	if err != nil {
		return nil, nil, err
	}
	key, err := pair.Key.PEM()
	if err != nil {
		return nil, nil, err
	}
	return []*xds.Resource{
		xds.SVID(identity.EncodePEM(pair.Chain), key.Reveal()),
		xds.Bundle(map[string][]byte{td: identity.EncodePEM(r.roots)}),
	}, pair.Leaf(), nil
}

// OnDisconnect is the fleet's: the last stream of an instance has ended.
func (r *reconciler) OnDisconnect(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.connected, id)
	if r.state == nil {
		return
	}
	gone, ok := r.state.Instance(id)
	if !ok {
		return // its workload's configuration goes with the next change, or with its last instance
	}
	for i := range r.state.InstancesOf(gone.Workload) {
		if r.connected[i.Id] != nil {
			return
		}
	}
	if ref, err := spec.ParseRef(gone.Workload, ""); err == nil {
		delete(r.configs, ref)
	}
}

// Run lets certificates and gates age, until ctx ends.
func (r *reconciler) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			r.age()
		}
	}
}

func (r *reconciler) age() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == nil {
		return
	}
	now := r.now()
	for id, s := range r.connected {
		if !s.agent && !now.Before(s.renewAt) {
			r.issue(id)
		}
	}
	for _, workload := range r.gates.expire(now) {
		r.tellGates(workload)
	}
}

// Served is the revision that is served here, and false before the first.
func (r *reconciler) Served() (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == nil {
		return 0, false
	}
	return r.state.Revision(), true
}

// judges says whether the proxies of a workload judge calls to a port of a
// service: to their own ports.
func (r *reconciler) judges(workload, service, port string) bool {
	if workload != service {
		return false
	}
	ref, err := spec.ParseRef(workload, "")
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.view == nil {
		return false
	}
	w, ok := r.view.Index.Workload(ref)
	return ok && slices.ContainsFunc(w.Ports, func(p policy.Port) bool { return p.Name == port })
}
