package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

// reconciler turns what was agreed into what the connected proxies are told. It
// is called from three sides: the store's watch (a new state), the fleet (a proxy
// connects) and a clock (documents begin and end, certificates and gates age); one
// lock makes them one loop.
//
// What it serves always comes from one state that compiled as a whole. If a newer
// one does not, it keeps the last good one and says so.
type reconciler struct {
	fleet     *serve.Fleet
	outside   *outside
	views     *view.Cache
	authority *identity.Authority
	roots     []*x509.Certificate
	// forget drops what proxies of a workload have reported of its shadow policy.
	forget func(workload string)
	// mayIssue says why this server must not issue certificates now: errClock, or
	// errNoLeaderHeard.
	mayIssue func() error
	// newest is the newest state here, which may be ahead of the one that is served; nil:
	// none is.
	newest func() *state.State
	log    *slog.Logger
	now    func() time.Time
	skew   prometheus.Gauge

	mu        sync.Mutex // guards what follows; held while the fleet is told
	served    *served    // the last good one; nil before the first
	next      time.Time  // when served means something else; zero: never
	shared    *pool
	gates     gates     // closed now
	gatesAt   time.Time // the moment up to which they are folded
	trust     map[string][]byte
	bundle    *xds.Resource               // of trust
	configs   map[spec.Ref]*configuration // of served, of workloads with a connected instance
	connected map[string]*proxy           // by instance
	advanced  chan struct{}               // closed and replaced by OnState
}

// proxy is a connected instance.
type proxy struct {
	workload spec.Ref
	bound    bound
	agent    bool          // holds its certificate; else it comes from here:
	svid     *xds.Resource // nil: not issued yet
	renewAt  time.Time
}

// newReconciler completes what start has filled in.
func newReconciler(r *reconciler, metrics prometheus.Registerer) *reconciler {
	r.gates, r.shared = gates{}, newPool()
	r.configs = map[spec.Ref]*configuration{}
	r.connected = map[string]*proxy{}
	r.advanced = make(chan struct{})
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
	defer func() {
		close(r.advanced)
		r.advanced = make(chan struct{})
	}()
	if err := r.advance(st); err != nil {
		r.skew.Set(1)
		r.log.Error("revision not served; the last good one is", "revision", st.Revision(), "error", err)
		return nil
	}
	r.skew.Set(0)
	return nil
}

// moment is the time that documents are judged at. It only grows.
func (r *reconciler) moment() time.Time {
	now := r.now()
	if r.served != nil && now.Before(r.served.at) {
		return r.served.at
	}
	return now
}

// advance makes st, as of now, the state that is served. On error nothing has
// changed.
func (r *reconciler) advance(st *state.State) error {
	next, err := look(r.views, st, r.moment(), r.log)
	if err != nil {
		return err
	}
	old := r.served
	if old == nil {
		old = nothingServed(st.TrustDomain())
	}
	changed := state.Diff(old.state, st)
	keys := keysOf(changed.Keys)
	touched := next.touched(old, keys)

	closed := r.gates.clone()
	foldedAt := closed.fold(st, old.view, next.view, old.state.Revision(), keys, r.gatesAt, next.at)
	configs, tell, err := r.compile(next, touched)
	if err != nil {
		return err
	}

	// Nothing can fail from here on.
	regated := r.gates.changed(closed)
	r.served, r.gates, r.gatesAt = next, closed, foldedAt
	r.next, _ = next.next()
	for _, id := range changed.InstanceIDs {
		switch i, enrolled := st.Instance(id); {
		case r.connected[id] == nil:
		case enrolled:
			r.fleet.SetZone(id, i.Zone)
		default:
			tell[id] = nil
			delete(r.connected, id)
		}
	}
	r.fleet.SetEndpoints(r.endpoints(old.state, changed, touched))
	r.outside.want(next.hosts(), serverHosts(st))
	for _, ref := range touched {
		r.forgetShadow(ref, r.configs[ref], configs[ref])
		delete(r.configs, ref)
		if c := configs[ref]; c != nil {
			r.configs[ref] = c
		}
	}
	for _, workload := range regated {
		r.tellGates(workload)
	}
	r.tellTrust(tell)
	r.fleet.Set(st.Revision(), tell)
	return nil
}

// forgetShadow drops what was reported of another shadow policy than the one that
// a workload has now. Its proxies may report here and have their configuration from
// another server; then nothing was compiled here, and any change counts as one.
func (r *reconciler) forgetShadow(ref spec.Ref, was, is *configuration) {
	if was == nil || is == nil || !reflect.DeepEqual(shadowsOf(was.Config), shadowsOf(is.Config)) {
		r.forget(ref.String())
	}
}

func shadowsOf(c *xds.Config) map[string]*xds.Shadow {
	out := map[string]*xds.Shadow{}
	for _, in := range c.Inbound {
		out["in/"+in.Name] = in.Shadow
	}
	for _, e := range c.Egress {
		out["ext/"+e.Service] = e.Shadow
	}
	return out
}

// serverHosts is where the servers can be reached: addresses and names, sorted.
func serverHosts(st *state.State) []string {
	var out []string
	for s := range st.Servers() {
		for _, address := range []string{s.AdminAddress, s.NodeAddress, s.ClusterAddress} {
			if host, _, err := net.SplitHostPort(address); err == nil {
				out = append(out, host)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// compile makes what the connected instances of the touched workloads are told,
// all of it or nothing.
func (r *reconciler) compile(next *served, touched []spec.Ref) (map[spec.Ref]*configuration, map[string]*xds.Resources, error) {
	made := make([]*configuration, len(touched))
	var all errgroup.Group
	all.SetLimit(runtime.GOMAXPROCS(0))
	for n, ref := range touched {
		was := r.configs[ref]
		if was == nil {
			continue // nobody of it is connected here
		}
		if _, exists := next.index.Workload(ref); !exists {
			continue // its instances are gone, too
		}
		all.Go(func() error {
			compiled, err := next.compile(ref)
			if err != nil {
				return fmt.Errorf("compile %s: %w", ref, err)
			}
			if made[n], err = was.again(compiled); err != nil {
				return fmt.Errorf("build %s: %w", ref, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, nil, err
	}
	configs, tell := map[spec.Ref]*configuration{}, map[string]*xds.Resources{}
	for n, ref := range touched {
		c := made[n]
		if c == nil {
			continue
		}
		configs[ref] = c
		for i := range next.state.InstancesOf(ref.String()) {
			p := r.connected[i.Id]
			if p == nil {
				continue
			}
			// What its listeners are is no promise: it may be noted before all is built.
			var err error
			if tell[i.Id], p.bound, err = c.build(i, p.bound, r.shared); err != nil {
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

// endpoints are the clusters whose endpoints a change may have moved: those of
// workloads that were touched, or of which an instance came, went or moved.
func (r *reconciler) endpoints(was *state.State, changed state.Changes, touched []spec.Ref) map[string]*xds.Assignment {
	refs := map[string]bool{}
	for _, ref := range touched {
		refs[ref.String()] = true
	}
	for _, id := range changed.InstanceIDs {
		for _, st := range []*state.State{was, r.served.state} {
			if i, ok := st.Instance(id); ok {
				refs[i.Workload] = true
			}
		}
	}
	out := map[string]*xds.Assignment{}
	for name := range refs {
		ref, err := spec.ParseRef(name, "")
		if err != nil {
			continue // the door lets no such workload in
		}
		w, ok := r.served.index.Workload(ref)
		if !ok {
			continue // no cluster names it any more
		}
		for _, port := range w.Ports {
			cluster := xds.ClusterName(name, port.Name)
			var eps []xds.Endpoint
			for i := range r.served.state.InstancesOf(name) {
				if !i.Withdrawn {
					eps = append(eps, xds.Endpoint{Address: i.Address, Port: port.Number, Zone: i.Zone, Weight: i.Weight})
				}
			}
			out[cluster] = xds.Assign(cluster, eps)
		}
	}
	return out
}

// tellGates sends a workload's connected instances its closed gates.
func (r *reconciler) tellGates(workload string) {
	gates := r.gatesOf(workload)
	for i := range r.served.state.InstancesOf(workload) {
		if r.connected[i.Id] != nil {
			r.fleet.SetGates(i.Id, gates)
		}
	}
}

// gatesOf is the layer of a workload's closed gates: one value, as most have none.
func (r *reconciler) gatesOf(workload string) *xds.Resource {
	return r.shared.one(xds.Gates(r.gates.keys(workload)))
}

var errNotEnrolled = errors.New("not enrolled")

// OnConnect is the fleet's: an instance has come, and is told everything.
func (r *reconciler) OnConnect(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.connect(id)
	if errors.Is(err, errNotEnrolled) && r.awaitEnrolled(id) {
		err = r.connect(id)
	}
	if err != nil {
		r.log.Error("proxy not served", "instance", id, "error", err)
		r.fleet.Set(r.fleet.Revision(), map[string]*xds.Resources{id: nil})
	}
}

// awaitEnrolled waits for the state that has an instance which was enrolled a moment ago:
// its enrolment is applied, but states are served a sync later. It is called with mu held,
// which it gives up meanwhile.
func (r *reconciler) awaitEnrolled(id string) bool {
	if r.newest == nil {
		return false
	}
	patience := time.NewTimer(servedWithin)
	defer patience.Stop()
	for {
		if _, is := r.served.state.Instance(id); is {
			return true
		}
		if _, is := r.newest().Instance(id); !is {
			return false
		}
		advanced := r.advanced
		r.mu.Unlock()
		late := false
		select {
		case <-advanced:
		case <-patience.C:
			late = true
		}
		r.mu.Lock()
		if late {
			return false
		}
	}
}

// servedWithin is how long a proxy that was just enrolled waits for the state that has it,
// on a disk that is slow.
const servedWithin = 2 * time.Second

func (r *reconciler) connect(id string) error {
	if r.served == nil {
		return errors.New("no state yet")
	}
	i, ok := r.served.state.Instance(id)
	if !ok {
		return errNotEnrolled
	}
	ref, err := spec.ParseRef(i.Workload, "")
	if err != nil {
		return err
	}
	c := r.configs[ref]
	if c == nil {
		compiled, err := r.served.compile(ref)
		if err != nil {
			return err
		}
		c = newConfiguration(compiled)
	}
	p := &proxy{workload: ref, agent: i.Agent}
	var resources *xds.Resources
	if resources, p.bound, err = c.build(i, bound{}, r.shared); err != nil {
		return err
	}
	r.configs[ref] = c
	r.connected[id] = p
	r.issue(id, p) // without a certificate its listeners stay closed, and all else waits ready
	r.tellSecrets(id, p)
	r.fleet.SetZone(id, i.Zone)
	r.fleet.SetGates(id, r.gatesOf(i.Workload))
	r.fleet.Set(r.served.state.Revision(), map[string]*xds.Resources{id: resources})
	return nil
}

// OnDisconnect is the fleet's: the last stream of an instance has ended.
func (r *reconciler) OnDisconnect(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.connected, id)
	if r.served == nil {
		return
	}
	gone, ok := r.served.state.Instance(id)
	if !ok {
		return // its workload's configuration goes with the next change, or with its last instance
	}
	for i := range r.served.state.InstancesOf(gone.Workload) {
		if r.connected[i.Id] != nil {
			return
		}
	}
	if ref, err := spec.ParseRef(gone.Workload, ""); err == nil {
		delete(r.configs, ref)
	}
}

// Run lets documents, certificates and gates age, until ctx ends.
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
	if r.served == nil {
		return
	}
	now := r.moment()
	if !r.next.IsZero() && !now.Before(r.next) {
		if err := r.advance(r.served.state); err != nil {
			r.log.Error("what has begun or ended is not served", "error", err)
			r.next = now.Add(tryAgain)
		}
	}
	for id, p := range r.connected {
		if !p.agent && !now.Before(p.renewAt) {
			r.issue(id, p)
			r.tellSecrets(id, p)
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
	if r.served == nil {
		return 0, false
	}
	return r.served.state.Revision(), true
}

// called is the service and the port that a proxy of a workload judges, where it
// takes requests for an authority on a port of its own: one of the workload's, or,
// on the port for its application's calls, a service outside of the mesh; false
// where there is none. The proxy may have its configuration from another server: it
// reports to any.
func (r *reconciler) called(workload string, local uint32, authority string) (service, port string, ok bool) {
	ref, err := spec.ParseRef(workload, "")
	if err != nil {
		return "", "", false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served == nil {
		return "", "", false
	}
	ix := r.served.index
	if w, ok := ix.Workload(ref); ok {
		for _, p := range w.Ports {
			if p.Number == local {
				return workload, p.Name, true
			}
		}
	}
	if local != xds.EgressPort {
		return "", "", false
	}
	if name, _, err := net.SplitHostPort(authority); err == nil {
		authority = name
	}
	for _, e := range ix.Externals(ref) {
		if slices.Contains(e.Hosts, strings.ToLower(authority)) {
			return e.Service.String(), xds.ExternalPort, true
		}
	}
	return "", "", false
}
