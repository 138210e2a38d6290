package controlplane_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// TestTokenRace is that of SPIRE 1.14.6: one token, many at once, one instance.
func TestTokenRace(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	token := c.Token("shop/web")
	node := c.node(c.Servers[0], nil)
	ctx := c.ctx()
	reqs := make([]*ztv1.EnrolRequest, 200)
	for i := range reqs {
		_, reqs[i] = c.enrolment(token, "shop/web")
	}
	var won atomic.Int32
	var wg sync.WaitGroup
	for _, req := range reqs {
		wg.Go(func() {
			switch err := enrolled(ctx, node, req); status.Code(err) {
			case codes.OK:
				won.Add(1)
			case codes.PermissionDenied:
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d enrolments by one token", won.Load())
	}
	resp, err := c.Admin().GetStatus(c.ctx(), &ztv1.GetStatusRequest{})
	c.check(err)
	if len(resp.Proxies) != 1 {
		t.Errorf("%d instances by one token", len(resp.Proxies))
	}
	if n := c.Servers[0].Metric("zt_api_refused_tokens_total"); n != 199 {
		t.Errorf("%v tokens counted as refused, want 199", n)
	}
}

// enrolled enrols, and asks again while too many others do.
func enrolled(ctx context.Context, node ztv1.NodeServiceClient, req *ztv1.EnrolRequest) error {
	for {
		if _, err := node.Enrol(ctx, req); status.Code(err) != codes.ResourceExhausted {
			return err
		}
	}
}

// TestBadTokens: every wrong token gets the same answer, is counted, and uses
// nothing up.
func TestBadTokens(t *testing.T) {
	var ahead atomic.Int64
	c := newCluster(t, 1, func(cfg *controlplane.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	c.Submit(shop)
	node := c.node(c.Servers[0], nil)
	create := func(req *ztv1.CreateTokenRequest) string {
		resp, err := c.Admin().CreateToken(c.ctx(), req)
		c.check(err)
		return resp.Token
	}
	good, serverToken := c.Token("shop/web"), c.Token("")
	expired := create(&ztv1.CreateTokenRequest{Workload: "shop/web", Ttl: durationpb.New(time.Minute)})
	used := c.Token("shop/web")
	_, req := c.enrolment(used, "shop/web")
	_, err := node.Enrol(c.ctx(), req)
	c.check(err)
	ahead.Store(int64(2 * time.Minute))

	other := newCluster(t, 1, nil)
	other.Submit(shop)
	foreign := other.Token("shop/web")
	last := good[len("zt1.0123"):]
	wrong := good[:len("zt1.0123")] + flip(last[:1]) + last[1:]

	refusals := 0.0
	for what, tt := range map[string]struct{ token, workload string }{
		"empty shape": {"zt1", "shop/web"}, "garbage": {"zt1.a.b.c", "shop/web"}, "wrong": {wrong, "shop/web"},
		"expired": {expired, "shop/web"}, "used": {used, "shop/web"}, "of another cluster": {foreign, "shop/web"},
		"for another workload": {good, "shop/orders"}, "for a workload that is not there": {good, "shop/ghost"},
		"for a server": {serverToken, "shop/web"},
	} {
		_, req := c.enrolment(tt.token, tt.workload)
		_, err := node.Enrol(c.ctx(), req)
		if got := c.refused(codes.PermissionDenied, err); got != "token refused" {
			t.Errorf("%s: %q", what, got)
		}
		if len(status.Convert(err).Details()) != 0 {
			t.Errorf("%s: details are revealed", what)
		}
		refusals++
	}
	_, csr := c.NewRequest()
	for what, token := range map[string]string{"garbage": "x", "of a workload": good, "wrong": flip(serverToken[4:5])} {
		_, err := node.EnrolServer(c.ctx(), &ztv1.EnrolServerRequest{Token: token, Server: mesh.NewID(), IntermediateCsr: csr, Format: state.Format})
		if got := c.refused(codes.PermissionDenied, err); got != "token refused" {
			t.Errorf("a server by a token %s: %q", what, got)
		}
		refusals++
	}
	if n := c.Servers[0].Metric("zt_api_refused_tokens_total"); n != refusals {
		t.Errorf("%v tokens counted as refused, want %v", n, refusals)
	}

	// None was used up by trying.
	_, req = c.enrolment(good, "shop/web")
	_, err = node.Enrol(c.ctx(), req)
	c.check(err)
	_, err = node.EnrolServer(c.ctx(), &ztv1.EnrolServerRequest{Token: serverToken, Server: mesh.NewID(), IntermediateCsr: csr, Format: state.Format})
	c.check(err)
}

func flip(s string) string {
	if s == "a" {
		return "b"
	}
	return "a"
}

// TestEnrolmentSaysNothingButItsKey is CVE-2022-40716 and CVE-2021-27098: what a
// request for a certificate asks for counts for nothing; and an instance is
// where its session comes from.
func TestEnrolmentSaysNothingButItsKey(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	node := c.node(c.Servers[0], nil)
	key, _ := c.NewRequest()
	admin, err := url.Parse("spiffe://control." + trustDomain + "/admin/admin")
	c.check(err)
	orders, err := url.Parse("spiffe://" + trustDomain + "/ns/shop/sa/orders")
	c.check(err)
	greedy, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		URIs:    []*url.URL{admin, orders}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses: []string{"admin@shop.example"},
	}, key)
	c.check(err)
	_, req := c.enrolment(c.Token("shop/web"), "shop/web")
	req.NodeCsr, req.SvidCsr = greedy, greedy
	resp, err := node.Enrol(c.ctx(), req)
	c.check(err)
	for _, tt := range []struct {
		chain [][]byte
		uri   string
	}{
		{resp.Certificates.NodeChain, "spiffe://control." + trustDomain + "/node/" + req.Instance},
		{resp.Certificates.SvidChain, "spiffe://" + trustDomain + "/ns/shop/sa/web"},
	} {
		leaf := c.Pair(key, tt.chain).Leaf()
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != tt.uri {
			t.Errorf("signed for %v, want %s", leaf.URIs, tt.uri)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.IsCA || leaf.Subject.CommonName == "admin" {
			t.Errorf("signed what was asked for: %v %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, leaf.Subject)
		}
	}
	// An admin's request likewise.
	added, err := c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "bob", Role: "viewer", Csr: greedy})
	c.check(err)
	if leaf := c.Pair(key, added.Chain).Leaf(); len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://control."+trustDomain+"/admin/bob" {
		t.Errorf("signed for %v", leaf.URIs)
	}

	token := c.Token("shop/web")
	for what, tt := range map[string]struct {
		code   codes.Code
		change func(*ztv1.EnrolRequest)
	}{
		"another address":        {codes.PermissionDenied, func(r *ztv1.EnrolRequest) { r.Address = "127.0.0.9" }},
		"any address":            {codes.PermissionDenied, func(r *ztv1.EnrolRequest) { r.Address = "0.0.0.0" }},
		"a host name":            {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.Address = "localhost" }},
		"a zone":                 {codes.PermissionDenied, func(r *ztv1.EnrolRequest) { r.Address = "fe80::1%eth0" }},
		"egress elsewhere":       {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.EgressAddress = "10.0.0.1" }},
		"egress everywhere":      {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.EgressAddress = "0.0.0.0" }},
		"egress by name":         {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.EgressAddress = "localhost" }},
		"a broken request":       {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.NodeCsr = []byte{0x30, 0x80} }},
		"a changed request":      {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.NodeCsr[len(r.NodeCsr)-1] ^= 1 }},
		"a broken workload's":    {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.SvidCsr = []byte("x") }},
		"an instance of its own": {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.Instance = "../../admin" }},
		"a workload of no name":  {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.Workload = "web" }},
		"a request of 8 KiB":     {codes.InvalidArgument, func(r *ztv1.EnrolRequest) { r.NodeCsr = make([]byte, 8193) }},
	} {
		_, req := c.enrolment(token, "shop/web")
		tt.change(req)
		_, err := node.Enrol(c.ctx(), req)
		if status.Code(err) != tt.code {
			t.Errorf("%s: %v, want %v", what, err, tt.code)
		}
	}
	// The token has survived all of that.
	_, req = c.enrolment(token, "shop/web")
	_, err = node.Enrol(c.ctx(), req)
	c.check(err)
}

// TestEnrolAgain: a lost answer is asked for again, by the holder of the key and
// for what was registered; and by nobody else.
func TestEnrolAgain(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	node := c.node(c.Servers[0], nil)
	_, req := c.enrolment(c.Token("shop/web"), "shop/web")
	first, err := node.Enrol(c.ctx(), req)
	c.check(err)
	again, err := node.Enrol(c.ctx(), req)
	c.check(err)
	if again.Instance != first.Instance || again.Address != first.Address {
		t.Errorf("%v, then %v", first, again)
	}
	_, other := c.NewRequest()
	for what, change := range map[string]func(*ztv1.EnrolRequest){
		"another key":          func(r *ztv1.EnrolRequest) { r.NodeCsr = other },
		"a workload's key now": func(r *ztv1.EnrolRequest) { r.SvidCsr = other },
		"another workload":     func(r *ztv1.EnrolRequest) { r.Workload = "shop/orders" },
		"another instance":     func(r *ztv1.EnrolRequest) { r.Instance = mesh.NewID() },
	} {
		r := &ztv1.EnrolRequest{Token: req.Token, Workload: req.Workload, Instance: req.Instance, NodeCsr: req.NodeCsr}
		change(r)
		_, err := node.Enrol(c.ctx(), r)
		if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "token refused" {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Once it is deregistered, nothing brings it back.
	_, err = c.Admin().DeregisterInstance(c.ctx(), &ztv1.DeregisterInstanceRequest{Instance: first.Instance})
	c.check(err)
	_, err = node.Enrol(c.ctx(), req)
	c.refused(codes.PermissionDenied, err)
}
