package controlplane_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// documents is every document that is stored, as one text.
func (c *cluster) documents() string {
	c.t.Helper()
	resp, err := c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	c.check(err)
	var out strings.Builder
	for _, d := range resp.Documents {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d.Document)
		c.check(err)
		fmt.Fprintf(&out, "%s %s/%s %x\n", d.Document.Kind, d.Document.Metadata.Namespace, d.Document.Metadata.Name, b)
	}
	return out.String()
}

// TestRollback: the documents are what they were, in a new revision that is recorded
// as any other; what has come since is kept from being overwritten unseen.
func TestRollback(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.Submit(shop + workload("bank", "vault"))
	then, was := c.revision(), c.documents()
	c.Submit(strings.ReplaceAll(shop, "GET", "POST"))
	c.Submit(strings.ReplaceAll(workload("bank", "vault"), "{}", "{serves: [{name: raw, port: 9000, protocol: tcp}]}"))
	between := c.documents()
	roll := func(r *ztv1.RollbackRequest) (*ztv1.RollbackResponse, error) { return c.Admin().Rollback(c.ctx(), r) }

	dry, err := roll(&ztv1.RollbackRequest{Revision: then, DryRun: true})
	c.check(err)
	if len(dry.Changes) != 2 || len(dry.Bases) != 2 || c.documents() != between {
		t.Errorf("a dry run: %v", dry)
	}
	// One of the namespaces, and another one moves on unseen.
	one, err := roll(&ztv1.RollbackRequest{Revision: then, Namespaces: []string{"shop"}, IdempotencyKey: "k"})
	c.check(err)
	if len(one.Changes) != 1 || one.Changes[0].Namespace != "shop" || one.Revision <= dry.Revision {
		t.Errorf("of one namespace: %v", one)
	}
	_, err = roll(&ztv1.RollbackRequest{Revision: then, Bases: dry.Bases})
	c.refused(codes.Aborted, err)
	c.Submit(workload("team", "new"))
	_, err = roll(&ztv1.RollbackRequest{Revision: then, Bases: map[string]uint64{"shop": one.Revision, "bank": dry.Bases["bank"]}})
	c.refused(codes.Aborted, err)
	all, err := roll(&ztv1.RollbackRequest{Revision: then})
	c.check(err)
	if got := c.documents(); got != was {
		t.Errorf("rolled back to:\n%s\nwant:\n%s", got, was)
	}
	if len(all.Changes) != 2 { // bank/vault changes, team/new is removed
		t.Errorf("all: %v", all)
	}
	// A rollback is undone by another one, and a key takes effect once.
	_, err = roll(&ztv1.RollbackRequest{Revision: dry.Revision})
	c.check(err)
	if got := c.documents(); got != between {
		t.Errorf("back again:\n%s\nwant:\n%s", got, between)
	}
	again, err := roll(&ztv1.RollbackRequest{Revision: then, Namespaces: []string{"shop"}, IdempotencyKey: "k"})
	c.check(err)
	if again.Revision != one.Revision || c.documents() != between {
		t.Errorf("a retry made revision %d, not %d", again.Revision, one.Revision)
	}
	_, err = roll(&ztv1.RollbackRequest{Revision: then, IdempotencyKey: "k"})
	c.refused(codes.AlreadyExists, err)

	audit, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Revision: one.Revision})
	c.check(err)
	if len(audit.Records) != 1 || !strings.HasSuffix(audit.Records[0].Method, "/Rollback") || !strings.HasSuffix(audit.Records[0].Who, "/admin/admin") {
		t.Errorf("on record: %v", audit.Records)
	}
	revisions, err := c.Admin().ListRevisions(c.ctx(), &ztv1.ListRevisionsRequest{Before: one.Revision + 1, PageSize: 1})
	c.check(err)
	if r := revisions.Revisions[0]; r.Message != fmt.Sprintf("rollback to revision %d", then) {
		t.Errorf("in the history: %v", r)
	}
	_, err = roll(&ztv1.RollbackRequest{Revision: 1})
	c.refused(codes.OutOfRange, err)
	_, err = roll(&ztv1.RollbackRequest{Revision: 1 << 60})
	c.refused(codes.NotFound, err)
	if code, answer := c.rest(c.AdminPair(), "POST", fmt.Sprintf("/v1alpha1/revisions/%d/rollback", then), `{"dryRun":true}`); code != 200 || len(answer["changes"].([]any)) != 2 {
		t.Errorf("REST: %d %v", code, answer)
	}
}

// TestRollbackIsNoWayAround: it may do nothing that an apply of the same documents may
// not.
func TestRollbackIsNoWayAround(t *testing.T) {
	c := newCluster(t, 1, nil)
	const assertion = `---
apiVersion: ztmesh.dev/v1alpha1
kind: Assertion
metadata: {namespace: bank, name: nobody-posts}
spec: {tests: [{as: {workload: shop/web}, request: POST shop/orders /, want: deny}]}
`
	c.Submit(strings.ReplaceAll(shop, "GET", "POST"))
	open := c.revision()
	c.Submit(shop + workload("shop", "old") + workload("bank", "vault"))
	both := c.revision()
	c.Submit(workload("bank", "vault") + assertion)
	safe := c.documents()
	_, err := c.Admin().Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: open, Namespaces: []string{"shop"}})
	if said := c.refused(codes.InvalidArgument, err); said != "1 problem; nothing was applied" {
		t.Errorf("an assertion that is broken: %s", said)
	}

	ed := c.as(c.Servers[0], c.addAdmin("ed", "editor", "shop"))
	_, err = ed.Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: both, Namespaces: []string{"bank"}})
	c.refused(codes.PermissionDenied, err)
	_, err = ed.Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: both, DryRun: true})
	if said := c.refused(codes.PermissionDenied, err); !strings.Contains(said, "namespace bank") {
		t.Errorf("what is not the caller's: %s", said)
	}
	if c.documents() != safe {
		t.Error("something was rolled back")
	}
	// What is blocked stays so, and the name of a workload that was deleted stays retired.
	_, err = c.Admin().Block(c.ctx(), &ztv1.BlockRequest{Namespace: "shop", Name: "web", Block: &ztv1.Block{
		Workloads: []string{"web"}, Reason: "stolen key",
	}})
	c.check(err)
	c.Submit(shop)
	_, err = ed.Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: both, Namespaces: []string{"shop"}})
	c.refused(codes.InvalidArgument, err) // ZT4001
	blocked := c.revision()
	c.Submit(strings.ReplaceAll(shop, "GET", "HEAD"))
	_, err = ed.Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: blocked, Namespaces: []string{"shop"}})
	c.check(err)
	_, err = c.Admin().GetDocument(c.ctx(), &ztv1.GetDocumentRequest{Kind: "Block", Namespace: "shop", Name: "web"})
	c.check(err)
	_, err = c.Admin().Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "web"})
	c.check(err)
	_, err = ed.Rollback(c.ctx(), &ztv1.RollbackRequest{Revision: blocked, Namespaces: []string{"shop"}})
	c.check(err)
	if _, err = c.Admin().GetDocument(c.ctx(), &ztv1.GetDocumentRequest{Kind: "Block", Namespace: "shop", Name: "web"}); err == nil {
		t.Error("a rollback has blocked")
	}
}
