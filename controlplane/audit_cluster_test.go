package controlplane_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestAuditOfCalls: a call has its caller and its address on record, also when
// another server forwarded it, and every server has the same record.
func TestAuditOfCalls(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, s := range c.Servers { // two of them forward it
		mesh.Settled(c.Mesh, "an apply", func() (*ztv1.ApplyResponse, error) {
			return c.as(s, c.AdminPair()).Apply(c.ctx(), applyRequest(workload("shop", "by-"+s.ID())))
		})
	}
	resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Namespace: "shop", Method: "Apply"})
	c.check(err)
	if len(resp.Records) < 3 {
		t.Fatalf("%d records", len(resp.Records))
	}
	for _, r := range resp.Records {
		if r.Who != "spiffe://control."+trustDomain+"/admin/admin" || r.From != "127.0.0.1" || r.Method != ztv1.AdminService_Apply_FullMethodName {
			t.Errorf("record %v", r)
		}
	}
	viewer := c.addAdmin("auditor", "viewer")
	if _, err := c.as(c.Servers[0], viewer).ListAudit(c.ctx(), &ztv1.ListAuditRequest{}); err != nil {
		t.Error(err)
	}
	stream, err := c.as(c.Servers[0], viewer).ReadJournal(c.ctx(), &ztv1.ReadJournalRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	c.refused(codes.PermissionDenied, err)
}

// TestCutJournal: a server whose issuance journal was cut while it was down signs
// nothing more.
func TestCutJournal(t *testing.T) {
	c := newCluster(t, 1, func(cfg *controlplane.Config) { cfg.AnchorEvery = 20 * time.Millisecond })
	c.addAdmin("eve", "viewer") // is signed, and anchored
	s := c.Servers[0]
	c.Until("an anchor", func() bool {
		resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Method: "AnchorJournal", PageSize: 1})
		c.check(err)
		return len(resp.Records) > 0
	})
	s.Stop()
	name := filepath.Join(s.Dir, "issuance.log")
	b, err := os.ReadFile(name)
	c.check(err)
	first, _, _ := bytes.Cut(b, []byte("\n")) // all else goes: what was anchored, too
	c.check(os.WriteFile(name, append(first, '\n'), 0o600))
	s.Start()
	_, csr := c.NewRequest()
	c.Until("it signs nothing more", func() bool { // as soon as it has looked
		_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "mallory", Role: "viewer", Csr: csr})
		return err != nil
	})
}
