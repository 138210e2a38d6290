package controlplane_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
)

// Who may call what, port by port. A method without a row fails the test.
var (
	anyone  = []string{"nobody", "admin", "editor", "viewer", "unknown admin", "node", "deregistered node", "server", "removed server"}
	admins  = []string{"admin"}
	editors = []string{"admin", "editor"}
	viewers = []string{"admin", "editor", "viewer"}
	nodes   = []string{"node"}
	peers   = []string{"server"}
	none    = []string{}
)

var rights = map[string]struct{ admin, node, cluster []string }{
	"AdminService/Apply":              {admin: editors},
	"AdminService/GetDocument":        {admin: viewers},
	"AdminService/ListDocuments":      {admin: viewers},
	"AdminService/WatchDocuments":     {admin: viewers},
	"AdminService/ListRevisions":      {admin: viewers},
	"AdminService/Rollback":           {admin: editors},
	"AdminService/GetStatus":          {admin: viewers},
	"AdminService/WatchReceipt":       {admin: viewers},
	"AdminService/Can":                {admin: viewers},
	"AdminService/CreateToken":        {admin: editors},
	"AdminService/ListTokens":         {admin: viewers},
	"AdminService/DeleteToken":        {admin: editors},
	"AdminService/DeregisterInstance": {admin: editors},
	"AdminService/ListMembers":        {admin: viewers},
	"AdminService/RemoveMember":       {admin: admins},
	"AdminService/PromoteMember":      {admin: admins},
	"AdminService/DemoteMember":       {admin: admins},
	"AdminService/TransferLeadership": {admin: admins},
	"AdminService/ListAdmins":         {admin: viewers},
	"AdminService/AddAdmin":           {admin: admins},
	"AdminService/RemoveAdmin":        {admin: admins},
	"AdminService/Block":              {admin: editors},
	"AdminService/Unblock":            {admin: editors},
	"AdminService/GetShadow":          {admin: viewers},
	"AdminService/EndShadow":          {admin: editors},
	"AdminService/Backup":             {admin: admins},
	"AdminService/ListAudit":          {admin: viewers},
	"AdminService/ReadAudit":          {admin: viewers},
	"AdminService/ReadJournal":        {admin: admins},
	"AdminService/AcceptJournal":      {admin: admins},
	"AdminService/ReadRefusals":       {admin: viewers},
	"AdminService/GetServerInfo":      {admin: viewers},
	"AdminService/GetKeys":            {admin: viewers},
	"AdminService/RotateKey":          {admin: admins},
	"AdminService/DropKey":            {admin: admins},

	// The token is what speaks for the caller. A server may call, too, on behalf
	// of whoever has one.
	"NodeService/Enrol":       {node: anyone, cluster: peers},
	"NodeService/EnrolServer": {node: anyone, cluster: peers},
	"NodeService/Renew":       {node: nodes},
	"NodeService/Place":       {node: []string{"node"}},
	"NodeService/Confirm":     {node: nodes},
	"NodeService/Deregister":  {node: []string{"node", "deregistered node"}}, // the second time: not found

	"PeerService/Announce":        {cluster: peers},
	"PeerService/Reseed":          {cluster: peers},
	"PeerService/WatchProxies":    {cluster: peers},
	"PeerService/ListDifferences": {cluster: peers},
	"PeerService/RecordAccess":    {cluster: peers},
	"PeerService/FetchAudit":      {cluster: peers},
	"PeerService/AnchorJournal":   {cluster: peers},
	"PeerService/GetReport":       {cluster: peers},
	"PeerService/GetKeyReport":    {cluster: peers},
	"PeerService/TakeKey":         {cluster: peers}, // of the leader, which this one is
	"PeerService/ForgetKey":       {cluster: peers},

	"AggregatedDiscoveryService/DeltaAggregatedResources":  {node: nodes},
	"AggregatedDiscoveryService/StreamAggregatedResources": {node: none}, // delta only

	"AccessLogService/StreamAccessLogs": {node: nodes},
}

// enough is a request that passes the door of a method and does no harm; nil is an
// empty one.
func enough(name string, self string, pair *identity.KeyPair) proto.Message {
	switch name {
	case "AdminService/WatchDocuments":
		return &ztv1.WatchDocumentsRequest{FromRevision: 1} // no longer kept
	case "AdminService/WatchReceipt":
		return &ztv1.WatchReceiptRequest{Revision: 1} // no longer kept
	case "PeerService/Announce":
		return &ztv1.AnnounceRequest{Server: &ztv1.Server{Id: self}} // without addresses
	case "AggregatedDiscoveryService/DeltaAggregatedResources":
		id := "nobody"
		if pair != nil {
			id = path.Base(pair.Leaf().URIs[0].Path)
		}
		return &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: id}, TypeUrl: "type.googleapis.com/none"}
	}
	return nil
}

// TestEveryMethodByEveryCredential is CVE-2026-53714: of every method of every
// service, on every port, each kind of caller is let in or refused as the table
// says.
func TestEveryMethodByEveryCredential(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	shown := credentialsOf(c)
	a := c.Servers[0].Addresses()
	seen := map[string]bool{}
	for name, m := range declared(t) {
		seen[name] = true
		row, ok := rights[name]
		if !ok {
			t.Errorf("%s has no row", name)
			continue
		}
		for port, p := range map[string]struct {
			address string
			allowed []string
		}{"admin": {a.Admin, row.admin}, "node": {a.Node, row.node}, "cluster": {a.Cluster, row.cluster}} {
			for who, pair := range shown {
				if name == "NodeService/Deregister" && who == "node" {
					_, fresh := c.enrol("shop/web")
					pair = func() *identity.KeyPair { return fresh }
				}
				shows := pair()
				err := invoke(c, p.address, shows, m, enough(name, c.Servers[0].ID(), shows))
				want := slices.Contains(p.allowed, who)
				if got := passed(err); got != want {
					t.Errorf("%s port, %s, by %s: let in %v, want %v (%v)", port, name, who, got, want, err)
				}
				if status.Code(err) == codes.Internal {
					t.Errorf("%s port, %s, by %s: %v", port, name, who, err)
				}
			}
		}
	}
	for name := range rights {
		if !seen[name] {
			t.Errorf("row %s: no such method", name)
		}
	}
}

// credentialsOf makes one of each kind of caller.
func credentialsOf(c *cluster) map[string]func() *identity.KeyPair {
	c.t.Helper()
	always := func(p *identity.KeyPair) func() *identity.KeyPair { return func() *identity.KeyPair { return p } }
	unknown := c.addAdmin("gone", "admin")
	c.removeAdmin("gone")
	_, node := c.enrol("shop/web")
	id, deregistered := c.enrol("shop/web")
	_, err := c.Admin().DeregisterInstance(c.ctx(), &ztv1.DeregisterInstanceRequest{Instance: id})
	c.check(err)
	foreign, err := identity.NewRoot(trustDomain, identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	key, err := identity.NewKey()
	c.check(err)
	chain, err := foreign.IssueAdmin(key.Public(), "admin") // the name of one that is known
	c.check(err)
	stranger, err := identity.NewKeyPair(key, chain)
	c.check(err)
	other := c.Servers[1]
	removed := c.identityOf(other)
	c.remove(other)
	if err := other.Ended(); !errors.Is(err, store.ErrRemoved) {
		c.t.Errorf("a removed server ends with %v", err)
	}
	return map[string]func() *identity.KeyPair{
		"nobody":            always(nil),
		"foreign root":      always(stranger),
		"admin":             always(c.AdminPair()),
		"editor":            always(c.addAdmin("ed", "editor", "shop")),
		"viewer":            always(c.addAdmin("vi", "viewer")),
		"unknown admin":     always(unknown),
		"node":              always(node),
		"deregistered node": always(deregistered),
		"server":            always(c.identityOf(c.Servers[0])),
		"removed server":    always(removed),
	}
}

// declared are the methods of every service that the servers have, by their short
// names.
func declared(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	out := map[string]protoreflect.MethodDescriptor{}
	add := func(s protoreflect.ServiceDescriptor) {
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			out[string(s.Name())+"/"+string(m.Name())] = m
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("zt.v1alpha1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			add(f.Services().Get(i))
		}
		return true
	})
	for _, name := range []protoreflect.FullName{
		"envoy.service.discovery.v3.AggregatedDiscoveryService", "envoy.service.accesslog.v3.AccessLogService",
	} {
		s, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		add(s.(protoreflect.ServiceDescriptor))
	}
	return out
}

// invoke calls any method with a request (nil: an empty one) on a connection of
// its own, and returns how it ended: a stream, with its first message.
func invoke(c *cluster, address string, pair *identity.KeyPair, m protoreflect.MethodDescriptor, req proto.Message) error {
	c.t.Helper()
	conn := c.Dial(address, pair)
	defer conn.Close()
	if req == nil {
		req = dynamicpb.NewMessage(m.Input())
	}
	full := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	reply := dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return conn.Invoke(c.ctx(), full, req, reply)
	}
	ctx, cancel := context.WithTimeout(c.ctx(), 5*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}, full)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !m.IsStreamingClient() {
		c.check(stream.CloseSend())
	}
	return stream.RecvMsg(reply)
}

// passed tells whether a call got past the door.
func passed(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied: // refused
		// An enrolment with a bad token is let in and then refused.
		return strings.Contains(status.Convert(err).Message(), "token refused")
	case codes.Unimplemented: // not on this port
		return false
	case codes.Unavailable, codes.DeadlineExceeded: // the handshake failed; nothing was answered
		return false
	}
	return true
}

// grpcOnly are methods of the admin port that have no route.
var grpcOnly = map[string]bool{
	"AdminService/Backup": true, "AdminService/ReadAudit": true, "AdminService/ReadJournal": true, "AdminService/ReadRefusals": true,
}

// TestEveryRoute is the same for REST: every route of every method by every
// credential.
func TestEveryRoute(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	shown := credentialsOf(c)
	routes := 0
	for name, m := range declared(t) {
		rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		if !ok || rule == nil {
			if strings.HasPrefix(name, "AdminService/") && !grpcOnly[name] {
				t.Errorf("%s has no route", name)
			}
			continue
		}
		routes++
		method, target, body := route(rule)
		for who, pair := range shown {
			if who == "foreign root" {
				continue // the handshake fails
			}
			code, answer := c.rest(pair(), method, target, body)
			want := slices.Contains(rights[name].admin, who)
			if got := code != 401 && code != 403; got != want {
				t.Errorf("%s %s by %s: %d %v, want let in: %v", method, target, who, code, answer, want)
			}
			if code >= 500 {
				t.Errorf("%s %s by %s: %d %v", method, target, who, code, answer)
			}
		}
	}
	if routes == 0 {
		t.Error("no routes")
	}
}

// route is a rule with values for its variables that name nothing.
func route(r *annotations.HttpRule) (method, path, body string) {
	for m, p := range map[string]string{"GET": r.GetGet(), "POST": r.GetPost(), "DELETE": r.GetDelete(), "PUT": r.GetPut(), "PATCH": r.GetPatch()} {
		if p != "" {
			method, path = m, p
		}
	}
	if r.Body != "" {
		body = "{}"
	}
	for strings.Contains(path, "{") {
		before, rest, _ := strings.Cut(path, "{")
		name, after, _ := strings.Cut(rest, "}")
		value := "1"
		if name == "namespace" {
			value = "shop" // the editor's
		}
		path = before + value + after
	}
	if strings.HasSuffix(path, "/watch") {
		path += "?from_revision=1" // no longer kept
	}
	return method, path, body
}

// TestNobodyNamesAPrincipal: what a client says of itself in metadata or headers
// counts for nothing.
func TestNobodyNamesAPrincipal(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	_, node := c.enrol("shop/web")
	viewer := c.addAdmin("vi", "viewer")
	for _, pair := range []*identity.KeyPair{nil, node, viewer, c.identityOf(c.Servers[0])} {
		for _, key := range []string{"zt-principal", "grpc-metadata-zt-principal", "authorization", "x-forwarded-client-cert"} {
			ctx := metadata.AppendToOutgoingContext(c.ctx(), key, "admin/admin", "zt-address", "10.9.8.7")
			_, err := c.as(c.Servers[0], pair).AddAdmin(ctx, &ztv1.AddAdminRequest{Name: "eve", Role: "admin"})
			if passed(err) {
				t.Errorf("%s: %v", key, err)
			}
			if _, err = c.node(c.Servers[0], pair).Deregister(metadata.AppendToOutgoingContext(c.ctx(), key, "node/"+mesh.NewID()), &ztv1.DeregisterRequest{}); pair != node && passed(err) {
				t.Errorf("%s: %v", key, err)
			}
		}
		for _, header := range []string{"Zt-Principal", "Grpc-Metadata-Zt-Principal", "Grpc-Metadata-Grpc-Metadata-Zt-Principal", "Authorization", "X-Forwarded-For"} {
			if code, answer := c.rest(pair, "POST", "/v1alpha1/admins", `{"name":"eve","role":"admin"}`, header, "admin/admin"); code != 401 && code != 403 {
				t.Errorf("%s: %d %v", header, code, answer)
			}
		}
	}
	// An address that is named from outside is not the session's.
	_, req := c.enrolment(c.Token("shop/web"), "shop/web")
	req.Address = "10.9.8.7"
	_, err := c.node(c.Servers[0], nil).Enrol(metadata.AppendToOutgoingContext(c.ctx(), "zt-address", "10.9.8.7", "zt-principal", "nobody"), req)
	c.refused(codes.PermissionDenied, err)
	if code, _ := c.rest(c.AdminPair(), "GET", "/v1alpha1/admins", ""); code != 200 {
		t.Errorf("an admin: %d", code)
	}
	resp, err := c.Admin().ListAdmins(c.ctx(), &ztv1.ListAdminsRequest{})
	c.check(err)
	if len(resp.Admins) != 2 {
		t.Errorf("admins: %v", resp.Admins)
	}
}

// TestClusterPortIsForServers is CVE-2021-37219 and CVE-2020-7956: no other
// certificate finishes a handshake there, with either protocol.
func TestClusterPortIsForServers(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop)
	shown := credentialsOf(c)
	for who, pair := range shown {
		for _, protocol := range []string{identity.ALPNRaft, identity.ALPNHTTP2, "http/1.1", ""} {
			got := handshake(c, pair(), protocol)
			// A removed server is heard as far as to be told so, as TestRemovedWhileAway and
			// TestEveryMethodByEveryCredential show.
			want := who == "server" && (protocol == identity.ALPNRaft || protocol == identity.ALPNHTTP2) ||
				who == "removed server" && protocol == identity.ALPNHTTP2
			if got != want {
				t.Errorf("%s with %q: stays %v, want %v", who, protocol, got, want)
			}
		}
	}
	if len(slices.Collect(maps.Keys(shown))) != 10 {
		t.Error("kinds of credentials are missing")
	}
}

// TestCommonNameGivesNothing is CVE-2018-16886: a certificate of the root whose
// subject is an admin's name, but whose SAN is a node, is that node.
func TestCommonNameGivesNothing(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	_, pair := c.enrol("shop/web")
	for _, cert := range []*x509.Certificate{pair.Leaf(), c.AdminPair().Leaf()} {
		if len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
			t.Errorf("SANs of %v", cert.URIs)
		}
		if strings.Contains(cert.Subject.String(), "admin") {
			t.Errorf("subject %s", cert.Subject)
		}
	}
}
