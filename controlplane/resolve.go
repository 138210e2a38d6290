package controlplane

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/xds"
)

// Resolver looks the addresses of a host up; network is always "ip", and a name
// that a spec says ends in a dot, so that no search list is tried. *net.Resolver is
// one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Resolution is how the hosts outside of the mesh that services and providers of
// keys name are resolved.
type Resolution struct {
	Resolver Resolver      // default: that of this machine
	Interval time.Duration // default 30 s
}

func (r Resolution) withDefaults() Resolution {
	if r.Resolver == nil {
		r.Resolver = &net.Resolver{}
	}
	if r.Interval == 0 {
		r.Interval = 30 * time.Second
	}
	return r
}

// Bounds of looking hosts up.
const (
	lookupTimeout = 5 * time.Second
	lookupsAtOnce = 8
	maxAddresses  = 64 // of one host
)

// host is one host outside of the mesh and the cluster that leads to it.
type host struct {
	cluster string
	name    string
	port    uint32
	allowed []netip.Prefix // reserved addresses that an Exception accepts
}

func (h host) equal(o host) bool {
	return h.cluster == o.cluster && h.name == o.name && h.port == o.port && slices.Equal(h.allowed, o.allowed)
}

// outside keeps the endpoints of what lies outside of the mesh up to date. The
// names are other people's, and so is what they resolve to: each time, addresses
// that lead back inside are left out, whatever was found before.
//
// While a name cannot be resolved, what it resolved to last is kept.
type outside struct {
	resolution Resolution
	publish    func(map[string]*xds.Assignment) // Fleet.SetEndpoints
	log        *slog.Logger
	now        func() time.Time
	changed    chan struct{} // holds one: hosts were added

	lookups *prometheus.CounterVec
	refused prometheus.Counter

	mu      sync.Mutex // guards what follows; held while publishing, never while looking up
	hosts   map[string]host
	servers []string // the hosts that servers are reached by: names and addresses
	found   map[string]*found
	refusal map[string][]netip.Addr // what was left out, by cluster; said once
}

// found is what a name has resolved to.
type found struct {
	addresses []netip.Addr // at the last success, sorted; nil: never
	next      time.Time    // when it is looked up again
	failing   bool
}

func newOutside(o *outside, metrics prometheus.Registerer) *outside {
	o.resolution = o.resolution.withDefaults()
	o.changed = make(chan struct{}, 1)
	o.hosts, o.found, o.refusal = map[string]host{}, map[string]*found{}, map[string][]netip.Addr{}
	o.lookups = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "zt_controlplane_lookups_total", Help: "Lookups of hosts outside of the mesh, by result.",
	}, []string{"result"})
	o.refused = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "zt_controlplane_refused_addresses_total",
		Help: "Addresses of hosts outside of the mesh that were left out since they are reserved or a server's.",
	})
	metrics.MustRegister(o.lookups, o.refused)
	return o
}

// want replaces what is to be resolved: hosts by their clusters, and where the
// servers are. What is known of a host already is told anew at once, by what is
// allowed now.
func (o *outside) want(hosts map[string]host, servers []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	same := slices.Equal(o.servers, servers)
	old := o.hosts
	o.hosts, o.servers = hosts, servers
	out := map[string]*xds.Assignment{}
	for cluster := range old {
		if _, still := hosts[cluster]; !still {
			out[cluster] = nil
			delete(o.refusal, cluster)
		}
	}
	for cluster, h := range hosts {
		if had, was := old[cluster]; !was || !same || !had.equal(h) {
			out[cluster] = o.endpoints(h)
		}
	}
	names := o.names()
	for name := range o.found {
		if !names[name] {
			delete(o.found, name)
		}
	}
	for name := range names {
		if o.found[name] == nil {
			o.found[name] = &found{}
		}
	}
	if len(out) > 0 {
		o.publish(out)
	}
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// names are what is to be looked up. mu is held.
func (o *outside) names() map[string]bool {
	out := map[string]bool{}
	for _, h := range o.hosts {
		out[h.name] = true
	}
	if len(out) == 0 {
		return out
	}
	for _, s := range o.servers {
		out[s] = true
	}
	return out
}

// endpoints are the addresses of a host that may be told. Nothing is told before
// it is known where the servers are. mu is held.
func (o *outside) endpoints(h host) *xds.Assignment {
	var eps []xds.Endpoint
	servers, known := o.ownAddresses()
	f := o.found[h.name]
	if f != nil && known {
		var refused []netip.Addr
		for _, a := range f.addresses {
			if (isReserved(a) || servers[a]) && !slices.ContainsFunc(h.allowed, func(p netip.Prefix) bool { return p.Contains(a) }) {
				refused = append(refused, a)
				continue
			}
			if len(eps) < maxAddresses {
				eps = append(eps, xds.Endpoint{Address: a.String(), Port: h.port})
			}
		}
		o.refused.Add(float64(len(refused)))
		if len(refused) > 0 && !slices.Equal(refused, o.refusal[h.cluster]) {
			o.log.Warn("reserved addresses of an external host left out", "cluster", h.cluster, "host", h.name, "addresses", refused)
		}
		o.refusal[h.cluster] = refused
	}
	return xds.Assign(h.cluster, eps)
}

// ownAddresses are where the servers are, and whether all of that is known.
func (o *outside) ownAddresses() (map[netip.Addr]bool, bool) {
	out := map[netip.Addr]bool{}
	for _, s := range o.servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out[a.Unmap().WithZone("")] = true
			continue
		}
		f := o.found[s]
		if f == nil || f.addresses == nil {
			return nil, false
		}
		for _, a := range f.addresses {
			out[a] = true
		}
	}
	return out, true
}

// Run looks hosts up until ctx ends.
func (o *outside) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.changed:
		case <-timer.C:
		}
		o.round(ctx)
		timer.Reset(o.wait())
	}
}

// wait is how long until a name is due.
func (o *outside) wait() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	wait := o.resolution.Interval
	for _, f := range o.found {
		wait = min(wait, f.next.Sub(o.now()))
	}
	return min(max(wait, 10*time.Millisecond), time.Second) // the clock may be another than the timer's
}

// round looks every name up that is due, and tells what has changed.
func (o *outside) round(ctx context.Context) {
	o.mu.Lock()
	now := o.now()
	var due []string
	for name, f := range o.found {
		if !now.Before(f.next) {
			due = append(due, name)
		}
	}
	o.mu.Unlock()
	slices.Sort(due)
	var wg sync.WaitGroup
	room := make(chan struct{}, lookupsAtOnce)
	for _, name := range due {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-room }()
			o.lookup(ctx, name)
		})
	}
	wg.Wait()
}

func (o *outside) lookup(ctx context.Context, name string) {
	timed, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	got, err := o.resolution.Resolver.LookupNetIP(timed, "ip", o.question(name))
	if ctx.Err() != nil {
		return
	}
	addresses := make([]netip.Addr, 0, len(got))
	for _, a := range got {
		if a.IsValid() {
			addresses = append(addresses, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)

	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.found[name]
	if f == nil {
		return // nobody wants it any more
	}
	f.next = o.now().Add(jitter(o.resolution.Interval))
	if err != nil || len(addresses) == 0 {
		o.lookups.WithLabelValues("failed").Inc()
		if !f.failing {
			o.log.Warn("external host not resolved; what was known of it is kept", "host", name, "error", err)
		}
		f.failing = true
		return
	}
	o.lookups.WithLabelValues("resolved").Inc()
	f.failing = false
	if slices.Equal(f.addresses, addresses) {
		return
	}
	f.addresses = addresses
	ofServer := slices.Contains(o.servers, name)
	out := map[string]*xds.Assignment{}
	for cluster, h := range o.hosts {
		if h.name == name || ofServer {
			out[cluster] = o.endpoints(h)
		}
	}
	o.publish(out)
}

// question is what the resolver is asked for a name.
func (o *outside) question(name string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := netip.ParseAddr(name); err == nil || slices.Contains(o.servers, name) {
		return name
	}
	return strings.TrimSuffix(name, ".") + "."
}

// jitter keeps the servers of a cluster from asking all at once.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d)/5+1)) //nolint:gosec // no secret
}
