package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// receipt waits at a server until a revision is confirmed.
func (c cluster) receipt(t *testing.T, s *mesh.Server, revision uint64) *ztv1.WatchReceiptResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	stream, err := s.Admin().WatchReceipt(ctx, &ztv1.WatchReceiptRequest{Revision: revision})
	check(t, err)
	var last *ztv1.WatchReceiptResponse
	for last == nil || !last.Complete {
		r, err := stream.Recv()
		if err != nil {
			t.Fatalf("receipt of revision %d: %v; last %v; proxies %v", revision, err, last, c.Status())
		}
		last = r
	}
	return last
}

// proven wants everything of a receipt: who is how far, and when.
func proven(t *testing.T, r *ztv1.WatchReceiptResponse, want ...string) {
	t.Helper()
	var got []string
	for _, p := range r.Proxies {
		got = append(got, p.Workload+" "+p.State)
		at := []time.Time{r.Committed.AsTime(), p.SentAt.AsTime(), p.AckedAt.AsTime()}
		if p.State == "enforced" {
			at = append(at, p.EnforcedAt.AsTime())
		}
		if !slices.IsSortedFunc(at, time.Time.Compare) {
			t.Errorf("%s was committed, sent, ACKed, enforced at %v", p.Workload, at)
		}
		if p.When.AsTime() != at[len(at)-1] {
			t.Errorf("%s is %s since %v, not %v", p.Workload, p.State, p.When.AsTime(), at[len(at)-1])
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("receipt of revision %d: %q, want %q", r.Revision, got, want)
	}
	if c := r.Counts; int(c.Affected) != len(want) || int(c.Enforced) != strings.Count(strings.Join(want, " "), "enforced") || r.Omitted != 0 {
		t.Errorf("counts of revision %d: %v", r.Revision, c)
	}
}

const granted = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: more}
spec:
  from: {workloads: [web]}
  to: {services: [orders], methods: [%s]}
`

// TestEnforced: what an Envoy has ACKed is enforced once its agent has read in it that
// this is what it works by; without an agent, the ACK is the last word. So it stays
// over the loss of any server: the leader, the one that holds the proxy, the one that
// is asked.
func TestEnforced(t *testing.T) {
	c := cluster{mesh.New(t, mesh.Config{Servers: 3})}
	base := fmt.Sprintf(spec, "1h")
	c.Apply(base)
	plain := c.Run("shop/orders").Acked()
	orders := start(t, withEnvoy(t, c.config(t, "shop/orders")))
	web := start(t, withEnvoy(t, c.config(t, "shop/web")))
	for _, r := range []*running{orders, web} {
		id := r.serving(t).Instance
		c.Until("it enforces", func() bool {
			p := c.Proxy(id)
			return p.Agent && p.EnforcedRevision > 0 && p.EnforcedRevision == p.AckedRevision && len(p.Differs) == 0
		})
	}
	began := time.Now()
	resp := c.Submit(base + fmt.Sprintf(granted, "POST"))
	r := c.receipt(t, c.Servers[1], resp.Revision)
	t.Logf("enforced %v after the apply: %v", time.Since(began), r.Proxies)
	proven(t, r, "shop/orders acked", "shop/orders enforced")
	for _, p := range r.Proxies {
		if (p.Instance == plain.ID) != (p.State == "acked") {
			t.Errorf("%s is %s", p.Instance, p.State)
		}
	}
	// A revision that closes a gate, and one that adds a listener.
	resp = c.Submit(strings.ReplaceAll(base, "web-reads-orders", "other") + fmt.Sprintf(granted, "PUT"))
	proven(t, c.receipt(t, c.Servers[2], resp.Revision), "shop/orders acked", "shop/orders enforced")
	resp = c.Submit(strings.NewReplacer(
		"protocol: http}", "protocol: http}, {name: raw, port: 9000, protocol: tcp}", "services: [orders]", "services: [orders], ports: [http]",
	).Replace(base))
	proven(t, c.receipt(t, c.Servers[0], resp.Revision), "shop/orders acked", "shop/orders enforced")
	resp = c.Submit(base)
	proven(t, c.receipt(t, c.Servers[0], resp.Revision), "shop/orders acked", "shop/orders enforced")

	// The leader dies between an apply and its receipt.
	leader := c.Leader()
	resp = c.Submit(base + fmt.Sprintf(granted, "PATCH"))
	leader.Stop()
	began = time.Now()
	r = c.receipt(t, c.Others(nil)[1], resp.Revision)
	t.Logf("confirmed %v after the leader was stopped", time.Since(began))
	if r.Counts.Affected != 2 || len(r.Unreachable) > 1 {
		t.Errorf("without the leader: %v", r)
	}
	leader.Start()
	c.Together()
	// And the one that holds the proxy, whatever it is.
	holder := c.Proxy(orders.serving(t).Instance).Server
	i := slices.IndexFunc(c.Servers, func(s *mesh.Server) bool { return s.ID() == holder })
	c.Servers[i].Stop()
	resp = c.Submit(base + fmt.Sprintf(granted, "DELETE"))
	began = time.Now()
	c.receipt(t, c.Others(nil)[0], resp.Revision)
	t.Logf("confirmed %v after its server was stopped", time.Since(began))
	c.Until("it enforces again", func() bool {
		p := c.Proxy(orders.serving(t).Instance)
		return p.EnforcedRevision >= resp.Revision && p.Server != holder
	})
	proven(t, c.receipt(t, c.Others(nil)[1], resp.Revision), "shop/orders acked", "shop/orders enforced")
	c.Servers[i].Start()
}
