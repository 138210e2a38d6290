package controlplane_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	patience    = mesh.Patience
	trustDomain = "shop.example"
)

// shop is two workloads and who may call whom.
const shop = `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET]}}
`

// workload is a document that makes a namespace differ.
func workload(namespace, name string) string {
	return fmt.Sprintf("---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: %s, name: %s}\nspec: {}\n", namespace, name)
}

// cluster is real servers in this process, and what only the tests of this
// package ask of them.
type cluster struct {
	*mesh.Mesh
	t testing.TB
}

// newCluster starts servers, which log at debug; tune may be nil.
func newCluster(t testing.TB, servers int, tune func(*controlplane.Config)) *cluster {
	t.Helper()
	return &cluster{mesh.New(t, mesh.Config{TrustDomain: trustDomain, Servers: servers, Tune: tune, LogLevel: slog.LevelDebug}), t}
}

// ctx ends with the test, or when patience does.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), patience)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// as is the API of a server, as whoever holds the pair.
func (c *cluster) as(s *mesh.Server, pair *identity.KeyPair) ztv1.AdminServiceClient {
	c.t.Helper()
	return ztv1.NewAdminServiceClient(c.Dial(s.Addresses().Admin, pair))
}

// addAdmin makes an admin with a certificate.
func (c *cluster) addAdmin(name, role string, namespaces ...string) *identity.KeyPair {
	c.t.Helper()
	key, csr := c.NewRequest()
	resp := mesh.Settled(c.Mesh, "an admin", func() (*ztv1.AddAdminResponse, error) {
		return c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: name, Role: role, Namespaces: namespaces, Csr: csr})
	})
	return c.Pair(key, resp.Chain)
}

func (c *cluster) removeAdmin(name string) {
	c.t.Helper()
	mesh.Settled(c.Mesh, "an admin's end", func() (*ztv1.RemoveAdminResponse, error) {
		return c.Admin().RemoveAdmin(c.ctx(), &ztv1.RemoveAdminRequest{Name: name})
	})
}

// remove removes a member. Who asks again, as it does not know what came of it, has
// asked before.
func (c *cluster) remove(s *mesh.Server) {
	c.t.Helper()
	key := mesh.NewID()
	mesh.Settled(c.Mesh, "a removal", func() (*ztv1.RemoveMemberResponse, error) {
		return c.Admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: s.ID(), IdempotencyKey: key})
	})
}

// enrolment is a request that would succeed with a valid token.
func (c *cluster) enrolment(token, workload string) (identity.PrivateKey, *ztv1.EnrolRequest) {
	c.t.Helper()
	key, csr := c.NewRequest()
	return key, &ztv1.EnrolRequest{Token: token, Workload: workload, Instance: mesh.NewID(), NodeCsr: csr}
}

// node is the node service, as nobody or as an instance.
func (c *cluster) node(s *mesh.Server, pair *identity.KeyPair) ztv1.NodeServiceClient {
	c.t.Helper()
	return ztv1.NewNodeServiceClient(c.Dial(s.Addresses().Node, pair))
}

// enrol makes an instance and returns what it shows.
func (c *cluster) enrol(workload string) (id string, pair *identity.KeyPair) {
	c.t.Helper()
	in := c.Enrol(workload)
	return in.ID, in.Node
}

// identityOf is what a server shows to others.
func (c *cluster) identityOf(s *mesh.Server) *identity.KeyPair {
	c.t.Helper()
	by := s.Intermediate()
	a, err := identity.NewAuthority(c.Roots()[0], by, s.ID(), identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }})
	c.check(err)
	pair, err := a.MakeServer()
	c.check(err)
	return pair
}

func applyRequest(yaml string) *ztv1.ApplyRequest {
	return &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(yaml)}}}
}

// revision is the newest.
func (c *cluster) revision() uint64 {
	c.t.Helper()
	// One that leads answers once it has committed in its term.
	return mesh.Settled(c.Mesh, "a revision", func() (*ztv1.ListDocumentsResponse, error) {
		return c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	}).Revision
}

// rest calls the REST API and returns the code and the decoded answer.
func (c *cluster) rest(pair *identity.KeyPair, method, path, body string, header ...string) (int, map[string]any) {
	c.t.Helper()
	return c.restAt(c.Servers[0], pair, method, path, body, header...)
}

// restAt is rest of any server.
func (c *cluster) restAt(s *mesh.Server, pair *identity.KeyPair, method, path, body string, header ...string) (int, map[string]any) {
	c.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c.http1(pair), DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(c.ctx(), method, "https://"+s.Addresses().Admin+path, strings.NewReader(body))
	c.check(err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	c.check(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	c.check(err)
	var out map[string]any
	if err := json.Unmarshal(bytes.SplitN(raw, []byte("\n"), 2)[0], &out); err != nil {
		c.t.Fatalf("%s %s: %s: %q is not JSON", method, path, resp.Status, raw)
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		c.t.Errorf("%s %s: answered as %q", method, path, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, out
}

func (c *cluster) http1(pair *identity.KeyPair) *tls.Config {
	c.t.Helper()
	cfg := c.ClientTLS(pair)
	cfg.NextProtos = []string{"http/1.1"}
	return cfg
}

// refused wants an error of a code and returns its message.
func (c *cluster) refused(want codes.Code, err error) string {
	c.t.Helper()
	if status.Code(err) != want {
		c.t.Fatalf("got %v, want %v", err, want)
	}
	return status.Convert(err).Message()
}
