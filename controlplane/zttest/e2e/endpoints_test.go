package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// host is an endpoint as a caller's Envoy sees it.
type host struct {
	Address struct {
		SocketAddress struct {
			Address   string
			PortValue uint32 `json:"port_value"`
		} `json:"socket_address"`
	}
	Stats []struct {
		Name, Value string
	}
	HealthStatus struct {
		FailedActive  bool `json:"failed_active_health_check"`
		FailedOutlier bool `json:"failed_outlier_check"`
	} `json:"health_status"`
	Priority int
	Locality struct{ Zone string }
}

func (h host) at() string {
	return net.JoinHostPort(h.Address.SocketAddress.Address, fmt.Sprint(h.Address.SocketAddress.PortValue))
}

// stat is one of its counters.
func (h host) stat(name string) int {
	for _, s := range h.Stats {
		if s.Name == name {
			n, _ := strconv.Atoi(s.Value)
			return n
		}
	}
	return 0
}

// hosts are the endpoints of orders' only port that an Envoy knows, by address.
func hosts(t *testing.T, in *mesh.Instance) map[string]host {
	t.Helper()
	body, err := in.Get(t.Context(), "/clusters?format=json")
	check(t, err)
	var all struct {
		ClusterStatuses []struct {
			Name         string
			HostStatuses []host `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	check(t, json.Unmarshal([]byte(body), &all))
	out := map[string]host{}
	for _, c := range all.ClusterStatuses {
		if c.Name == "svc/shop/orders/http" {
			for _, h := range c.HostStatuses {
				out[h.at()] = h
			}
		}
	}
	return out
}

// endpoints are where they are, sorted.
func endpoints(t *testing.T, in *mesh.Instance) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(hosts(t, in)))
}

// known waits until a caller's Envoy knows an endpoint at each.
func known(t *testing.T, m *mesh.Mesh, caller *mesh.Instance, callees ...*mesh.Instance) {
	t.Helper()
	m.Until("all endpoints are known", func() bool {
		all := endpoints(t, caller)
		return !slices.ContainsFunc(callees, func(c *mesh.Instance) bool { return !slices.Contains(all, c.At(8080)) })
	})
}

// TestLiveness: an endpoint whose Envoy no server has seen for a while is taken
// away, and given back when it returns.
func TestLiveness(t *testing.T) {
	m := mesh.New(t, mesh.Config{Tune: func(c *controlplane.Config) {
		c.Liveness = controlplane.Liveness{Withdraw: time.Second, Grace: 500 * time.Millisecond, Check: 50 * time.Millisecond}
	}})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	leaves, stays, caller := m.Run("shop/orders").Acked(), m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()
	known(t, m, caller, leaves, stays)
	reach(t, m, caller)
	check(t, leaves.Stop(mesh.Patience))
	m.Until("it is withdrawn", func() bool {
		return m.Proxy(leaves.ID).Withdrawn && slices.Equal(endpoints(t, caller), []string{stays.At(8080)})
	})
	if p := m.Proxy(stays.ID); p.Withdrawn || !p.Connected {
		t.Errorf("the other one: %v", p)
	}
	leaves.Start().Acked()
	m.Until("it is back", func() bool { return !m.Proxy(leaves.ID).Withdrawn })
	known(t, m, caller, leaves, stays)
	reach(t, m, caller)
}
