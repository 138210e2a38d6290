//go:build system

package killleader_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
)

// patience bounds every wait for what takes a second or two.
const patience = 60 * time.Second

// shop is web, which may always read /always of orders, and orders itself.
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
metadata: {namespace: shop, name: always}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET], paths: [/always]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: round}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET], paths: [/round/%d]}}
`

// run is three servers, an Envoy for each of two workloads, and an application.
type run struct {
	*fleet.Test
	target string // of the application
}

func begin(t *testing.T) *run {
	t.Helper()
	r := &run{Test: fleet.NewTest(t, patience, []string{"ztd", "ztctl"})}
	r.BeginThree("kill.example")
	app, err := zttest.NewHTTPApp("orders", net.JoinHostPort(r.Block.At(9), "0"))
	r.Check(err)
	t.Cleanup(app.Close)
	r.target = app.Address()
	r.apply(0)
	r.envoy("shop/orders", r.Block.At(11), r.Block.At(21))
	r.envoy("shop/web", r.Block.At(10), r.Block.At(20))
	return r
}

// envoy enrols an instance as a person does, and runs its Envoy until the test ends.
func (r *run) envoy(workload, address, egress string) {
	r.T.Helper()
	name := strings.ReplaceAll(workload, "/", "-")
	args := []string{"bootstrap", name, "--workload", workload, "--token-file", r.WorkloadToken(name, workload), "--address", address, "--egress-address", egress}
	_, err := r.Command(r.Context(), "ztctl", append(args, r.AtAll()...)...)
	r.Check(err)
	dir := filepath.Join(r.Dir, name)
	boot, err := os.ReadFile(filepath.Join(dir, "bootstrap.json"))
	r.Check(err)
	r.Check(os.Mkdir(filepath.Join(dir, "run"), 0o700))
	p, err := envoy.Start(envoy.Config{
		Bootstrap: boot, Dir: filepath.Join(dir, "run"), Admin: filepath.Join(dir, "admin.sock"),
		Args: []string{"--log-path", filepath.Join(r.Dir, "log", name+".log")},
	})
	r.Check(err)
	r.T.Cleanup(func() {
		if err := p.Stop(patience); err != nil {
			r.T.Error(err)
		}
	})
	r.Check(p.Ready(r.Context()))
}

// apply makes the grant of a round the only one beside always, at whichever server does
// it, and returns when it is agreed on.
func (r *run) apply(round int) {
	r.T.Helper()
	req := fleet.Documents(fmt.Sprintf(shop, r.target, round))
	req.IdempotencyKey = fmt.Sprintf("round-%d-%d", round, time.Now().UnixNano())
	n := 0
	r.Until("an apply", func(ctx context.Context) error {
		var err error
		for range r.Servers {
			if n++; r.Servers[n%len(r.Servers)].Running() {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				_, err = r.API(n%len(r.Servers)).Apply(ctx, req)
				cancel()
				return err
			}
		}
		return errors.New("no server runs")
	})
}

// get calls orders as web.
func (r *run) get(ctx context.Context, client *http.Client, path string) error {
	return fleet.Get(ctx, client, r.Block.At(20), "orders.shop.mesh", path)
}

// judges waits until the Envoys allow what a round's grant says.
func (r *run) judges(round int) {
	r.T.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	r.Until("the Envoys judge by the change", func(ctx context.Context) error {
		return r.get(ctx, client, fmt.Sprintf("/round/%d", round))
	})
	if err := fleet.Denied(r.get(r.Context(), client, fmt.Sprintf("/round/%d", round-1))); err != nil {
		r.T.Errorf("round %d: the grant of the round before still allows: %v", round, err)
	}
}

// TestKillLeader is the suite.
func TestKillLeader(t *testing.T) {
	kills := int(fleet.Number(t, "ZT_KILLS", 5))
	r := begin(t)
	r.apply(1) // before anything is killed, so that the Envoys are known to be there
	r.judges(1)
	const callers = 4
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	defer client.CloseIdleConnections()
	calls := zttest.StartCalls(t.Context(), callers, 5*time.Millisecond, func(ctx context.Context) error { return r.get(ctx, client, "/always") })
	var writes, verdicts []time.Duration
	for round := 2; round < kills+2; round++ {
		n := r.Leads()
		r.Servers[n].Kill()
		killed := time.Now()
		r.apply(round)
		writes = append(writes, time.Since(killed))
		r.judges(round)
		verdicts = append(verdicts, time.Since(killed))
		r.Check(r.Servers[n].Start(r.Site))
		r.Check(r.Servers[n].Ready(r.Context()))
		r.Check(r.Together(r.Context()))
		if testing.Verbose() {
			passed, lost := calls.Count()
			fmt.Printf("kill %d of %d: writes back after %v, judged by after %v, %d requests passed, %d lost\n",
				round-1, kills, writes[round-2].Round(10*time.Millisecond), verdicts[round-2].Round(10*time.Millisecond), passed, lost)
		}
	}
	if _, err := calls.Stop(); err != nil {
		t.Error(err)
	}
	passed, lost := calls.Count()
	slices.Sort(writes)
	slices.Sort(verdicts)
	p99 := func(d []time.Duration) time.Duration { return d[(len(d)*99+99)/100-1] }
	t.Logf("%d kills of the leader: %d requests passed, %d lost; writes back p50 %v, p99 %v; Envoys judge by the change p50 %v, p99 %v",
		kills, passed, lost, writes[len(writes)/2], p99(writes), verdicts[len(verdicts)/2], p99(verdicts))
	verdict := func(ok bool) string {
		if ok {
			return "met"
		}
		return "short"
	}
	fmt.Printf("figure kill-leader-lost-requests %d requests goal <= 0 %s\n", lost, verdict(lost == 0))
	fmt.Printf("figure kill-leader-writes-back-p99 %.2f s goal <= 4 %s\n", p99(writes).Seconds(), verdict(p99(writes) <= 4*time.Second))
}
