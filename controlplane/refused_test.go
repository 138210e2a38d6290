package controlplane_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/journal"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// refusalsOf is what a server has on record, verified.
func refusalsOf(c *cluster, s *mesh.Server) (out []refusals.Record) {
	c.t.Helper()
	stream, err := c.as(s, c.AdminPair()).ReadRefusals(c.ctx(), &ztv1.ReadRefusalsRequest{})
	c.check(err)
	first, err := stream.Recv()
	c.check(err)
	at := journal.Head{Lines: first.LetGo, Hash: first.LetGoHash}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		c.check(err)
		for _, line := range resp.Lines {
			at, err = journal.Verify(bytes.NewReader(append(bytes.Clone(line), '\n')), at, refusals.Check)
			c.check(err)
			r, err := refusals.Read(line)
			c.check(err)
			out = append(out, r)
		}
	}
}

// TestRefusalsOnRecord: who is turned away is on record, at the server that it spoke to
// and nowhere else, by whichever door it came.
func TestRefusalsOnRecord(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	leader := c.Leader()
	follower := c.Others(leader)[0]
	viewer := c.addAdmin("vi", "viewer")
	instance, node := c.enrol("shop/web")
	foreignRoot, err := identity.NewRoot(trustDomain, identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	key, _ := c.NewRequest()
	chain, err := foreignRoot.IssueAdmin(key.Public(), "admin")
	c.check(err)
	foreign, err := identity.NewKeyPair(key, chain)
	c.check(err)
	id := func(name string) string { return "spiffe://control." + trustDomain + "/" + name }
	const applied = "zt_store_applied_index"
	// A follower that has not heard of them yet turns them away for another reason.
	newest := leader.Metric(applied)
	c.Until("the follower knows the viewer and the instance", func() bool { return follower.Metric(applied) >= newest })

	for _, tt := range []struct {
		name            string
		do              func() error // is refused
		who, what, code string
		reason          string // a part of it
	}{
		{"no certificate", func() error {
			_, err := c.as(follower, nil).GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
			return err
		}, "nobody", ztv1.AdminService_GetServerInfo_FullMethodName, "Unauthenticated", "certificate is required"},
		{"no right, judged by the leader", func() error {
			_, err := c.as(follower, viewer).Apply(c.ctx(), applyRequest(workload("shop", "x")))
			return err
		}, id("admin/vi"), ztv1.AdminService_Apply_FullMethodName, "PermissionDenied", "needs more"},
		{"a stream without the right", func() error {
			stream, err := c.as(follower, viewer).ReadJournal(c.ctx(), &ztv1.ReadJournalRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, id("admin/vi"), ztv1.AdminService_ReadJournal_FullMethodName, "PermissionDenied", "needs more"},
		{"a wrong token", func() error {
			_, req := c.enrolment("zt1.x.y.z", "shop/web")
			_, err := c.node(follower, nil).Enrol(c.ctx(), req)
			return err
		}, "nobody", ztv1.NodeService_Enrol_FullMethodName, "PermissionDenied", "token refused"},
		{"another's request for a certificate", func() error {
			_, csr := c.NewRequest()
			csr[len(csr)-1] ^= 1
			_, err := c.node(follower, node).Renew(c.ctx(), &ztv1.RenewRequest{NodeCsr: csr})
			return err
		}, id("node/" + instance), ztv1.NodeService_Renew_FullMethodName, "InvalidArgument", "certificate request refused"},
		{"a foreign certificate, admin port", func() error {
			_, err := c.as(follower, foreign).GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
			return err
		}, "nobody", "admin port", "Unauthenticated", "unknown authority"},
		{"a foreign certificate, node port", func() error {
			_, err := c.node(follower, foreign).Renew(c.ctx(), &ztv1.RenewRequest{})
			return err
		}, "nobody", "node port", "Unauthenticated", "unknown authority"},
		{"a wrong role on the cluster port", func() error {
			_, err := ztv1.NewPeerServiceClient(c.Dial(follower.Addresses().Cluster, node)).GetReport(c.ctx(), &ztv1.GetReportRequest{})
			return err
		}, "nobody", "cluster port", "Unauthenticated", "the peer is node/" + instance},
		{
			"ADS by an admin", func() error { return ads(c, follower, viewer, "x", "") },
			id("admin/vi"), discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, "PermissionDenied", "refused",
		},
		{
			"ADS in another's name", func() error { return ads(c, follower, node, "another", "") },
			id("node/" + instance), discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, "PermissionDenied", "refused",
		},
		{
			"another's secret by ADS", func() error { return ads(c, follower, node, instance, "another/svid") },
			id("node/" + instance), "ADS Secret", "PermissionDenied", "another/svid",
		},
	} {
		if err := tt.do(); err == nil {
			t.Errorf("%s: not refused", tt.name)
		}
		c.Until(tt.name+" on record", func() bool {
			for _, r := range refusalsOf(c, follower) {
				if r.Who == tt.who && r.What == tt.what && r.Code == tt.code && strings.Contains(r.Reason, tt.reason) && r.From == "127.0.0.1" {
					return true
				}
			}
			return false
		})
	}
	for _, r := range refusalsOf(c, leader) {
		t.Errorf("on record where nobody called: %+v", r)
	}
}

// ads asks by a stream for a secret, and returns how it ends; nil cannot be: what is not
// the caller's is answered as what is not there.
func ads(c *cluster, s *mesh.Server, pair *identity.KeyPair, node, secret string) error {
	c.t.Helper()
	conn := c.Dial(s.Addresses().Node, pair)
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(c.ctx())
	c.check(err)
	req := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: node}, TypeUrl: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
	}
	if secret != "" {
		req.ResourceNamesSubscribe = []string{secret}
	}
	if err := stream.Send(req); err != nil {
		return err
	}
	m, err := stream.Recv()
	if err == nil && len(m.RemovedResources) == 1 {
		return errors.New("answered as what is not there")
	}
	return err
}

// TestWrongTokensCostNoEntry: guesses, and replays of a token that is used up, are
// refused without a word to the log. Of many at once one wins, as before.
func TestWrongTokensCostNoEntry(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.Submit(shop)
	server := c.Others(c.Leader())[0]
	node := c.node(server, nil)
	used, good := c.Token("shop/web"), c.Token("shop/web")
	_, req := c.enrolment(used, "shop/web")
	mesh.Settled(c.Mesh, "an enrolment", func() (*ztv1.EnrolResponse, error) { return node.Enrol(c.ctx(), req) })
	newest := func() uint64 {
		resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{PageSize: 1, Method: "Enrol"})
		c.check(err)
		return resp.Records[0].Sequence
	}
	before := newest()
	ctx := c.ctx()
	var wg sync.WaitGroup
	for _, token := range []string{used, good[:len("zt1.0123")] + flip(good[8:9]) + good[9:], c.Token("")} {
		for range 40 {
			_, req := c.enrolment(token, "shop/web")
			wg.Go(func() {
				if err := enrolled(ctx, node, req); status.Code(err) != codes.PermissionDenied {
					t.Errorf("got %v", err)
				}
			})
		}
	}
	wg.Wait()
	if after := newest(); after != before {
		t.Errorf("the newest record of an enrolment is %d, was %d", after, before)
	}
	counted := uint64(0)
	for _, r := range refusalsOf(c, server) {
		counted += r.Count
	}
	if counted != 120 {
		t.Errorf("%d refusals on record, want 120", counted)
	}
}

// TestRESTOnFollower: by REST, too, any server answers what needs the leader; and a
// refusal of the leader's is on record where the call came in, from where it came.
func TestRESTOnFollower(t *testing.T) {
	c := newCluster(t, 2, nil)
	leader := c.Leader()
	follower := c.Others(leader)[0]
	viewer := c.addAdmin("vi", "viewer")
	body := `{"files":[{"name":"a.yaml","content":"` + base64.StdEncoding.EncodeToString([]byte(shop)) + `"}]}`
	c.Until("an apply by REST", func() bool {
		code, answer := c.restAt(follower, c.AdminPair(), "POST", "/v1alpha1/apply", body)
		if code != 200 && code != 503 {
			t.Fatalf("%d %v", code, answer)
		}
		return code == 200
	})
	if code, answer := c.restAt(follower, viewer, "POST", "/v1alpha1/apply", body); code != 403 {
		t.Errorf("by a viewer: %d %v", code, answer)
	}
	got := refusalsOf(c, follower)
	if len(got) != 1 || got[0].Who != "spiffe://control."+trustDomain+"/admin/vi" || got[0].From != "127.0.0.1" || got[0].Count != 1 {
		t.Errorf("on record: %+v", got)
	}
	if got := refusalsOf(c, leader); len(got) != 0 {
		t.Errorf("on record at the leader: %+v", got)
	}
	resp, err := c.Admin().ListAudit(c.ctx(), &ztv1.ListAuditRequest{Namespace: "shop", Method: "Apply", PageSize: 1})
	c.check(err)
	if len(resp.Records) != 1 || resp.Records[0].From != "127.0.0.1" {
		t.Errorf("the apply: %v", resp.Records)
	}
}
