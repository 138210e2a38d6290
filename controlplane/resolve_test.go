package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/xds"
)

// zone is a Resolver whose answers a test sets; a name without one does not exist.
type zone struct {
	mu    sync.Mutex // guards what follows
	names map[string][]string
	asked int
	most  int // lookups at one time
	now   int
	slow  time.Duration
}

func (z *zone) set(name string, addresses ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.names == nil {
		z.names = map[string][]string{}
	}
	z.names[name] = addresses
}

// seen is how many lookups there were, and how many at one time.
func (z *zone) seen() (asked, most int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked, z.most
}

func (z *zone) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	z.asked++
	z.now++
	z.most = max(z.most, z.now)
	texts, slow := z.names[strings.TrimSuffix(host, ".")], z.slow
	z.mu.Unlock()
	defer func() { z.mu.Lock(); defer z.mu.Unlock(); z.now-- }()
	if slow > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(slow):
		}
	}
	if len(texts) == 0 {
		return nil, errors.New("no such host")
	}
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out, nil
}

// told is what a fleet would have been told: cluster → addresses.
type told struct {
	t  *testing.T
	mu sync.Mutex // guards what follows
	by map[string][]string
}

func (o *told) publish(clusters map[string]*xds.Assignment) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for cluster, r := range clusters {
		if r == nil {
			delete(o.by, cluster)
			continue
		}
		var cla endpointv3.ClusterLoadAssignment
		if err := r.For("").Body.UnmarshalTo(&cla); err != nil {
			o.t.Error(err)
		}
		addresses := []string{}
		for _, l := range cla.Endpoints {
			for _, e := range l.LbEndpoints {
				addresses = append(addresses, e.GetEndpoint().Address.GetSocketAddress().Address)
			}
		}
		o.by[cluster] = addresses
	}
}

func (o *told) is(want map[string][]string) {
	o.t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if diff := cmp.Diff(want, o.by); diff != "" {
		o.t.Errorf("told (-want +got):\n%s", diff)
	}
}

// resolving runs the loop in a bubble, whose clock is its own.
func resolving(t *testing.T, z *zone) (*outside, *told, func() (refused float64)) {
	t.Helper()
	to, metrics := &told{t: t, by: map[string][]string{}}, prometheus.NewRegistry()
	o := newOutside(&outside{
		resolution: Resolution{Resolver: z}, publish: to.publish, log: slog.New(slog.DiscardHandler), now: time.Now,
	}, metrics)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	return o, to, func() (n float64) {
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "zt_controlplane_refused_addresses_total" {
				n += f.Metric[0].Counter.GetValue()
			}
		}
		return n
	}
}

// asHosts are hosts by their clusters.
func asHosts(list ...host) map[string]host {
	out := map[string]host{}
	for _, h := range list {
		out[h.cluster] = h
	}
	return out
}

// TestResolution: what names resolve to is told, and told again when it changes; a
// name that fails keeps what it had; who is not wanted any more has nothing.
func TestResolution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{slow: time.Millisecond} // of the bubble's clock: nothing is found before a Sleep
		z.set("a.example", "192.0.2.2", "192.0.2.1", "::ffff:192.0.2.1")
		z.set("b.example", "2001:db8::1")
		o, to, _ := resolving(t, z)
		a, b, c := host{cluster: "ext/a", name: "a.example", port: 443}, host{cluster: "ext/b", name: "b.example", port: 443}, host{cluster: "ext/c", name: "c.example", port: 443}
		o.want(asHosts(a, b, c), nil)
		to.is(map[string][]string{"ext/a": {}, "ext/b": {}, "ext/c": {}})
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		to.is(map[string][]string{"ext/a": {"192.0.2.1", "192.0.2.2"}, "ext/b": {"2001:db8::1"}, "ext/c": {}})

		z.set("a.example", "192.0.2.3")
		z.set("b.example")
		time.Sleep(34 * time.Second)
		synctest.Wait()
		to.is(map[string][]string{"ext/a": {"192.0.2.3"}, "ext/b": {"2001:db8::1"}, "ext/c": {}})

		o.want(asHosts(b), nil)
		to.is(map[string][]string{"ext/b": {"2001:db8::1"}})
		o.want(asHosts(a, b), nil) // forgotten meanwhile
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		to.is(map[string][]string{"ext/a": {"192.0.2.3"}, "ext/b": {"2001:db8::1"}})

		o.want(nil, nil)
		synctest.Wait()
		before, _ := z.seen()
		time.Sleep(time.Hour)
		if after, _ := z.seen(); after != before {
			t.Errorf("%d lookups for nobody", after-before)
		}
	})
}

// TestReservedAddresses is CVE-2021-32783, CVE-2022-29153 and CVE-2026-41413: a
// name leads to no address of this host, its link, a metadata service or a server,
// at the first resolution or any later one (rebinding), unless an Exception says
// so, and no longer than it says so.
func TestReservedAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{}
		bad := []string{
			"127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "0.1.2.3", "169.254.169.254", "fe80::1",
			"fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "fd00:ec2::254", "100.100.100.200",
			"168.63.129.16", "192.0.0.192", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:7f00:1::1", "2002:a9fe:a9fe::",
			"2001:0:0:0:0:0:80ff:fffe", "fec0::1",
			"198.51.100.7", "198.51.100.8", // the servers, by address and by name
		}
		z.set("servers.example", "198.51.100.8")
		z.set("a.example", append(slices.Clone(bad), "192.0.2.1", "10.1.2.3", "64:ff9b::c000:201")...)
		z.set("rebound.example", "192.0.2.9")
		o, to, refused := resolving(t, z)
		servers := []string{"198.51.100.7", "servers.example"}
		a, rebound := host{cluster: "ext/a", name: "a.example", port: 443}, host{cluster: "ext/r", name: "rebound.example", port: 80}
		o.want(asHosts(a, rebound), servers)
		synctest.Wait()
		good := []string{"10.1.2.3", "192.0.2.1", "64:ff9b::c000:201"}
		to.is(map[string][]string{"ext/a": good, "ext/r": {"192.0.2.9"}})
		if n := refused(); n < float64(len(bad)-3) { // some are the same, unmapped
			t.Errorf("%v are counted as refused", n)
		}

		z.set("rebound.example", "169.254.169.254", "127.0.0.1")
		time.Sleep(34 * time.Second)
		synctest.Wait()
		to.is(map[string][]string{"ext/a": good, "ext/r": {}})

		rebound.allowed = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		o.want(asHosts(a, rebound), servers)
		to.is(map[string][]string{"ext/a": good, "ext/r": {"127.0.0.1"}})
		z.set("rebound.example") // it fails from now on, and the Exception ends
		rebound.allowed = nil
		o.want(asHosts(a, rebound), servers)
		to.is(map[string][]string{"ext/a": good, "ext/r": {}})

		// A server comes up where a host is.
		o.want(asHosts(a, rebound), append(servers, "192.0.2.1"))
		to.is(map[string][]string{"ext/a": {"10.1.2.3", "64:ff9b::c000:201"}, "ext/r": {}})
		// Of a server whose address is not known, nothing is told.
		o.want(asHosts(a, rebound), append(servers, "unknown.example"))
		to.is(map[string][]string{"ext/a": {}, "ext/r": {}})
	})
}

// TestResolverIsSlow: few lookups at one time, each of which ends; a stop does not
// wait for them.
func TestResolverIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{slow: time.Hour}
		o, to, _ := resolving(t, z)
		hosts := map[string]host{}
		for i := range 40 {
			cluster := "ext/" + strings.Repeat("x", i+1)
			hosts[cluster] = host{cluster: cluster, name: strings.Repeat("x", i+1) + ".example", port: 1}
		}
		began := time.Now()
		o.want(hosts, nil)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if _, most := z.seen(); most != lookupsAtOnce {
			t.Errorf("%d lookups at one time, want %d", most, lookupsAtOnce)
		}
		time.Sleep(5*lookupTimeout + time.Second)
		if asked, _ := z.seen(); asked < 40 {
			t.Errorf("%d of 40 were asked within %v", asked, time.Since(began))
		}
		to.mu.Lock()
		defer to.mu.Unlock()
		if len(to.by) != 40 {
			t.Errorf("%d clusters are told", len(to.by))
		}
	})
}
