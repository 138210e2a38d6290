package controlplane_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestReads: lists come in pages of one revision, a watch goes on where it was,
// and what is no longer kept is said so.
func TestReads(t *testing.T) {
	c := newCluster(t, 1, nil)
	var many strings.Builder
	for i := range 25 {
		many.WriteString(workload("team", fmt.Sprintf("w%02d", i)))
	}
	first := c.Submit(shop)
	all := c.Submit(many.String())
	var names []string
	req := &ztv1.ListDocumentsRequest{PageSize: 10, Namespace: "team"}
	for pages := 1; ; pages++ {
		resp, err := c.Admin().ListDocuments(c.ctx(), req)
		c.check(err)
		for _, d := range resp.Documents {
			names = append(names, d.Document.Metadata.Name)
		}
		if resp.Revision != all.Revision || resp.Namespaces["team"] != all.Revision || resp.Namespaces["shop"] != first.Revision {
			t.Errorf("revisions %d, %v", resp.Revision, resp.Namespaces)
		}
		if req.PageToken = resp.NextPageToken; req.PageToken == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	if len(names) != 25 || names[0] != "w00" || names[24] != "w24" {
		t.Errorf("listed %v", names)
	}
	page, err := c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{PageSize: 1})
	c.check(err)
	c.Submit(shop + workload("shop", "more"))
	_, err = c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{PageToken: page.NextPageToken})
	c.refused(codes.Aborted, err) // all pages are of one revision
	for _, token := range []string{"x", ":::", "1:2:3", "-1:a:b:c", "99999999999999999999:a:b:c"} {
		_, err = c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{PageToken: token})
		c.refused(codes.InvalidArgument, err)
	}
	got, err := c.Admin().GetDocument(c.ctx(), &ztv1.GetDocumentRequest{Kind: "Grant", Namespace: "shop", Name: "web-reads-orders"})
	c.check(err)
	if got.Document.Revision != first.Revision {
		t.Errorf("document of revision %d, want %d", got.Document.Revision, first.Revision)
	}
	_, err = c.Admin().GetDocument(c.ctx(), &ztv1.GetDocumentRequest{Kind: "Grant", Namespace: "shop", Name: "none"})
	c.refused(codes.NotFound, err)

	watch, err := c.Admin().WatchDocuments(c.ctx(), &ztv1.WatchDocumentsRequest{FromRevision: first.Revision, Namespace: "shop"})
	c.check(err)
	last := c.Submit(shop)
	for _, action := range []string{"add", "remove"} {
		m, err := watch.Recv()
		c.check(err)
		if len(m.Revision.Changes) != 1 || m.Revision.Changes[0].Action != action || m.Revision.Changes[0].Name != "more" {
			t.Errorf("watched %v, want to %s shop/more", m.Revision, action)
		}
	}
	revisions, err := c.Admin().ListRevisions(c.ctx(), &ztv1.ListRevisionsRequest{PageSize: 2})
	c.check(err)
	if len(revisions.Revisions) != 2 || revisions.Revisions[0].Revision != last.Revision || revisions.Revisions[0].Who != "admin/admin" {
		t.Errorf("revisions %v", revisions.Revisions)
	}
	// Without proxies a receipt is complete at once.
	receipt, err := c.Admin().WatchReceipt(c.ctx(), &ztv1.WatchReceiptRequest{Revision: last.Revision})
	c.check(err)
	if m, err := receipt.Recv(); err != nil || !m.Complete || len(m.Proxies) != 0 {
		t.Errorf("receipt %v, %v", m, err)
	}
	// One that is enrolled and not connected is not confirmed.
	c.enrol("shop/orders")
	receipt, err = c.Admin().WatchReceipt(c.ctx(), &ztv1.WatchReceiptRequest{Revision: first.Revision})
	c.check(err)
	if m, err := receipt.Recv(); err != nil || m.Complete || len(m.Proxies) != 1 || m.Proxies[0].State != "unconfirmed" {
		t.Errorf("receipt %v, %v", m, err)
	}
}

// TestFollower: what needs the leader is forwarded to it, on behalf of the caller
// and with the leader's own answers; a server without quorum refuses to read,
// unless what is old will do.
func TestFollower(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.Leader()
	follower := c.Others(leader)[0]
	ed := c.addAdmin("ed", "editor", "shop")
	at := c.as(follower, ed)
	resp, err := at.Apply(c.ctx(), applyRequest(shop))
	c.check(err)
	_, err = at.Apply(c.ctx(), applyRequest(workload("bank", "vault")))
	if got := c.refused(codes.PermissionDenied, err); !strings.Contains(got, "admin/ed") {
		t.Errorf("refused with %q", got)
	}
	_, err = at.Apply(c.ctx(), applyRequest(broken))
	c.refused(codes.InvalidArgument, err)
	if len(status.Convert(err).Details()) != 1 {
		t.Errorf("details of a forwarded answer: %v", status.Convert(err).Details())
	}
	list, err := at.ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	c.check(err)
	if list.Revision != resp.Revision {
		t.Errorf("read %d after writing %d", list.Revision, resp.Revision)
	}
	// An enrolment by a follower is from where its session came from.
	token, err := at.CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Workload: "shop/web"})
	c.check(err)
	_, req := c.enrolment(token.Token, "shop/web")
	enrolled, err := c.node(follower, nil).Enrol(c.ctx(), req)
	c.check(err)
	if enrolled.Address != "127.0.0.1" || len(enrolled.Servers) != 3 {
		t.Errorf("enrolled at %s, with %v", enrolled.Address, enrolled.Servers)
	}
	c.removeAdmin("ed")
	_, err = at.Apply(c.ctx(), applyRequest(workload("shop", "late")))
	c.refused(codes.PermissionDenied, err)

	// The others stop: the one that is left has no quorum, whoever it was.
	for _, s := range c.Servers {
		if s != follower && s != leader {
			s.Stop()
		}
	}
	follower.Stop()
	left := c.as(leader, c.AdminPair())
	c.Until("reads are refused", func() bool {
		_, err := left.ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
		return status.Code(err) == codes.Unavailable
	})
	_, err = left.CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Workload: "shop/web"})
	c.refused(codes.Unavailable, err)
	list, err = left.ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{Stale: true})
	c.check(err)
	if list.Revision != resp.Revision {
		t.Errorf("a stale read of %d, want %d", list.Revision, resp.Revision)
	}
}

// TestRenewNeedsALeader: a server that has heard none for five minutes renews
// nothing, and does so again once it has.
func TestRenewNeedsALeader(t *testing.T) {
	var ahead atomic.Int64
	c := newCluster(t, 2, func(cfg *controlplane.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	c.Submit(shop)
	id, pair := c.enrol("shop/web")
	_, csr := c.NewRequest()
	leader := c.Leader()
	follower := c.Others(leader)[0]
	c.Servers[0] = follower // who is asked from now on
	renew := func() error {
		_, err := c.node(follower, pair).Renew(c.ctx(), &ztv1.RenewRequest{NodeCsr: csr})
		return err
	}
	c.Until("the follower knows the instance", func() bool { return renew() == nil })
	_, err := c.node(follower, pair).Renew(c.ctx(), &ztv1.RenewRequest{SvidCsr: csr})
	c.refused(codes.PermissionDenied, err) // its workload's key is not its own
	leader.Stop()
	ahead.Store(int64(4 * time.Minute))
	c.check(renew())
	ahead.Store(int64(6 * time.Minute))
	if got := c.refused(codes.Unavailable, renew()); !strings.Contains(got, "no leader") {
		t.Errorf("refused with %q", got)
	}
	leader.Start()
	c.Until("it renews again", func() bool { return renew() == nil })
	mesh.Settled(c.Mesh, "a deregistration", func() (*ztv1.DeregisterInstanceResponse, error) {
		return c.Admin().DeregisterInstance(c.ctx(), &ztv1.DeregisterInstanceRequest{Instance: id})
	})
	c.Until("it renews no more", func() bool { return status.Code(renew()) == codes.PermissionDenied })
}

// TestOneProcess: a data directory is of one process at a time.
func TestOneProcess(t *testing.T) {
	c := newCluster(t, 1, nil)
	cfg := controlplane.Default()
	cfg.DataDir, cfg.AdminListen, cfg.NodeListen, cfg.ClusterListen, cfg.LocalListen = c.Servers[0].Dir, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	second, err := controlplane.New(cfg)
	c.check(err)
	if err := second.Run(c.ctx()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server: %v", err)
	}
	before := c.Servers[0].Addresses()
	c.Submit(shop)
	c.Servers[0].Stop()
	c.Servers[0].Start()
	if now := c.Servers[0].Addresses(); now != before {
		t.Errorf("addresses %v, were %v", now, before)
	}
	if resp := c.Submit(shop); len(resp.Changes) != 0 {
		t.Errorf("after a restart: %v", resp.Changes)
	}
}
