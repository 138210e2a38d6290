//go:build system

package killleader_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
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

// run is three servers, an Envoy for each of two workloads, and the load.
type run struct {
	*fleet.Cluster
	t      *testing.T
	target string // of the application
	web    string // where web calls out
	passed atomic.Int64
	mu     sync.Mutex // guards failed
	failed []string
}

func (r *run) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *run) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

func begin(t *testing.T) *run {
	t.Helper()
	dir, err := os.MkdirTemp("", "ztkill")
	if err != nil {
		t.Fatal(err)
	}
	block, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{Cluster: &fleet.Cluster{Site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()}}, t: t}
	t.Cleanup(func() {
		for _, s := range r.Servers {
			s.Kill()
		}
		if t.Failed() {
			t.Logf("logs and data directories are in %s", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r.check(r.Build(t.Context(), filepath.Join("..", "..", ".."), "ztd", "ztctl"))
	var servers []*fleet.Server
	for n := range 3 {
		servers = append(servers, &fleet.Server{Name: fmt.Sprintf("ztd-%d", n+1), Host: block.At(1 + n)})
	}
	r.check(r.Begin(r.ctx(), "kill.example", servers))
	r.target = application(t, block.At(9))
	r.apply(0)
	r.web = net.JoinHostPort(block.At(20), strconv.Itoa(xds.EgressPort))
	r.envoy("shop/orders", block.At(11), block.At(21))
	r.envoy("shop/web", block.At(10), block.At(20))
	return r
}

// application answers everything.
func application(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }), ReadHeaderTimeout: patience}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

// envoy enrols an instance as a person does, and runs its Envoy until the test ends.
func (r *run) envoy(workload, address, egress string) {
	r.t.Helper()
	name := strings.ReplaceAll(workload, "/", "-")
	token, err := r.Token(r.ctx(), workload)
	r.check(err)
	file, err := r.TokenFile(name, token)
	r.check(err)
	args := []string{"bootstrap", name, "--workload", workload, "--token-file", file, "--address", address, "--egress-address", egress}
	for _, s := range r.Servers {
		args = append(args, "--server", s.Node())
	}
	_, err = r.Command(r.ctx(), "ztctl", args...)
	r.check(err)
	dir := filepath.Join(r.Dir, name)
	boot, err := os.ReadFile(filepath.Join(dir, "bootstrap.json"))
	r.check(err)
	r.check(os.Mkdir(filepath.Join(dir, "run"), 0o700))
	p, err := envoy.Start(envoy.Config{
		Bootstrap: boot, Dir: filepath.Join(dir, "run"), Admin: filepath.Join(dir, "admin.sock"),
		Args: []string{"--log-path", filepath.Join(r.Dir, "log", name+".log")},
	})
	r.check(err)
	r.t.Cleanup(func() {
		if err := p.Stop(patience); err != nil {
			r.t.Error(err)
		}
	})
	r.check(p.Ready(r.ctx()))
}

// apply makes the grant of a round the only one beside always, at whichever server does
// it, and returns when it is agreed on.
func (r *run) apply(round int) {
	r.t.Helper()
	req := &ztv1.ApplyRequest{
		Files:          []*ztv1.File{{Name: "shop.yaml", Content: fmt.Appendf(nil, shop, r.target, round)}},
		IdempotencyKey: fmt.Sprintf("round-%d-%d", round, time.Now().UnixNano()),
	}
	n := 0
	r.check(fleet.Until(r.ctx(), "an apply", func(ctx context.Context) error {
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
	}))
}

// get calls orders as web.
func (r *run) get(client *http.Client, path string) (status int, err error) {
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+r.web+path, nil)
	if err != nil {
		return 0, err
	}
	req.Host = "orders.shop.mesh"
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// judges waits until the Envoys allow what a round's grant says.
func (r *run) judges(round int) {
	r.t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	r.check(fleet.Until(r.ctx(), "the Envoys judge by the change", func(context.Context) error {
		status, err := r.get(client, fmt.Sprintf("/round/%d", round))
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		return err
	}))
	status, err := r.get(client, fmt.Sprintf("/round/%d", round-1))
	r.check(err)
	if status != http.StatusForbidden {
		r.t.Errorf("round %d: the grant of the round before still allows: %d", round, status)
	}
}

// load calls over and over until ctx ends.
func (r *run) load(ctx context.Context) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		status, err := r.get(client, "/always")
		if err == nil && status == http.StatusOK {
			r.passed.Add(1)
		} else {
			r.mu.Lock()
			r.failed = append(r.failed, fmt.Sprintf("%s: %d %v", time.Now().Format("15:04:05.000"), status, err))
			r.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// TestKillLeader is the suite.
func TestKillLeader(t *testing.T) {
	kills := 5
	if s := os.Getenv("ZT_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	r := begin(t)
	r.apply(1) // before anything is killed, so that the Envoys are known to be there
	r.judges(1)
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() { r.load(ctx) })
	}
	var writes, verdicts []time.Duration
	for round := 2; round < kills+2; round++ {
		n, err := r.Leader(r.ctx())
		r.check(err)
		r.Servers[n].Kill()
		killed := time.Now()
		r.apply(round)
		writes = append(writes, time.Since(killed))
		r.judges(round)
		verdicts = append(verdicts, time.Since(killed))
		r.check(r.Servers[n].Start(r.Site))
		r.check(r.Servers[n].Ready(r.ctx()))
		r.check(r.Together(r.ctx()))
		if testing.Verbose() {
			fmt.Printf("kill %d of %d: writes back after %v, judged by after %v, %d requests passed, %d lost\n",
				round-1, kills, writes[round-2].Round(10*time.Millisecond), verdicts[round-2].Round(10*time.Millisecond), r.passed.Load(), r.lost())
		}
	}
	stop()
	load.Wait()
	if n := r.lost(); n > 0 {
		t.Errorf("%d requests lost, such as %s", n, r.failed[0])
	}
	if r.passed.Load() == 0 {
		t.Error("no request passed")
	}
	slices.Sort(writes)
	slices.Sort(verdicts)
	p99 := func(d []time.Duration) time.Duration { return d[(len(d)*99+99)/100-1] }
	t.Logf("%d kills of the leader: %d requests passed, %d lost; writes back p50 %v, p99 %v; Envoys judge by the change p50 %v, p99 %v",
		kills, r.passed.Load(), r.lost(), writes[len(writes)/2], p99(writes), verdicts[len(verdicts)/2], p99(verdicts))
	verdict := func(ok bool) string {
		if ok {
			return "met"
		}
		return "short"
	}
	fmt.Printf("figure kill-leader-lost-requests %d requests goal <= 0 %s\n", r.lost(), verdict(r.lost() == 0))
	fmt.Printf("figure kill-leader-writes-back-p99 %.2f s goal <= 4 %s\n", p99(writes).Seconds(), verdict(p99(writes) <= 4*time.Second))
}

func (r *run) lost() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed)
}
