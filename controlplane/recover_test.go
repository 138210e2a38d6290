package controlplane_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// TestRecover: of five servers three are lost for ever. The two that are left compare
// what they have; the staler one is refused and names the other, which goes on, with
// everything that is in its log; whoever is of before is refused, and joins anew.
func TestRecover(t *testing.T) {
	c := newCluster(t, 3, nil)
	first := c.Submit(shop)
	stale, fresh := c.Others(c.Leader())[0], c.Others(c.Leader())[1]
	leader := c.Leader()
	stale.Stop()
	c.Submit(shop + workload("more", "one")) // stale has not got it
	leader.Stop()
	fresh.Stop()

	report := func(s *mesh.Server) string {
		r, err := controlplane.Report(reseedConfig(s.Dir))
		c.check(err)
		b, err := json.Marshal(r)
		c.check(err)
		file := filepath.Join(t.TempDir(), "report.json")
		c.check(os.WriteFile(file, b, 0o600))
		return file
	}
	lost := []string{leader.ID()}
	quorum := controlplane.RecoverConfig{Reports: []string{report(stale)}, Lost: lost}
	if _, err := controlplane.Recover(c.ctx(), reseedConfig(fresh.Dir), quorum); !errors.Is(err, controlplane.ErrRecover) || !strings.Contains(err.Error(), "that is a quorum") {
		t.Errorf("two of three: %v", err)
	}
	_, err := controlplane.Recover(c.ctx(), reseedConfig(stale.Dir), controlplane.RecoverConfig{Reports: []string{report(fresh)}, Lost: lost})
	if !errors.Is(err, controlplane.ErrRecover) || !strings.Contains(err.Error(), fresh.ID()) || !strings.Contains(err.Error(), "Recover that one instead") {
		t.Errorf("the staler one: %v", err)
	}

	// One is enough to tell what it has; it need not be recoverable.
	alone := controlplane.RecoverConfig{Lost: []string{leader.ID(), stale.ID()}}
	dry := alone
	dry.DryRun = true
	will, err := controlplane.Recover(c.ctx(), reseedConfig(fresh.Dir), dry)
	if err != nil || will.Done || will.Before.Server != fresh.ID() || will.Before.LastIndex == 0 || will.Before.Revision <= first.Revision {
		t.Fatalf("%+v, %v", will, err)
	}
	no := errors.New("no")
	alone.Confirm = func(controlplane.Recovered) error { return no }
	if _, err := controlplane.Recover(c.ctx(), reseedConfig(fresh.Dir), alone); !errors.Is(err, no) {
		t.Errorf("not confirmed: %v", err)
	}
	if _, err := os.Stat(filepath.Join(fresh.Dir, "recover")); err == nil {
		t.Error("what was not confirmed has begun")
	}
	alone.Confirm = func(r controlplane.Recovered) error {
		if r.Before != will.Before || len(r.Lost) != 2 {
			t.Errorf("asked about %+v", r)
		}
		return nil
	}
	was := fresh.ID()
	done, err := controlplane.Recover(c.ctx(), reseedConfig(fresh.Dir), alone)
	if err != nil || !done.Done || done.Server == was || done.Kept == "" {
		t.Fatalf("%+v, %v", done, err)
	}

	// It has everything, and goes on above all that was given out.
	fresh.Start()
	c.Servers = []*mesh.Server{fresh}
	if fresh.ID() != done.Server {
		t.Errorf("it runs as %s", fresh.ID())
	}
	docs := mesh.Settled(c.Mesh, "a read", func() (*ztv1.ListDocumentsResponse, error) {
		return fresh.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{Kind: "Workload", Namespace: "more"})
	})
	if len(docs.Documents) != 1 {
		t.Errorf("what only two had is lost: %v", docs.Documents)
	}
	after := c.Submit(shop + workload("more", "two"))
	if after.Revision < 1<<40 {
		t.Errorf("revision %d may have been given out by the lost ones", after.Revision)
	}
	audit, err := fresh.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{PageSize: 1000})
	c.check(err)
	recovered := false
	for i, r := range audit.Records { // newest first
		if r.Sequence != audit.Records[0].Sequence-uint64(i) {
			t.Errorf("record %d comes after %d", r.Sequence, audit.Records[max(i, 1)-1].Sequence)
		}
		recovered = recovered || r.Method == "recover" && strings.Contains(r.Detail, was)
	}
	if n := len(audit.Records); n == 0 || audit.Records[n-1].Sequence != 1 || !recovered {
		t.Errorf("%d audit records are left, the recovery is among them: %v", n, recovered)
	}

	// A server of before joins anew by one command; if that fails, it is who it was.
	before, err := os.ReadFile(filepath.Join(stale.Dir, "server.json"))
	c.check(err)
	if err := controlplane.Join(c.ctx(), controlplane.JoinConfig{
		DataDir: stale.Dir, Server: fresh.Addresses().Node, Token: c.Token("shop/web"), Replace: true, // no server's
	}); err == nil {
		t.Error("a server joins by a proxy's token")
	}
	if left, err := os.ReadFile(filepath.Join(stale.Dir, "server.json")); err != nil || !bytes.Equal(left, before) {
		t.Errorf("after a join that failed: %s, %v", left, err)
	}
	if kept, err := filepath.Glob(filepath.Join(stale.Dir, "replaced-*")); err != nil || len(kept) != 0 {
		t.Errorf("left of a join that failed: %v, %v", kept, err)
	}
	c.check(controlplane.Join(c.ctx(), controlplane.JoinConfig{
		DataDir: stale.Dir, Server: fresh.Addresses().Node, Token: c.Token(""), Replace: true,
	}))
	stale.Start()
	c.Servers = append(c.Servers, stale)
	c.Until("two voters", func() bool { return len(c.voters()) == 2 })
	if kept, err := filepath.Glob(filepath.Join(stale.Dir, "replaced-*", "raft")); err != nil || len(kept) != 1 {
		t.Errorf("what it had is not kept: %v, %v", kept, err)
	}
	// What is of another epoch tells nothing.
	of := report(leader)
	fresh.Stop()
	_, err = controlplane.Recover(c.ctx(), reseedConfig(fresh.Dir), controlplane.RecoverConfig{Reports: []string{of}, Lost: []string{stale.ID()}})
	if err == nil || !strings.Contains(err.Error(), "another epoch") {
		t.Errorf("a report of before: %v", err)
	}
}

// TestRecoverRefusesDamage: a log that is damaged is not gone on from.
func TestRecoverRefusesDamage(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	one, other := c.Servers[0], c.Servers[1]
	one.Stop()
	other.Stop()
	damageLog(t, one.Dir)
	_, err := controlplane.Recover(c.ctx(), reseedConfig(one.Dir), controlplane.RecoverConfig{Lost: []string{other.ID()}})
	if !errors.Is(err, store.ErrUnreadable) || !strings.Contains(err.Error(), "another survivor") {
		t.Errorf("damaged: %v", err)
	}
}
