package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// calls makes calls by web until n of them have passed, and returns how many each of
// the callees has taken.
func calls(t *testing.T, m *mesh.Mesh, web *mesh.Instance, n int, callees ...*mesh.Instance) []int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	before := hosts(t, web)
	passed := 0
	m.Until("the calls pass", func() bool {
		for passed < n {
			if a, err := web.Call(client, http.MethodGet, orders, "/"); err != nil || a.Status != 200 {
				return false
			}
			passed++
		}
		return true
	})
	after := hosts(t, web)
	out := make([]int, len(callees))
	for i, c := range callees {
		out[i] = after[c.At(8080)].stat("rq_success") - before[c.At(8080)].stat("rq_success")
	}
	return out
}

// healthy waits until a caller's Envoy takes these instances for well.
func healthy(t *testing.T, m *mesh.Mesh, caller *mesh.Instance, callees ...*mesh.Instance) {
	t.Helper()
	m.Until("all endpoints are well", func() bool {
		all := hosts(t, caller)
		for _, c := range callees {
			if h, ok := all[c.At(8080)]; !ok || h.HealthStatus.FailedActive || h.HealthStatus.FailedOutlier {
				return false
			}
		}
		return true
	})
}

// TestZones: a caller calls the instances in its zone by their weights, and others
// only while there is none of them; who is in no zone calls all.
func TestZones(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	light, heavy := m.EnrolIn("shop/orders", "north", 0).Start().Acked(), m.EnrolIn("shop/orders", "north", 300).Start().Acked()
	far := m.EnrolIn("shop/orders", "south", 0).Start().Acked()
	near, nowhere := m.EnrolIn("shop/web", "north", 0).Start().Acked(), m.Run("shop/web").Acked()
	for _, web := range []*mesh.Instance{near, nowhere} {
		known(t, m, web, light, heavy, far)
		healthy(t, m, web, light, heavy, far)
	}
	if p := m.Proxy(heavy.ID); p.Zone != "north" || p.Weight != 300 {
		t.Errorf("status: zone %q, weight %d", p.Zone, p.Weight)
	}
	if got := calls(t, m, near, 400, light, heavy, far); got[2] != 0 || got[0] < 80 || got[0] > 120 {
		t.Errorf("calls of a caller in the north: %d light, %d heavy, %d in the south", got[0], got[1], got[2])
	}
	if got := calls(t, m, nowhere, 500, light, heavy, far); got[0] < 80 || got[1] < 240 || got[2] < 80 {
		t.Errorf("calls of a caller in no zone: %d light, %d heavy, %d in the south", got[0], got[1], got[2])
	}

	// The caller moves, and then the callees do; nobody is restarted.
	near.Place("south", 0)
	m.Until("it is told what is near now", func() bool {
		return hosts(t, near)[far.At(8080)].Priority == 0 && hosts(t, near)[light.At(8080)].Priority == 1
	})
	healthy(t, m, near, light, heavy, far)
	if got := calls(t, m, near, 100, light, heavy, far); got[0]+got[1] != 0 {
		t.Errorf("calls of a caller in the south: %v", got)
	}
	far.Place("north", 0)
	m.Until("none is in the south", func() bool { return hosts(t, near)[light.At(8080)].Priority == 0 })
	healthy(t, m, near, light, heavy, far)
	if got := calls(t, m, near, 100, light, heavy, far); got[0]+got[1] == 0 {
		t.Errorf("calls of a caller whose zone has none: %v", got)
	}

	// With all of its zone gone, the others are called.
	light.Place("south", 0)
	m.Until("one is in the south", func() bool { return hosts(t, near)[heavy.At(8080)].Priority == 1 })
	check(t, light.Stop(mesh.Patience))
	if got := calls(t, m, near, 50, light, heavy, far); got[1]+got[2] == 0 {
		t.Errorf("calls of a caller whose zone is gone: %v", got)
	}
}

// TestReady: what an application says of itself on its health path is what callers
// go by, without the control plane.
func TestReady(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	var ready atomic.Bool
	app := m.NewHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ready" && !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	m.Apply(strings.Replace(fmt.Sprintf(shop, app), "protocol: http,", "protocol: http, healthPath: /ready,", 1))
	callee, web := m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()
	known(t, m, web, callee)
	failed := func() bool { return hosts(t, web)[callee.At(8080)].HealthStatus.FailedActive }
	ready.Store(true)
	healthy(t, m, web, callee)
	m.Servers[0].Stop()
	ready.Store(false)
	m.Until("it is known not to be ready", failed)
	ready.Store(true)
	m.Until("it is known to be ready", func() bool { return !failed() })
}

// TestOutlier: an instance whose application is not there is left out; one whose
// application answers badly is not, and never all of them are.
func TestOutlier(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	var broken atomic.Bool
	app := m.NewHandler(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/bug":
			w.WriteHeader(http.StatusInternalServerError)
		case broken.Load():
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	m.Apply(fmt.Sprintf(shop, app))
	a, b, web := m.Run("shop/orders").Acked(), m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()
	known(t, m, web, a, b)
	healthy(t, m, web, a, b)
	out := func() (n int) {
		for _, h := range hosts(t, web) {
			if h.HealthStatus.FailedOutlier {
				n++
			}
		}
		return n
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for range 40 {
		got, err := web.Call(client, http.MethodGet, orders, "/bug")
		check(t, err)
		if got.Status != http.StatusInternalServerError {
			t.Fatalf("a bug is answered with %d", got.Status)
		}
	}
	if n := out(); n != 0 {
		t.Errorf("%d instances left out for what their application answers", n)
	}
	broken.Store(true)
	m.Until("one is left out", func() bool {
		_, err := web.Call(client, http.MethodGet, orders, "/")
		check(t, err)
		return out() > 0
	})
	for range 40 {
		_, err := web.Call(client, http.MethodGet, orders, "/")
		check(t, err)
	}
	if n := out(); n != 1 {
		t.Errorf("%d of 2 instances left out", n)
	}
	broken.Store(false)
	m.Until("it is taken back", func() bool { return out() == 0 })
}

// TestNearServers: an Envoy asks the servers in its own zone, and the others only
// while none of them answers.
func TestNearServers(t *testing.T) {
	zones := map[string]string{} // by data directory
	m := mesh.New(t, mesh.Config{Servers: 3, Tune: func(c *controlplane.Config) {
		if zones[c.DataDir] == "" {
			zones[c.DataDir] = []string{"north", "south", "south"}[len(zones)]
		}
		c.Zone = zones[c.DataDir]
	}})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	north := m.Servers[0]
	var webs []*mesh.Instance
	for range 4 {
		webs = append(webs, m.EnrolIn("shop/web", "north", 0).Start().Acked())
	}
	for _, web := range webs {
		if at := m.Proxy(web.ID).Server; at != north.ID() {
			t.Errorf("asks %s in the south", at)
		}
	}
	for _, s := range mesh.Settled(m, "the members", func() (*ztv1.ListMembersResponse, error) {
		return m.Admin().ListMembers(t.Context(), &ztv1.ListMembersRequest{})
	}).Members {
		if want := map[bool]string{true: "north", false: "south"}[s.Id == north.ID()]; s.Zone != want {
			t.Errorf("server %s is shown in zone %q, want %q", s.Id, s.Zone, want)
		}
	}
	gone := time.Now()
	north.Stop()
	for _, web := range webs {
		m.Until("it asks another server", func() bool {
			p := m.Proxy(web.ID)
			return p.Connected && p.Server != north.ID()
		})
	}
	t.Logf("4 proxies ask servers in the other zone %v after theirs was gone", time.Since(gone).Round(10*time.Millisecond))
}
