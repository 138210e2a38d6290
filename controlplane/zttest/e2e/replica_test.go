package e2e_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestReplica: a read replica serves proxies as any server does. What it serves is part
// of receipts, it tells of changes, and it serves on alone; a proxy that goes from a
// voter to it is told nothing again.
func TestReplica(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	voter, replica := m.Servers[0], m.Add(controlplane.JoinConfig{Replica: true})
	m.Together()
	callee := m.Enrol("shop/orders").Ask(replica).Start().Acked()
	web := m.Enrol("shop/web").Ask(voter, replica).Start().Acked()
	if at := m.Proxy(callee.ID).Server; at != replica.ID() {
		t.Fatalf("orders is served by %s", at)
	}
	if at := m.Proxy(web.ID).Server; at != voter.ID() {
		t.Fatalf("web is served by %s", at)
	}
	reach(t, m, web)

	// A change, and its receipt, over both.
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	m.Apply(fmt.Sprintf(shop, m.NewApp()) + `---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-writes}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [POST]}}
`)
	m.Until("web may write", func() bool {
		a, err := web.Call(client, http.MethodPost, orders, "/")
		return err == nil && a.Status == 200
	})

	// Without the only voter: no writes, and all else goes on.
	pushes := pushed(replica)
	voter.Stop()
	m.Until("the replica serves both", func() bool {
		resp, err := replica.Admin().GetStatus(t.Context(), &ztv1.GetStatusRequest{Stale: true})
		if err != nil {
			return false
		}
		n := 0
		for _, p := range resp.Proxies {
			if p.Connected && p.Server == replica.ID() {
				n++
			}
		}
		return n == 2
	})
	if a, err := web.Call(client, http.MethodPost, orders, "/"); err != nil || a.Status != 200 {
		t.Errorf("a call while nobody votes: %v, %v", a, err)
	}
	if n := pushed(replica) - pushes; n != 0 {
		t.Errorf("%v responses beside secrets were sent again", n)
	}
}
