//go:build system

package recovery_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest"
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
type run struct{ *fleet.Test }

// begin starts three servers, built with more tags.
func begin(t *testing.T, tags ...string) *run {
	t.Helper()
	r := &run{fleet.NewTest(t, patience, []string{"ztd", "ztagent"}, tags...)}
	r.BeginThree(trustDomain, "--election-timeout", "500ms")
	return r
}

// apply makes a change at a server, as soon as that can.
func (r *run) apply(n int, yaml string) uint64 {
	r.T.Helper()
	req := fleet.Documents(yaml)
	req.Merge = true
	return r.Apply(n, req)
}

// replace makes all documents of the namespaces those of yaml, at a server, once.
func (r *run) replace(n int, yaml string) error {
	_, err := r.API(n).Apply(r.Context(), fleet.Documents(yaml))
	return err
}

// lead makes a server the leader.
func (r *run) lead(n int) error {
	return fleet.Until(r.Context(), "another leader", func(ctx context.Context) error {
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

// call is a request of web to orders, through both Envoys.
func (r *run) call(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return fleet.Get(ctx, client, r.Block.At(11), "orders.shop.mesh", "/orders/7")
}

// TestQuorumLost: of three servers one is behind, and then two are lost for ever. The
// third serves on, read-only; it is recovered by the documented commands, with a real
// Envoy that goes on all the time and then follows the policy again; servers of before
// are refused and join anew.
func TestQuorumLost(t *testing.T) {
	r := begin(t)
	app, err := zttest.NewHTTPApp("orders", r.Block.At(32)+":8080")
	r.Check(err)
	t.Cleanup(app.Close)
	workloads := strings.ReplaceAll(spec, "APP", r.Block.At(32))
	r.apply(0, workloads+"---\n"+grant)
	r.AgentWithEnvoy("shop/web", 21, 11)
	r.AgentWithEnvoy("shop/orders", 22, 12)
	r.Until("web reaches orders", r.call)

	// The staler survivor is told which one to use.
	stale, lost, fresh := r.Servers[1], r.Servers[0], r.Servers[2]
	stale.Kill()
	before := r.apply(2, "apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: later}\nspec: {}\n")
	load := zttest.StartCalls(t.Context(), 1, 20*time.Millisecond, r.call)
	lost.Kill()
	_, err = r.Command(r.Context(), "ztd", "recover", "--yes", "--data-dir", stale.Name, "--lost", r.IDs[0])
	if err == nil || !strings.Contains(err.Error(), "server "+r.IDs[2]+" ("+fresh.Host+":7402) has entries that this one has not") || !strings.Contains(err.Error(), "that is a quorum") {
		t.Fatalf("the staler one is recovered: %v", err)
	}

	// Read-only, and the proxies notice nothing.
	read, err := r.API(2).ListDocuments(r.Context(), &ztv1.ListDocumentsRequest{Kind: "Workload", Stale: true})
	if err != nil || len(read.Documents) < 2 { // of the last apply it may have the entry only
		t.Errorf("a stale read: %v, %v", read, err)
	}
	_, err = r.API(2).Apply(r.Context(), fleet.Documents(grant))
	if c := status.Code(err); c != codes.Unavailable && c != codes.DeadlineExceeded {
		t.Errorf("an apply without a quorum: %v", err)
	}

	// The drill of docs/operations.md.
	began := time.Now()
	fresh.Kill()
	recover := []string{"recover", "--data-dir", fresh.Name, "--lost", r.IDs[0] + "," + r.IDs[1]}
	report, err := r.Command(r.Context(), "ztd", "recover", "--report", "--data-dir", stale.Name)
	r.Check(err)
	file := filepath.Join(r.Dir, "report.json")
	r.Check(os.WriteFile(file, []byte(report), 0o600))
	if _, err := r.Command(r.Context(), "ztd", "recover", "--yes", "--data-dir", fresh.Name, "--survivor", file, "--lost", r.IDs[0]); err == nil || !strings.Contains(err.Error(), "that is a quorum") {
		t.Errorf("with a quorum on its disks: %v", err)
	}
	said, err := r.Command(r.Context(), "ztd", append(recover, "--dry-run")...)
	if err != nil || !strings.Contains(said, "nothing was changed") || !strings.Contains(said, fmt.Sprintf("revision %d", before)) {
		t.Fatalf("%s, %v", said, err)
	}
	if _, err := r.Command(r.Context(), "ztd", recover...); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("without an answer: %v", err)
	}
	said, err = r.Command(r.Context(), "ztd", append(recover, "--yes", "-o", "json")...)
	r.Check(err)
	var done controlplane.Recovered
	if err := json.Unmarshal([]byte(said), &done); err != nil || !done.Done || done.Before.Server != r.IDs[2] || len(done.Lost) != 2 {
		t.Fatalf("%s, %v", said, err)
	}
	r.Check(fresh.Start(r.Site))
	r.Check(fresh.Ready(r.Context()))
	after := r.apply(2, "apiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: after}\nspec: {}\n")
	took := time.Since(began)
	if read, err = r.API(2).ListDocuments(r.Context(), &ztv1.ListDocumentsRequest{Kind: "Workload"}); err != nil || len(read.Documents) != 4 {
		t.Errorf("what was acknowledged by a lost server and this one: %v, %v", read, err)
	}
	if after < 1<<40 {
		t.Errorf("revision %d goes on from %d", after, before)
	}
	if took > 5*time.Minute/3 {
		t.Errorf("the recovery took %v", took)
	}
	calls, err := load.Stop()
	if err != nil || calls < 20 {
		t.Errorf("%d calls passed, %v", calls, err)
	}
	t.Logf("recovered, and a change agreed on, in %v; 0 of %d calls failed meanwhile", took.Round(time.Millisecond), calls)

	// The Envoys follow: what is taken away is gone.
	r.Until("the grant ends", func(ctx context.Context) error {
		_, err := r.API(2).Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "f", Content: []byte(workloads)}}})
		return err
	})
	r.Until("web is denied", func(ctx context.Context) error { return fleet.Denied(r.call(ctx)) })

	// Who comes back is refused, and joins anew.
	r.Check(lost.Start(r.Site))
	r.Until("it is refused", func(context.Context) error {
		if log := zttest.Tail(r.Log(lost.Name), 200); !strings.Contains(log, "of another epoch") && !strings.Contains(log, "failed to make requestVote RPC") {
			return errors.New(log)
		}
		return nil
	})
	group, err := fresh.Group(r.Context())
	if err != nil || len(group) != 1 {
		t.Errorf("a server of before is back: %v, %v", group, err)
	}
	lost.Kill()
	r.Servers, r.IDs, r.Ports = r.Servers[2:], []string{done.Server}, r.Ports[2:]
	for _, s := range []*fleet.Server{lost, stale} {
		args, err := r.tokenFor(s)
		r.Check(err)
		_, err = r.Command(r.Context(), "ztd", args...)
		r.Check(err)
		r.Check(s.Start(r.Site))
		r.Check(s.Ready(r.Context()))
		id, err := r.ID(s)
		r.Check(err)
		r.Servers, r.IDs = append(r.Servers, s), append(r.IDs, id)
	}
	r.Check(r.Together(r.Context()))
	r.Check(r.Converge(r.Context()))
}

// tokenFor is how a server of before joins anew.
func (r *run) tokenFor(s *fleet.Server) ([]string, error) {
	token, err := r.Token(r.Context(), "")
	if err != nil {
		return nil, err
	}
	args, err := r.JoinArgs(s, token, 0)
	return append(args, "--replace"), err
}
