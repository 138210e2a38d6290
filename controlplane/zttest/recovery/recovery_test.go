//go:build system

package recovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// patience bounds each wait for what takes a second or two.
const patience = time.Minute

const trustDomain = "shop.example"

// spec is a caller and a callee; the grant is apart.
const spec = `apiVersion: ztmesh.dev/v1alpha1
kind: Mesh
metadata: {namespace: mesh, name: mesh}
spec: {trustDomain: shop.example}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec:
  serves:
  - {name: http, port: 8443, target: "APP:8080", protocol: http}
`

const grant = `apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec:
  from: {workloads: [web]}
  to: {services: [orders], methods: [GET], paths: ["/orders/**"]}
`

// run is a cluster of three servers.
type run struct {
	*fleet.Cluster
	t     *testing.T
	block zttest.Block
}

// begin starts three servers, built with more tags.
func begin(t *testing.T, tags ...string) *run {
	t.Helper()
	dir := t.TempDir()
	block, err := zttest.NewBlock()
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		Cluster: &fleet.Cluster{Site: &fleet.Site{Bin: filepath.Join(dir, "bin"), Dir: dir, Env: fleet.Environment()}, Tags: tags}, t: t, block: block,
	}
	t.Cleanup(func() {
		for _, s := range r.Servers {
			if s.Running() {
				s.Kill()
			}
			if t.Failed() {
				t.Logf("%s:\n%s", s.Name, zttest.Tail(r.Log(s.Name), 30))
			}
		}
	})
	r.check(r.Build(t.Context(), filepath.Join("..", "..", ".."), "ztd", "ztagent"))
	var servers []*fleet.Server
	for n := range 3 {
		servers = append(servers, &fleet.Server{Name: fmt.Sprint("ztd-", n+1), Host: block.At(n + 1), Flags: []string{"--election-timeout", "500ms"}})
	}
	r.check(r.Begin(r.ctx(), trustDomain, servers))
	return r
}

func (r *run) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *run) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// apply makes a change at a server, as soon as that can.
func (r *run) apply(n int, yaml string) uint64 {
	r.t.Helper()
	var revision uint64
	r.check(fleet.Until(r.ctx(), "an apply", func(ctx context.Context) error {
		resp, err := r.API(n).Apply(ctx, &ztv1.ApplyRequest{Merge: true, Files: []*ztv1.File{{Name: "f.yaml", Content: []byte(yaml)}}})
		revision = resp.GetRevision()
		return err
	}))
	return revision
}

// replace makes all documents of the namespaces those of yaml, at a server, once.
func (r *run) replace(n int, yaml string) error {
	_, err := r.API(n).Apply(r.ctx(), &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "f.yaml", Content: []byte(yaml)}}})
	return err
}

// lead makes a server the leader.
func (r *run) lead(n int) error {
	return fleet.Until(r.ctx(), "another leader", func(ctx context.Context) error {
		if _, err := r.API(n).TransferLeadership(ctx, &ztv1.TransferLeadershipRequest{Id: r.IDs[n]}); err != nil {
			return err
		}
		leader, err := r.Leader(ctx)
		if err == nil && leader != n {
			err = fmt.Errorf("%d leads", leader)
		}
		return err
	})
}

// agent starts an agent with its Envoy.
func (r *run) agent(name string, n int) {
	r.t.Helper()
	binary, err := envoy.Find()
	r.check(err)
	token, err := r.Token(r.ctx(), "shop/"+name)
	r.check(err)
	file, err := r.TokenFile(name, token)
	r.check(err)
	var nodes []string
	for _, s := range r.Servers {
		nodes = append(nodes, s.Node())
	}
	p, err := zttest.Start(zttest.Command{
		Name: name, Path: r.Program("ztagent"), Dir: r.Dir, Env: r.Env, Log: r.Log(name),
		Args: []string{
			"run", "--workload", "shop/" + name, "--server", strings.Join(nodes, ","), "--token-file", file, "--data-dir", name,
			"--address", r.block.At(20 + n), "--egress-address", r.block.At(10 + n), "--envoy", binary, "--envoy-concurrency", "1",
		},
	})
	r.check(err)
	r.t.Cleanup(func() {
		p.Kill()
		if r.t.Failed() {
			r.t.Logf("%s:\n%s", name, zttest.Tail(r.Log(name), 20))
		}
	})
}

// call is a request of web to orders, through both Envoys.
func (r *run) call(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.block.At(11)+":15001/orders/7", nil)
	if err != nil {
		return 0, err
	}
	req.Host = "orders.shop.mesh"
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

func (r *run) answers(code int) {
	r.t.Helper()
	r.check(fleet.Until(r.ctx(), fmt.Sprint("calls get ", code), func(ctx context.Context) error {
		got, err := r.call(ctx)
		if err == nil && got != code {
			err = fmt.Errorf("%d", got)
		}
		return err
	}))
}

// traffic calls until the returned function is called, which tells how many calls there
// were and what went wrong with some.
func (r *run) traffic() (stop func() (calls int, failed []string)) {
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	calls, failed := 0, []string(nil)
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			once, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			code, err := r.call(once)
			done()
			calls++
			if err != nil || code != http.StatusOK {
				failed = append(failed, fmt.Sprintf("%d %v", code, err))
			}
		}
	})
	return func() (int, []string) {
		cancel()
		wg.Wait()
		return calls, failed
	}
}

// TestQuorumLost: of three servers one is behind, and then two are lost for ever. The
// third serves on, read-only; it is recovered by the documented commands, with a real
// Envoy that goes on all the time and then follows the policy again; servers of before
// are refused and join anew.
func TestQuorumLost(t *testing.T) {
	r := begin(t)
	app, err := zttest.NewHTTPApp("orders", r.block.At(32)+":8080")
	r.check(err)
	t.Cleanup(app.Close)
	workloads := strings.ReplaceAll(spec, "APP", r.block.At(32))
	r.apply(0, workloads+"---\n"+grant)
	r.agent("web", 1)
	r.agent("orders", 2)
	r.answers(http.StatusOK)

	// The staler survivor is told which one to use.
	stale, lost, fresh := r.Servers[1], r.Servers[0], r.Servers[2]
	stale.Kill()
	before := r.apply(2, "apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: later}\nspec: {}\n")
	stop := r.traffic()
	lost.Kill()
	_, err = r.Command(r.ctx(), "ztd", "recover", "--yes", "--data-dir", stale.Name, "--lost", r.IDs[0])
	if err == nil || !strings.Contains(err.Error(), "server "+r.IDs[2]+" ("+fresh.Host+":7402) has entries that this one has not") || !strings.Contains(err.Error(), "that is a quorum") {
		t.Fatalf("the staler one is recovered: %v", err)
	}

	// Read-only, and the proxies notice nothing.
	read, err := r.API(2).ListDocuments(r.ctx(), &ztv1.ListDocumentsRequest{Kind: "Workload", Stale: true})
	if err != nil || len(read.Documents) < 2 { // of the last apply it may have the entry only
		t.Errorf("a stale read: %v, %v", read, err)
	}
	_, err = r.API(2).Apply(r.ctx(), &ztv1.ApplyRequest{Merge: true, Files: []*ztv1.File{{Name: "f", Content: []byte(grant)}}})
	if c := status.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded {
		t.Errorf("an apply without a quorum: %v", err)
	}

	// The drill of docs/operations.md.
	began := time.Now()
	fresh.Kill()
	recover := []string{"recover", "--data-dir", fresh.Name, "--lost", r.IDs[0] + "," + r.IDs[1]}
	report, err := r.Command(r.ctx(), "ztd", "recover", "--report", "--data-dir", stale.Name)
	r.check(err)
	file := filepath.Join(r.Dir, "report.json")
	r.check(os.WriteFile(file, []byte(report), 0o600))
	if _, err := r.Command(r.ctx(), "ztd", "recover", "--yes", "--data-dir", fresh.Name, "--survivor", file, "--lost", r.IDs[0]); err == nil || !strings.Contains(err.Error(), "that is a quorum") {
		t.Errorf("with a quorum on its disks: %v", err)
	}
	said, err := r.Command(r.ctx(), "ztd", append(recover, "--dry-run")...)
	if err != nil || !strings.Contains(said, "nothing was changed") || !strings.Contains(said, fmt.Sprintf("revision %d", before)) {
		t.Fatalf("%s, %v", said, err)
	}
	if _, err := r.Command(r.ctx(), "ztd", recover...); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("without an answer: %v", err)
	}
	said, err = r.Command(r.ctx(), "ztd", append(recover, "--yes", "-o", "json")...)
	r.check(err)
	var done controlplane.Recovered
	if err := json.Unmarshal([]byte(said), &done); err != nil || !done.Done || done.Before.Server != r.IDs[2] || len(done.Lost) != 2 {
		t.Fatalf("%s, %v", said, err)
	}
	r.check(fresh.Start(r.Site))
	r.check(fresh.Ready(r.ctx()))
	after := r.apply(2, "apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: after}\nspec: {}\n")
	took := time.Since(began)
	if read, err = r.API(2).ListDocuments(r.ctx(), &ztv1.ListDocumentsRequest{Kind: "Workload"}); err != nil || len(read.Documents) != 4 {
		t.Errorf("what was acknowledged by a lost server and this one: %v, %v", read, err)
	}
	if after < 1<<40 {
		t.Errorf("revision %d goes on from %d", after, before)
	}
	if took > 5*time.Minute/3 {
		t.Errorf("the recovery took %v", took)
	}
	calls, failed := stop()
	if len(failed) > 0 || calls < 20 {
		t.Errorf("%d of %d calls failed: %v", len(failed), calls, failed)
	}
	t.Logf("recovered, and a change agreed on, in %v; 0 of %d calls failed meanwhile", took.Round(time.Millisecond), calls)

	// The Envoys follow: what is taken away is gone.
	r.check(fleet.Until(r.ctx(), "the grant ends", func(ctx context.Context) error {
		_, err := r.API(2).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "f", Content: []byte(workloads)}}})
		return err
	}))
	r.answers(http.StatusForbidden)

	// Who comes back is refused, and joins anew.
	r.check(lost.Start(r.Site))
	r.check(fleet.Until(r.ctx(), "it is refused", func(context.Context) error {
		if log := zttest.Tail(r.Log(lost.Name), 200); !strings.Contains(log, "of another epoch") && !strings.Contains(log, "failed to make requestVote RPC") {
			return errors.New(log)
		}
		return nil
	}))
	group, err := fresh.Group(r.ctx())
	if err != nil || len(group) != 1 {
		t.Errorf("a server of before is back: %v, %v", group, err)
	}
	lost.Kill()
	r.Servers, r.IDs, r.Ports = r.Servers[2:], []string{done.Server}, r.Ports[2:]
	for _, s := range []*fleet.Server{lost, stale} {
		args, err := r.tokenFor(s)
		r.check(err)
		_, err = r.Command(r.ctx(), "ztd", args...)
		r.check(err)
		r.check(s.Start(r.Site))
		r.check(s.Ready(r.ctx()))
		id, err := r.ID(s)
		r.check(err)
		r.Servers, r.IDs = append(r.Servers, s), append(r.IDs, id)
	}
	r.check(r.Together(r.ctx()))
	r.check(r.Converge(r.ctx()))
}

// tokenFor is how a server of before joins anew.
func (r *run) tokenFor(s *fleet.Server) ([]string, error) {
	token, err := r.Token(r.ctx(), "")
	if err != nil {
		return nil, err
	}
	args, err := r.JoinArgs(s, token, 0)
	return append(args, "--replace"), err
}
