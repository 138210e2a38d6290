package controlplane_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
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
	if _, refused := journalOf(c, s); !strings.Contains(refused, "does not lead through its anchor") {
		t.Errorf("it says of its journal: %q", refused)
	}

	// Until an admin says why that may be.
	_, err = c.Admin().AcceptJournal(c.ctx(), &ztv1.AcceptJournalRequest{Server: mesh.NewID(), Reason: "x"})
	c.refused(codes.NotFound, err)
	_, err = c.Admin().AcceptJournal(c.ctx(), &ztv1.AcceptJournalRequest{Server: s.ID()})
	c.refused(codes.InvalidArgument, err)
	_, err = c.Admin().AcceptJournal(c.ctx(), &ztv1.AcceptJournalRequest{Server: s.ID(), Reason: "the disk was replaced"})
	c.check(err)
	c.Until("it signs again", func() bool {
		_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "bob", Role: "viewer", Csr: csr})
		return err == nil
	})
	resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Method: "AcceptJournal"})
	c.check(err)
	if len(resp.Records) != 2 && len(resp.Records) != 1 || resp.Records[0].Detail != "the disk was replaced" || resp.Records[0].Resources[0].Name != s.ID() {
		t.Errorf("on record: %v", resp.Records)
	}

	// Once: the next cut is refused again.
	s.Stop()
	c.check(os.WriteFile(name, append(first, '\n'), 0o600))
	s.Start()
	c.Until("it signs nothing more", func() bool {
		_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "mallory", Role: "viewer", Csr: csr})
		return err != nil
	})
}

// journalOf is what a server says of its issuance journal, verified, and why it signs
// nothing; empty: it does.
func journalOf(c *cluster, s *mesh.Server) (first *ztv1.ReadJournalResponse, refused string) {
	c.t.Helper()
	stream, err := c.as(s, c.AdminPair()).ReadJournal(c.ctx(), &ztv1.ReadJournalRequest{})
	c.check(err)
	first, err = stream.Recv()
	c.check(err)
	var all bytes.Buffer
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		c.check(err)
		for _, line := range resp.Lines {
			all.Write(append(line, '\n'))
		}
	}
	_, err = identity.VerifyJournal(&all, identity.Head{Lines: first.LetGo, Hash: first.LetGoHash})
	c.check(err)
	return first, first.Refused
}

// TestJournalRotation: a journal that has grown too large lets its oldest lines go, as
// the audit log says before, and signs on; also after a restart. One that has lost more
// than that is refused.
func TestJournalRotation(t *testing.T) {
	c := newCluster(t, 1, func(cfg *controlplane.Config) {
		cfg.AnchorEvery = 20 * time.Millisecond
		cfg.Issuance = controlplane.Issuance{SegmentBytes: 1 << 10, MaxBytes: 4 << 10}
	})
	s := c.Servers[0]
	_, csr := c.NewRequest()
	signs := func(n int) {
		t.Helper()
		for i := range n {
			_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: fmt.Sprint("a", i), Role: "viewer", Csr: csr})
			c.check(err)
		}
	}
	var at *ztv1.ReadJournalResponse
	rotates := func(after uint64) {
		t.Helper()
		c.Until("lines are let go", func() bool {
			signs(5)
			at, _ = journalOf(c, s)
			return at.LetGo > after
		})
		if at.Refused != "" || at.Anchor.LetGo < at.LetGo {
			t.Fatalf("%v", at)
		}
	}
	rotates(0)
	resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Method: "AnchorJournal", PageSize: 1000})
	c.check(err)
	if !slices.ContainsFunc(resp.Records, func(r *logv1.AuditRecord) bool {
		return strings.HasSuffix(r.Detail, fmt.Sprintf(", %d let go", at.LetGo))
	}) {
		t.Errorf("it is not on record that %d lines went", at.LetGo)
	}
	s.Stop()
	s.Start()
	c.Until("it signs after a restart", func() bool {
		_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "bob", Role: "viewer", Csr: csr})
		return err == nil
	})
	rotates(at.LetGo)

	// A forged word of what was let go, with nothing after it.
	s.Stop()
	parts, err := filepath.Glob(filepath.Join(s.Dir, "issuance.log*"))
	c.check(err)
	for _, p := range parts {
		c.check(os.Remove(p))
	}
	c.check(os.WriteFile(filepath.Join(s.Dir, "issuance.log.letgo"), fmt.Appendf(nil, `{"lines":%d,"hash":%q}`, at.Anchor.Lines, at.Anchor.Hash), 0o600))
	s.Start()
	c.Until("it signs nothing more", func() bool {
		_, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "mallory", Role: "viewer", Csr: csr})
		return err != nil
	})
}
