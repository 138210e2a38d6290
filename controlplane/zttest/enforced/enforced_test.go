// Package enforced_test measures when a change is enforced by all real Envoys of a
// service: by what they answer, not by what they say that they have.
package enforced_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	envoys = 30
	rounds = 10
	// pause is between two requests to one Envoy, and so what a time is exact to: all of
	// them asked without a pause would measure their own load.
	pause = 10 * time.Millisecond
	port  = 8080
)

// spec lets web ask for one path, and for another in each round.
func spec(target string, round int) string {
	return fmt.Sprintf(`apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: %d, protocol: http, target: %q}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET], paths: [/always, %s]}}
`, port, target, path(round))
}

func path(round int) string { return fmt.Sprintf("/round/%d", round) }

// BenchmarkEnforced: one grant is changed that 30 Envoys judge by. Measured is from the
// moment at which the leader stamped the change until the last of the 30 has let in what
// it refused until then, each asked over a connection that stays open.
func BenchmarkEnforced(b *testing.B) {
	m := mesh.New(b, mesh.Config{})
	target := m.NewApp()
	m.Apply(spec(target, 0))
	web := m.EnrolAgent("shop/web")
	var callees []*callee
	for range envoys {
		callees = append(callees, &callee{Instance: m.Run("shop/orders"), b: b})
	}
	for _, c := range callees {
		conn, err := c.Dial(port, web.SVID, "http/1.1")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		c.ask = func(path string) int {
			a, err := mesh.Exchange(conn, mesh.Request("GET", "orders.shop.mesh", path))
			if err != nil {
				b.Errorf("%s: %v", path, err)
			}
			return a.Status
		}
		c.until(path(0))
	}
	var last []time.Duration
	for round := 1; round <= rounds; round++ {
		for _, c := range callees {
			if status := c.ask(path(round)); status != 403 {
				b.Fatalf("%s is answered with %d before it is granted", path(round), status)
			}
		}
		var all sync.WaitGroup
		for _, c := range callees {
			all.Go(func() { c.until(path(round)) })
		}
		began := commit(b, m, spec(target, round))
		all.Wait()
		if b.Failed() {
			b.FailNow()
		}
		slowest := time.Duration(0)
		for _, c := range callees {
			slowest = max(slowest, c.at.Sub(began))
		}
		last = append(last, slowest)
	}
	slices.Sort(last)
	median, worst := last[len(last)/2], last[len(last)-1]
	verdict := "met"
	if median > time.Second {
		verdict = "short"
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("the last of %d Envoys, %d rounds: %s to %s, load %s\n", envoys, rounds, last[0].Round(time.Millisecond), worst.Round(time.Millisecond), strings.Fields(string(load))[0])
	fmt.Printf("figure envoys-%d-enforce-last %.3f s goal <= 1 %s\n", envoys, median.Seconds(), verdict)
}

// callee is one of the Envoys and the one connection to it.
type callee struct {
	*mesh.Instance
	b   *testing.B
	ask func(path string) (status int)
	at  time.Time // when it let in what it was asked last
}

// until asks until it is let in.
func (c *callee) until(path string) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for limit := time.Now().Add(mesh.Patience); ; <-tick.C {
		status := c.ask(path)
		c.at = time.Now()
		switch {
		case status == 200, c.b.Failed():
			return
		case status != 403:
			c.b.Errorf("%s is answered with %d", path, status)
			return
		case c.at.After(limit):
			c.b.Errorf("%s is still refused after %s", path, mesh.Patience)
			return
		}
	}
}

// commit applies a spec and returns when the leader stamped the entry, just before it was
// proposed.
func commit(b *testing.B, m *mesh.Mesh, yaml string) time.Time {
	b.Helper()
	applied := m.Submit(yaml)
	page, err := m.Admin().ListRevisions(b.Context(), &ztv1.ListRevisionsRequest{PageSize: 1})
	if err != nil {
		b.Fatal(err)
	}
	if len(page.Revisions) != 1 || page.Revisions[0].Revision != applied.Revision {
		b.Fatalf("revision %d is not the newest: %v", applied.Revision, page.Revisions)
	}
	return page.Revisions[0].When.AsTime()
}
