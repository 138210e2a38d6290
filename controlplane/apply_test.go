package controlplane_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestRolesAndNamespaces is CVE-2021-38698 and CVE-2026-33413: rights are judged
// for each thing that a call touches.
func TestRolesAndNamespaces(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop + workload("bank", "vault"))
	before := c.revision()
	bankToken, err := c.Admin().CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Workload: "bank/vault"})
	c.check(err)
	serverToken, err := c.Admin().CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Server: true})
	c.check(err)
	instance, _ := c.enrol("bank/vault")
	ed := c.as(c.Servers[0], c.addAdmin("ed", "editor", "shop"))
	for what, call := range map[string]func(context.Context) error{
		"apply elsewhere": func(ctx context.Context) error {
			_, err := ed.Apply(ctx, applyRequest(workload("bank", "vault")))
			return err
		},
		"apply here and elsewhere": func(ctx context.Context) error {
			_, err := ed.Apply(ctx, applyRequest(shop+workload("bank", "new")))
			return err
		},
		"dry run elsewhere": func(ctx context.Context) error {
			r := applyRequest(workload("bank", "new"))
			r.DryRun = true
			_, err := ed.Apply(ctx, r)
			return err
		},
		"merge elsewhere": func(ctx context.Context) error {
			r := applyRequest(workload("bank", "new"))
			r.Merge = true
			_, err := ed.Apply(ctx, r)
			return err
		},
		"the mesh": func(ctx context.Context) error {
			_, err := ed.Apply(ctx, applyRequest("apiVersion: ztmesh.dev/v1alpha1\nkind: Mesh\nmetadata: {namespace: mesh, name: mesh}\nspec: {trustDomain: shop.example}\n"))
			return err
		},
		"a new namespace": func(ctx context.Context) error {
			_, err := ed.Apply(ctx, applyRequest(workload("shop2", "x")))
			return err
		},
		"a token elsewhere": func(ctx context.Context) error {
			_, err := ed.CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: "bank/vault"})
			return err
		},
		"a server token": func(ctx context.Context) error {
			_, err := ed.CreateToken(ctx, &ztv1.CreateTokenRequest{Server: true})
			return err
		},
		"delete a token elsewhere": func(ctx context.Context) error {
			_, err := ed.DeleteToken(ctx, &ztv1.DeleteTokenRequest{Id: bankToken.Info.Id})
			return err
		},
		"delete a server token": func(ctx context.Context) error {
			_, err := ed.DeleteToken(ctx, &ztv1.DeleteTokenRequest{Id: serverToken.Info.Id})
			return err
		},
		"an instance elsewhere": func(ctx context.Context) error {
			_, err := ed.DeregisterInstance(ctx, &ztv1.DeregisterInstanceRequest{Instance: instance})
			return err
		},
		"a role": func(ctx context.Context) error {
			_, err := ed.AddAdmin(ctx, &ztv1.AddAdminRequest{Name: "ed", Role: "admin"})
			return err
		},
	} {
		if err := call(c.ctx()); status.Code(err) != codes.PermissionDenied {
			t.Errorf("an editor, %s: %v", what, err)
		}
	}
	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
	// In its own namespace it may.
	_, err = ed.Apply(c.ctx(), applyRequest(shop+workload("shop", "new")))
	c.check(err)
	_, err = ed.CreateToken(c.ctx(), &ztv1.CreateTokenRequest{Workload: "shop/web"})
	c.check(err)
	// An admin's name that is no label, or a role that does not exist.
	for _, r := range []*ztv1.AddAdminRequest{
		{Name: "x/y", Role: "admin"},
		{Name: "X", Role: "viewer"},
		{Name: "x", Role: "root"},
		{Name: "x", Role: "editor"},
		{Name: "x", Role: "admin", Namespaces: []string{"shop"}},
		{Name: "x", Role: "editor", Namespaces: []string{""}},
		{Name: "x", Role: "editor", Namespaces: []string{"*"}},
	} {
		_, err := c.Admin().AddAdmin(c.ctx(), r)
		c.refused(codes.InvalidArgument, err)
	}
}

// TestAdminsComeAndGo: the last one stays, and who was removed has no rights from
// then on, on connections and streams that are open, too.
func TestAdminsComeAndGo(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	_, err := c.Admin().RemoveAdmin(c.ctx(), &ztv1.RemoveAdminRequest{Name: "admin"})
	c.refused(codes.FailedPrecondition, err)
	_, err = c.Admin().AddAdmin(c.ctx(), &ztv1.AddAdminRequest{Name: "admin", Role: "viewer"})
	c.refused(codes.FailedPrecondition, err)
	_, err = c.Admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: c.Servers[0].ID()})
	c.refused(codes.FailedPrecondition, err)

	bob := c.as(c.Servers[0], c.addAdmin("bob", "admin"))
	watch, err := bob.WatchDocuments(c.ctx(), &ztv1.WatchDocumentsRequest{FromRevision: c.revision()})
	c.check(err)
	c.Submit(shop + workload("shop", "one"))
	_, err = watch.Recv()
	c.check(err)
	c.removeAdmin("bob")
	_, err = bob.ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	c.refused(codes.PermissionDenied, err)
	_, err = bob.Apply(c.ctx(), applyRequest(workload("shop", "two")))
	c.refused(codes.PermissionDenied, err)
	c.Submit(shop + workload("shop", "three"))
	_, err = watch.Recv()
	c.refused(codes.PermissionDenied, err)
	c.Submit(shop)
	_, err = c.Admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: c.Servers[0].ID()})
	c.refused(codes.FailedPrecondition, err)
}

const broken = `apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: g}
spec: {from: {workloads: [ghost]}, to: {services: [orders], methods: [FETCH ME]}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Gadget
metadata: {namespace: shop, name: h}
`

// TestProblems: all of them at once, with their places, by gRPC and by REST; and
// nothing is stored.
func TestProblems(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	before := c.revision()
	_, err := c.Admin().Apply(c.ctx(), applyRequest(broken))
	c.refused(codes.InvalidArgument, err)
	var problems []*ztv1.Problem
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*ztv1.Problems); ok {
			problems = p.Problems
		}
	}
	if len(problems) < 3 {
		t.Fatalf("problems: %v", problems)
	}
	for _, p := range problems {
		if p.Code == "" || p.Message == "" || p.File != "spec.yaml" || p.Line == 0 {
			t.Errorf("a problem without a place: %v", p)
		}
	}
	code, answer := c.rest(c.AdminPair(), "POST", "/v1alpha1/apply", fmt.Sprintf(`{"files":[{"name":"spec.yaml","content":%q}]}`, base64.StdEncoding.EncodeToString([]byte(broken))))
	if code != 400 {
		t.Errorf("REST: %d", code)
	}
	details, _ := answer["details"].([]any)
	if len(details) != 1 {
		t.Fatalf("REST: %v", answer)
	}
	byREST, _ := details[0].(map[string]any)["problems"].([]any)
	if len(byREST) != len(problems) {
		t.Fatalf("REST: %v", details)
	}
	for i, p := range byREST {
		m := p.(map[string]any)
		if m["code"] != problems[i].Code || m["file"] != "spec.yaml" || fmt.Sprint(m["line"]) != fmt.Sprint(problems[i].Line) {
			t.Errorf("REST: %v, gRPC: %v", m, problems[i])
		}
	}
	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
}

// TestBasesAndKeys: a stale base is a conflict that says what is; one key has one
// effect; of many writers on one base one wins.
func TestBasesAndKeys(t *testing.T) {
	c := newCluster(t, 1, nil)
	first := c.Submit(shop)
	one := applyRequest(shop + workload("shop", "one"))
	one.Bases, one.IdempotencyKey = first.Bases, "key-1"
	done, err := c.Admin().Apply(c.ctx(), one)
	c.check(err)
	again, err := c.Admin().Apply(c.ctx(), one) // its base is stale by itself
	c.check(err)
	if again.Revision != done.Revision || len(again.Changes) != len(done.Changes) {
		t.Errorf("%v, again %v", done, again)
	}
	other := applyRequest(shop)
	other.IdempotencyKey = "key-1"
	_, err = c.Admin().Apply(c.ctx(), other)
	c.refused(codes.AlreadyExists, err)

	stale := applyRequest(shop)
	stale.Bases = first.Bases
	_, err = c.Admin().Apply(c.ctx(), stale)
	c.refused(codes.Aborted, err)
	var current map[string]uint64
	for _, d := range status.Convert(err).Details() {
		if s, ok := d.(*ztv1.StaleBase); ok {
			current = s.Current
		}
	}
	if current["shop"] != done.Revision {
		t.Errorf("current: %v, want shop at %d", current, done.Revision)
	}
	if code, _ := c.rest(c.AdminPair(), "POST", "/v1alpha1/apply", fmt.Sprintf(
		`{"files":[{"name":"f","content":%q}],"bases":{"shop":"1"}}`, base64.StdEncoding.EncodeToString([]byte(shop)))); code != 409 {
		t.Errorf("REST: %d, want 409", code)
	}

	admin, ctx := c.Admin(), c.ctx()
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r := applyRequest(shop + workload("shop", fmt.Sprintf("w%d", i)))
			r.Bases = map[string]uint64{"shop": done.Revision}
			switch _, err := admin.Apply(ctx, r); status.Code(err) {
			case codes.OK:
				won.Add(1)
			case codes.Aborted:
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 49 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
	// Teams that write their own namespaces do not meet.
	for i := range 20 {
		wg.Go(func() {
			if _, err := admin.Apply(ctx, applyRequest(workload(fmt.Sprintf("team%d", i), "x"))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestWholeTruth: what a namespace's files leave out is removed, unless they are
// merged; other namespaces stay; a dry run stores nothing.
func TestWholeTruth(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop + workload("bank", "vault"))
	names := func() (out []string) {
		resp, err := c.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{Kind: "Workload"})
		c.check(err)
		for _, d := range resp.Documents {
			out = append(out, d.Document.Metadata.Namespace+"/"+d.Document.Metadata.Name)
		}
		return out
	}
	is := func(want ...string) {
		t.Helper()
		if got := names(); !slices.Equal(got, want) {
			t.Errorf("workloads %v, want %v", got, want)
		}
	}
	dry := applyRequest(workload("shop", "only"))
	dry.DryRun = true
	before := c.revision()
	resp, err := c.Admin().Apply(c.ctx(), dry)
	c.check(err)
	if len(resp.Changes) != 4 || resp.Revision != before || c.revision() != before {
		t.Errorf("a dry run: %v at %d, was %d", resp.Changes, c.revision(), before)
	}
	merge := applyRequest(workload("shop", "more"))
	merge.Merge = true
	_, err = c.Admin().Apply(c.ctx(), merge)
	c.check(err)
	is("bank/vault", "shop/more", "shop/orders", "shop/web")
	c.Submit(shop)
	is("bank/vault", "shop/orders", "shop/web")
	c.Submit(workload("shop", "only"))
	is("bank/vault", "shop/only")
	same := c.revision()
	if resp := c.Submit(workload("shop", "only")); resp.Revision != same || len(resp.Changes) != 0 {
		t.Errorf("no change makes revision %d, was %d", resp.Revision, same)
	}
}

// TestSizes: an apply may have 64 MiB, any other call 1 MiB, compressed or not.
func TestSizes(t *testing.T) {
	c := newCluster(t, 1, nil)
	comment := func(n int) *ztv1.ApplyRequest {
		return &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "f", Content: []byte(strings.Repeat("#\n", n/2))}}}
	}
	viewer := c.as(c.Servers[0], c.addAdmin("vi", "viewer"))
	big := comment(64<<20 + 1<<10)
	unhurried, cancel := context.WithTimeout(t.Context(), 10*patience) // so many bytes take the race detector a while
	defer cancel()
	_, err := c.Admin().Apply(unhurried, big)
	c.refused(codes.ResourceExhausted, err)
	_, err = c.Admin().Apply(unhurried, big, grpc.UseCompressor(gzip.Name)) // a bomb of 64 KiB
	c.refused(codes.ResourceExhausted, err)
	_, err = c.Admin().Can(c.ctx(), &ztv1.CanRequest{Caller: strings.Repeat("x", 1<<20), Request: "GET x /"})
	c.refused(codes.ResourceExhausted, err)
	_, err = c.Admin().Can(c.ctx(), &ztv1.CanRequest{Caller: strings.Repeat("x", 1<<20), Request: "GET x /"}, grpc.UseCompressor(gzip.Name))
	c.refused(codes.ResourceExhausted, err)
	// Who may not apply may not even send it.
	_, err = viewer.Apply(c.ctx(), comment(2<<20))
	c.refused(codes.ResourceExhausted, err)
	_, err = c.node(c.Servers[0], nil).Enrol(c.ctx(), &ztv1.EnrolRequest{Token: strings.Repeat("x", 1<<20)})
	c.refused(codes.ResourceExhausted, err)
	_, err = c.Admin().Apply(c.ctx(), &ztv1.ApplyRequest{Message: strings.Repeat("x", 1025)})
	c.refused(codes.InvalidArgument, err)
	_, err = c.Admin().GetServerInfo(c.ctx(), &ztv1.GetServerInfoRequest{})
	c.check(err)
}
