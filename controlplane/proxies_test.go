package controlplane_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane/zttest/adsclient"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// connect opens a stream of an instance that asks for clusters and answers nothing.
func (c *cluster) connect(s *mesh.Server, in *mesh.Instance) *adsclient.Client {
	c.t.Helper()
	client, err := adsclient.Open(c.ctx(), s.Dial(in.Address, in.Node), in.ID)
	c.check(err)
	c.check(client.Subscribe(xds.ClusterType))
	return client
}

// TestServersTellWhatHasChanged: a server tells the others all of its proxies once, and
// then those that change, however many it has; an older one is told them all.
func TestServersTellWhatHasChanged(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	const proxies = 30
	for range proxies {
		c.connect(c.Servers[0], c.Enrol("shop/orders"))
	}
	peer := ztv1.NewPeerServiceClient(c.Dial(c.Servers[0].Addresses().Cluster, c.identityOf(c.Servers[0])))
	watch := func(deltas bool) func() *ztv1.WatchProxiesResponse {
		stream, err := peer.WatchProxies(c.ctx(), &ztv1.WatchProxiesRequest{Deltas: deltas})
		c.check(err)
		return func() *ztv1.WatchProxiesResponse {
			m, err := stream.Recv()
			c.check(err)
			return m
		}
	}
	known := map[string]bool{}
	c.Until("all are told of", func() bool {
		first := watch(true)()
		if first.Delta {
			t.Errorf("the first message is of changes only: %v", first)
		}
		return len(first.Held) == proxies
	})
	next := watch(true)
	for _, h := range next().Held {
		known[h.Proxy.Instance] = true
	}
	one := c.Enrol("shop/web")
	client := c.connect(c.Servers[0], one)
	for seen := false; !seen; {
		m := next()
		if !m.Delta || len(m.Proxies) != 0 {
			t.Errorf("all of them again: %v", m)
		}
		for _, h := range m.Held {
			if known[h.Proxy.Instance] {
				t.Errorf("told again: %v", h)
			}
			seen = seen || h.Proxy.Instance == one.ID
		}
	}
	if m := watch(false)(); len(m.Proxies) != proxies+1 || len(m.Held) != 0 || m.Delta {
		t.Errorf("an older server is told: %v", m)
	}
	// What changes nothing for them makes one message, about nobody.
	resp := c.Submit(shop + workload("bank", "vault"))
	for m := next(); m.Revision < resp.Revision; m = next() {
		for _, h := range m.Held {
			if known[h.Proxy.Instance] {
				t.Errorf("told again: %v", h)
			}
		}
	}
	go client.Close()
	for gone := false; !gone; {
		for _, i := range next().Gone {
			gone = gone || i == one.ID
		}
	}
}

// TestReceiptsAreBounded: a receipt of many proxies counts them, and names those that
// are not confirmed, up to a bound; all of them if asked.
func TestReceiptsAreBounded(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	const proxies = 120
	for range proxies {
		c.Enrol("shop/orders")
	}
	resp := c.Submit(shop + "---\napiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: shop, name: more}\nspec: {from: {workloads: [web]}, to: {services: [orders], methods: [PUT]}}\n")
	for all, named := range map[bool]int{false: 100, true: proxies} {
		watch, err := c.Admin().WatchReceipt(c.ctx(), &ztv1.WatchReceiptRequest{Revision: resp.Revision, All: all})
		c.check(err)
		r, err := watch.Recv()
		c.check(err)
		if r.Counts.Affected != proxies || r.Counts.Unconfirmed != proxies || len(r.Proxies) != named || int(r.Omitted) != proxies-named || r.Complete {
			t.Errorf("all %v: %d named, %d omitted, %v", all, len(r.Proxies), r.Omitted, r.Counts)
		}
	}
	list, err := c.Admin().ListRevisions(c.ctx(), &ztv1.ListRevisionsRequest{Receipts: true, PageSize: 2})
	c.check(err)
	if len(list.Revisions) != 2 || list.Revisions[0].Receipt.GetUnconfirmed() != proxies || list.Revisions[1].Receipt.GetAffected() != proxies {
		t.Errorf("the history: %v", list.Revisions)
	}
}

// TestConfirmByWhom: an agent speaks for the instance of its certificate, and answers
// what it was asked.
func TestConfirmByWhom(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	for want, in := range map[codes.Code]*mesh.Instance{
		codes.FailedPrecondition: c.Enrol("shop/web"), // its Envoy has no agent
		codes.OK:                 c.EnrolAgent("shop/web"),
	} {
		stream, err := ztv1.NewNodeServiceClient(c.Servers[0].Dial(in.Address, in.Node)).Confirm(c.ctx())
		c.check(err)
		if want != codes.OK {
			_, err = stream.Recv()
			c.refused(want, err)
			continue
		}
		client := c.connect(c.Servers[0], in)
		c.Until("its agent is known", func() bool { return c.Proxy(in.ID).Agent })
		m, err := client.Recv()
		c.check(err)
		c.check(client.Ack(m)) // it ACKs clusters and nothing else
		// A second call of the agent takes the place of the first.
		second, err := ztv1.NewNodeServiceClient(c.Servers[0].Dial(in.Address, in.Node)).Confirm(c.ctx())
		c.check(err)
		_, err = stream.Recv()
		c.refused(codes.Aborted, err)
		_, err = c.Admin().DeregisterInstance(c.ctx(), &ztv1.DeregisterInstanceRequest{Instance: in.ID})
		c.check(err)
		_, err = second.Recv()
		c.refused(codes.PermissionDenied, err)
	}
}

// TestSilentAgents: a call of an agent that is asked and says nothing ends when another
// one comes: what an instance can hold of a server does not grow with its calls.
func TestSilentAgents(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	in := c.EnrolAgent("shop/web")
	client := c.connect(c.Servers[0], in)
	c.check(client.Subscribe(xds.ListenerType))
	for _, typeURL := range []string{xds.RouteType, xds.ExtensionType, xds.RuntimeType, xds.EndpointType} {
		c.check(client.Subscribe(typeURL, "*"))
	}
	go func() { // ends with the stream
		for m, err := client.Recv(); err == nil && client.Ack(m) == nil; m, err = client.Recv() {
		}
	}()
	in.Acked()
	ctx, cancel := context.WithTimeout(c.ctx(), mesh.Patience)
	defer cancel()
	asked := func() ztv1.NodeService_ConfirmClient {
		stream, err := ztv1.NewNodeServiceClient(c.Servers[0].Dial(in.Address, in.Node)).Confirm(ctx)
		c.check(err)
		m, err := stream.Recv()
		c.check(err)
		if m.Ask == 0 {
			t.Fatalf("told %v", m)
		}
		return stream
	}
	first := asked()
	asked()
	_, err := first.Recv()
	c.refused(codes.Aborted, err)
	for range 20 { // and it calls no more often than others may
		stream, cerr := ztv1.NewNodeServiceClient(c.Servers[0].Dial(in.Address, in.Node)).Confirm(ctx)
		c.check(cerr)
		if _, err = stream.Recv(); err != nil {
			break
		}
	}
	c.refused(codes.ResourceExhausted, err)
}
