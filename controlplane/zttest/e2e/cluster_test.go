package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// shop is web, which may read orders, and orders itself. %s is the target.
const shop = `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http, target: %q}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET]}}
`

const orders = "orders.shop.mesh"

// startLoad has web call over and over until the load is ended; not one call may fail.
// It begins once a call has passed: endpoints are healthy only after their first check.
func startLoad(t *testing.T, m *mesh.Mesh, web *mesh.Instance) (end func()) {
	t.Helper()
	reach(t, m, web)
	const callers = 4
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	t.Cleanup(client.CloseIdleConnections)
	calls := zttest.StartCalls(t.Context(), callers, 0, func(context.Context) error {
		a, err := web.Call(client, http.MethodGet, orders, "/load")
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("%d %s %q", a.Status, a.Reason, a.Body)
		}
		return err
	})
	return func() {
		t.Helper()
		passed, err := calls.Stop()
		if err != nil {
			t.Error(err)
		}
		t.Logf("%d calls passed", passed)
	}
}

// reach waits until a call by web passes.
func reach(t *testing.T, m *mesh.Mesh, web *mesh.Instance) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	m.Until("web reaches orders", func() bool {
		a, err := web.Call(client, http.MethodGet, orders, "/")
		return err == nil && a.Status == 200
	})
}

// acknowledged is a write that a client was told of.
type acknowledged struct {
	name     string
	revision uint64
	asked    int // how often
}

// write applies one document to a namespace of its own, by whichever server
// answers, until it is told of a revision.
func write(ctx context.Context, servers []*mesh.Server, name string) (acknowledged, error) {
	w := acknowledged{name: name}
	req := &ztv1.ApplyRequest{
		IdempotencyKey: name,
		Files: []*ztv1.File{{Name: name, Content: fmt.Appendf(nil,
			"apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: w}\nspec: {}\n", name)}},
	}
	for ctx.Err() == nil {
		s := servers[w.asked%len(servers)]
		w.asked++
		resp, err := s.Admin().Apply(ctx, req)
		if err == nil {
			w.revision = resp.Revision
			return w, nil
		}
		if !mesh.Unsettled(err) {
			return w, err
		}
	}
	return w, ctx.Err()
}

// TestLeaderLost: three servers lose their leader during a stream of applies. All
// that was acknowledged is there, once, and Envoys serve on.
func TestLeaderLost(t *testing.T) {
	m := mesh.New(t, mesh.Config{Servers: 3})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	m.Run("shop/orders").Acked()
	caller := m.Run("shop/web").Acked()
	endLoad := startLoad(t, m, caller)

	leader := m.Leader()
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	const writers, each = 4, 12
	var mu sync.Mutex // guards told
	var told []acknowledged
	var done sync.WaitGroup
	halfway := make(chan struct{}, writers*each)
	errs := make(chan error, writers)
	// Every writer begins at another server, the followers among them.
	for n := range writers {
		order := append(slices.Clone(m.Servers[n%3:]), m.Servers[:n%3]...)
		done.Go(func() {
			for i := range each {
				w, err := write(ctx, order, fmt.Sprintf("w%d-%d", n, i))
				if err != nil {
					errs <- err
					return
				}
				mu.Lock()
				told = append(told, w)
				mu.Unlock()
				halfway <- struct{}{}
			}
		})
	}
	for range writers * each / 3 {
		select {
		case <-halfway:
		case <-ctx.Done():
			t.Fatal("the writers do not write")
		}
	}
	leader.Stop()
	done.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}

	retried := verifyWrites(t, m, told)
	if len(told) != writers*each || retried == 0 {
		t.Errorf("%d writes, %d of them asked for again", len(told), retried)
	}
	if next := m.Leader(); next == leader {
		t.Error("the leader is the one that was stopped")
	}
	for _, s := range m.Others(leader) { // a follower forwards
		m.Until("every server takes a write", func() bool {
			_, err := s.Admin().CreateToken(t.Context(), &ztv1.CreateTokenRequest{Workload: "shop/web"})
			if err != nil && !mesh.Unsettled(err) {
				t.Fatalf("%s: %v", s, err)
			}
			return err == nil
		})
	}
	endLoad()
	leader.Start()
	m.Until("the old leader has caught up", func() bool {
		info, err := leader.Admin().GetServerInfo(t.Context(), &ztv1.GetServerInfoRequest{})
		return err == nil && info.Leader != "" && info.Revision >= slices.MaxFunc(told, func(a, b acknowledged) int { return int(a.revision) - int(b.revision) }).revision
	})
}

// verifyWrites holds the revisions that are there to those that were told, and
// returns how many writes were asked for more than once. A retry with the same
// key gets the same revision.
func verifyWrites(t *testing.T, m *mesh.Mesh, told []acknowledged) (retried int) {
	t.Helper()
	resp, err := m.Leader().Admin().ListRevisions(t.Context(), &ztv1.ListRevisionsRequest{PageSize: 1000})
	check(t, err)
	made := map[string][]uint64{} // by namespace
	for _, r := range resp.Revisions {
		for _, c := range r.Changes {
			made[c.Namespace] = append(made[c.Namespace], r.Revision)
		}
	}
	for _, w := range told {
		if !slices.Equal(made[w.name], []uint64{w.revision}) {
			t.Errorf("%s: told of revision %d, there are %v", w.name, w.revision, made[w.name])
		}
		if w.asked > 1 {
			retried++
		}
		again, err := write(t.Context(), m.Others(nil), w.name)
		if err != nil || again.revision != w.revision {
			t.Errorf("%s: asked for again, told of revision %d instead of %d, %v", w.name, again.revision, w.revision, err)
		}
	}
	return retried
}

// TestFailover: the server that holds the streams of two Envoys stops. They go to
// another one, which sends nothing that they hold already, secrets aside; calls
// pass all the while.
func TestFailover(t *testing.T) {
	m := mesh.New(t, mesh.Config{Servers: 3})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	instances := []*mesh.Instance{m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()}
	endLoad := startLoad(t, m, instances[1])

	before := map[*mesh.Instance]string{}
	for _, in := range instances {
		before[in] = told(t, in)
	}
	for _, in := range instances {
		holder := m.Proxy(in.ID).Server
		i := slices.IndexFunc(m.Servers, func(s *mesh.Server) bool { return s.ID() == holder })
		stopped := m.Servers[i]
		pushes := map[*mesh.Server]float64{}
		for _, s := range m.Others(stopped) {
			pushes[s] = pushed(s)
		}
		since := m.Proxy(in.ID).ConnectedSince.AsTime()
		stopped.Stop()
		m.Until("it has gone to another server", func() bool {
			p := m.Proxy(in.ID)
			return p.Connected && p.Server != holder && p.ConnectedSince.AsTime().After(since) && p.AckedAt != nil
		})
		in.Acked()
		for _, s := range m.Others(stopped) {
			if n := pushed(s) - pushes[s]; n != 0 {
				t.Errorf("%s: %v responses beside secrets were sent again", s, n)
			}
		}
		stopped.Start()
		m.Together()
	}
	for _, in := range instances {
		if after := told(t, in); after != before[in] {
			t.Errorf("%s was told something new:\n%s\nbefore:\n%s", in.Workload, after, before[in])
		}
	}
	endLoad()
}

// pushed is how many responses a server has sent, secrets aside.
func pushed(s *mesh.Server) float64 {
	return s.Metric("zt_serve_pushes_total", `zt_serve_pushes_total{type="secret"`)
}

// told is how often an Envoy has taken over configuration: a resend would count. Not by
// cluster_updated, which counts a server that is left out for a while, too.
func told(t *testing.T, in *mesh.Instance) string {
	t.Helper()
	out := ""
	for _, name := range []string{
		"listener_manager.lds.update_success", "listener_manager.listener_added", "listener_manager.listener_modified",
		"cluster_manager.cds.update_success", "cluster_manager.cluster_added", "cluster_manager.cluster_modified",
	} {
		n, err := in.Stat(t.Context(), name)
		check(t, err)
		out += fmt.Sprintf("%s %d\n", name, n)
	}
	return out
}

// TestRefusedConfiguration: an Envoy that cannot bind refuses its listener. Status
// shows it, with Envoy's words, and everything else moves on.
func TestRefusedConfiguration(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	app := m.NewApp()
	const more = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: clash}
spec: {serves: [{name: http, port: 8080, protocol: http, target: %q}]}
`
	m.Apply(fmt.Sprintf(shop+more, app, app))
	callee, caller := m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()
	endLoad := startLoad(t, m, caller)
	began := time.Now()
	clash := m.EnrolAt("shop/clash", callee.Address).Start()
	var refused []*ztv1.Nack
	m.Until("the refusal is in the status", func() bool {
		refused = m.Proxy(clash.ID).GetNacks()
		return len(refused) > 0
	})
	t.Logf("shown %v after the start: %v", time.Since(began), refused)
	if n := refused[0]; n.Resource == "" && n.Message == "" || n.TypeUrl == "" {
		t.Errorf("got %v", n)
	}
	// Its receipt says so, and the others go on.
	resp := m.Submit(fmt.Sprintf(shop+more, app, m.NewApp()))
	state := map[string]string{}
	ctx, cancel := context.WithTimeout(t.Context(), mesh.Patience)
	defer cancel()
	watch, err := m.Admin().WatchReceipt(ctx, &ztv1.WatchReceiptRequest{Revision: resp.Revision})
	check(t, err)
	for state["shop/clash"] != "nacked" {
		r, err := watch.Recv()
		check(t, err)
		for _, p := range r.Proxies {
			state[p.Workload] = p.State
		}
	}
	m.Apply(fmt.Sprintf(shop, app)) // clash is no more
	endLoad()
	m.Until("another proxy goes on", func() bool {
		p := m.Proxy(callee.ID)
		return len(p.Nacks) == 0 && p.AckedRevision >= resp.Revision
	})
}

// TestDeregistered: what is deregistered is not called any more, loses its stream
// and is not renewed.
func TestDeregistered(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	leaves, stays, caller := m.Run("shop/orders").Acked(), m.Run("shop/orders").Acked(), m.Run("shop/web").Acked()
	known(t, m, caller, leaves, stays)
	reach(t, m, caller)
	_, err := m.Admin().DeregisterInstance(t.Context(), &ztv1.DeregisterInstanceRequest{Instance: leaves.ID})
	check(t, err)
	m.Until("its endpoint is gone", func() bool { return !slices.Contains(endpoints(t, caller), leaves.At(8080)) })
	if !slices.Contains(endpoints(t, caller), stays.At(8080)) {
		t.Error("the other endpoint is gone, too")
	}
	if m.Proxy(leaves.ID) != nil {
		t.Error("it is still in the status")
	}
	m.Until("its stream is closed", func() bool {
		n, err := leaves.Stat(t.Context(), "control_plane.connected_state")
		check(t, err)
		return n == 0
	})
	if err := leaves.Renew(m.Servers[0]); status.Code(err) != codes.PermissionDenied {
		t.Errorf("renewal: %v", err)
	}
	_, err = m.Admin().DeregisterInstance(t.Context(), &ztv1.DeregisterInstanceRequest{Instance: leaves.ID})
	if status.Code(err) != codes.NotFound {
		t.Errorf("again: %v", err)
	}
}
