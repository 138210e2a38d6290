package controlplane_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// clocked is a server whose clock may be set ahead.
func clocked(t *testing.T) (c *cluster, ahead *atomic.Int64) {
	ahead = new(atomic.Int64)
	return newCluster(t, 1, func(cfg *controlplane.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}), ahead
}

// problems are those that an error carries, by their codes.
func problems(err error) (out []string) {
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*ztv1.Problems); ok {
			for _, p := range p.Problems {
				out = append(out, p.Code)
			}
		}
	}
	return out
}

// has tells whether err carries a problem of a code.
func has(err error, code string) bool {
	return strings.Contains(strings.Join(problems(err), " "), code)
}

func blockRequest(namespace, name string, b *ztv1.Block) *ztv1.BlockRequest {
	if b.Reason == "" {
		b.Reason = "an incident"
	}
	return &ztv1.BlockRequest{Namespace: namespace, Name: name, Block: b}
}

// until is a time to the second, as documents say it.
func until(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(d).Truncate(time.Second))
}

const fileBlock = `
---
apiVersion: ztmesh.dev/v1alpha1
kind: Block
metadata: {namespace: shop, name: stop}
spec: {workloads: [web], reason: written in a file}
`

// TestBlockIsTheOperators: no file removes, replaces or lifts a Block while it is
// in force; afterwards it is as any other document.
func TestBlockIsTheOperators(t *testing.T) {
	c, ahead := clocked(t)
	c.Submit(shop)
	get := func() (*ztv1.Document, error) {
		resp, err := c.Admin().GetDocument(c.ctx(), &ztv1.GetDocumentRequest{Kind: "Block", Namespace: "shop", Name: "stop"})
		return resp.GetDocument().GetDocument(), err
	}
	web := func() *ztv1.Block { return &ztv1.Block{Workloads: []string{"web"}, Until: until(time.Hour)} }

	dry := blockRequest("shop", "stop", web())
	dry.DryRun = true
	before := c.revision()
	if resp, err := c.Admin().Block(c.ctx(), dry); err != nil || resp.Revision != before {
		t.Fatalf("a dry run: %v, %v", resp, err)
	}
	_, err := get()
	c.refused(codes.NotFound, err)

	first, err := c.Admin().Block(c.ctx(), blockRequest("shop", "stop", web()))
	c.check(err)
	doc, err := get()
	c.check(err)
	if doc.Metadata.Annotations["ztmesh.dev/managed-by"] != "operator" || doc.GetBlock().Reason != "an incident" || first.Revision <= before {
		t.Errorf("at %d: %v", first.Revision, doc)
	}
	revisions, err := c.Admin().ListRevisions(c.ctx(), &ztv1.ListRevisionsRequest{PageSize: 1})
	c.check(err)
	if r := revisions.Revisions[0]; r.Message != "an incident" || r.Who != "admin/admin" || len(r.Changes) != 1 {
		t.Errorf("revision %v", r)
	}

	// Files that do not know of it leave it alone.
	if resp := c.Submit(shop); len(resp.Changes) != 0 {
		t.Errorf("an apply of the same files: %v", resp.Changes)
	}
	c.Submit(shop + workload("shop", "more"))
	_, err = get()
	c.check(err)
	for _, merge := range []bool{false, true} {
		for _, shadow := range []bool{false, true} {
			req := applyRequest(shop + fileBlock)
			req.Merge, req.Shadow = merge, shadow
			_, err = c.Admin().Apply(c.ctx(), req)
			if c.refused(codes.InvalidArgument, err); !has(err, "ZT4002") {
				t.Errorf("a file's Block of the same key: %v", problems(err))
			}
		}
	}
	// Files may not pretend to be the operator.
	_, err = c.Admin().Apply(c.ctx(), applyRequest(shop+strings.Replace(fileBlock, "name: stop", "name: other, annotations: {ztmesh.dev/managed-by: operator}", 1)))
	c.refused(codes.InvalidArgument, err)

	// A second one replaces it; the same again is no change.
	again, err := c.Admin().Block(c.ctx(), blockRequest("shop", "stop", &ztv1.Block{Services: []string{"orders"}, Until: until(2 * time.Hour)}))
	c.check(err)
	same, err := c.Admin().Block(c.ctx(), blockRequest("shop", "stop", &ztv1.Block{Services: []string{"orders"}, Until: until(2 * time.Hour)}))
	c.check(err)
	if doc, err = get(); err != nil || len(doc.GetBlock().Workloads) != 0 || again.Revision <= first.Revision || same.Revision > again.Revision+1 {
		t.Errorf("replaced: %v, %v", doc, err)
	}

	// Past its end files prune it, or take its name over.
	ahead.Store(int64(3 * time.Hour))
	c.Submit(shop + fileBlock)
	if doc, err = get(); err != nil || len(doc.Metadata.Annotations) != 0 {
		t.Errorf("taken over: %v, %v", doc, err)
	}
	_, err = c.Admin().Block(c.ctx(), blockRequest("shop", "stop", &ztv1.Block{Workloads: []string{"web"}}))
	c.refused(codes.AlreadyExists, err)
	_, err = c.Admin().Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "stop"})
	c.refused(codes.FailedPrecondition, err)
	_, err = c.Admin().Block(c.ctx(), blockRequest("shop", "short", &ztv1.Block{Workloads: []string{"web"}, Until: until(4 * time.Hour)}))
	c.check(err)
	ahead.Store(int64(5 * time.Hour))
	if resp := c.Submit(shop + fileBlock); len(resp.Changes) != 1 || resp.Changes[0].Action != "remove" || resp.Changes[0].Name != "short" {
		t.Errorf("an ended one: %v", resp.Changes)
	}
}

// TestBlockForGood: without an end only unblock lifts it; a retry by the same key
// has no second effect, also after it was lifted.
func TestBlockForGood(t *testing.T) {
	c, ahead := clocked(t)
	c.Submit(shop)
	req := blockRequest("shop", "stop", &ztv1.Block{Workloads: []string{"web"}})
	req.IdempotencyKey = "block-1"
	first, err := c.Admin().Block(c.ctx(), req)
	c.check(err)
	ahead.Store(int64(20 * time.Hour))
	if resp := c.Submit(shop); len(resp.Changes) != 0 {
		t.Errorf("an apply: %v", resp.Changes)
	}
	lift := &ztv1.UnblockRequest{Namespace: "shop", Name: "stop", IdempotencyKey: "unblock-1"}
	lifted, err := c.Admin().Unblock(c.ctx(), lift)
	c.check(err)
	for range 2 {
		if resp, err := c.Admin().Unblock(c.ctx(), lift); err != nil || resp.Revision != lifted.Revision {
			t.Errorf("unblock again: %v, %v, want %v", resp, err, lifted)
		}
		if resp, err := c.Admin().Block(c.ctx(), req); err != nil || resp.Revision != first.Revision {
			t.Errorf("block again: %v, %v, want %v", resp, err, first)
		}
	}
	if now := c.revision(); now != lifted.Revision {
		t.Errorf("revision %d, want %d", now, lifted.Revision)
	}
	lift.IdempotencyKey = ""
	_, err = c.Admin().Unblock(c.ctx(), lift)
	c.refused(codes.NotFound, err)
	// One key is of one request, of whichever kind.
	req.Block.Reason = "another"
	_, err = c.Admin().Block(c.ctx(), req)
	c.refused(codes.AlreadyExists, err)
	lift.IdempotencyKey = "block-1"
	_, err = c.Admin().Unblock(c.ctx(), lift)
	c.refused(codes.AlreadyExists, err)
	apply := applyRequest(shop + workload("shop", "new"))
	apply.IdempotencyKey = "block-1"
	_, err = c.Admin().Apply(c.ctx(), apply)
	c.refused(codes.AlreadyExists, err)
}

// TestBadBlocks: what a file could not say, Block cannot either.
func TestBadBlocks(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop)
	before := c.revision()
	unknown := &ztv1.Block{Workloads: []string{"web"}, Reason: "r"}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	for what, b := range map[string]*ztv1.Block{
		"over already":           {Workloads: []string{"web"}, Until: until(-time.Second)},
		"nothing":                {},
		"two kinds of callers":   {Workloads: []string{"web"}, Namespaces: []string{"shop"}},
		"nobody":                 {Workloads: []string{"ghost"}},
		"no service":             {Services: []string{"ghost"}},
		"no provider":            {Users: &ztv1.BlockedUsers{Provider: "none", Subjects: []string{"x"}}},
		"no SPIFFE ID":           {SpiffeIds: []string{"spiffe://shop.example/ns/../x"}},
		"a control character":    {Workloads: []string{"web"}, Reason: "a\x00b"},
		"an escape":              {Workloads: []string{"web"}, Reason: "a\x1b[2Jb"},
		"a field of the future":  unknown,
		"an end that is no time": {Workloads: []string{"web"}, Until: &timestamppb.Timestamp{Seconds: 1 << 60}},
	} {
		_, err := c.Admin().Block(c.ctx(), blockRequest("shop", "stop", b))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, req := range map[string]*ztv1.BlockRequest{
		"no block":  {Namespace: "shop", Name: "stop"},
		"no reason": {Namespace: "shop", Name: "stop", Block: &ztv1.Block{Workloads: []string{"web"}}},
		"a name":    blockRequest("shop", "Stop", &ztv1.Block{Workloads: []string{"web"}}),
		"NUL":       blockRequest("shop", "a\x00b", &ztv1.Block{Workloads: []string{"web"}}),
		"YAML":      blockRequest("shop", "x, annotations: {a: b}", &ztv1.Block{Workloads: []string{"web"}}),
	} {
		_, err := c.Admin().Block(c.ctx(), req)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
}

const ordersMustAnswer = `
---
apiVersion: ztmesh.dev/v1alpha1
kind: Assertion
metadata: {namespace: shop, name: safety}
spec:
  tests:
  - {as: {workload: web}, request: GET orders /7, want: allow}
`

// TestAssertionsDoNotHoldABlockUp: neither the Block nor what is applied while it
// is in force is refused by a test that it breaks.
func TestAssertionsDoNotHoldABlockUp(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop + ordersMustAnswer)
	_, err := c.Admin().Block(c.ctx(), blockRequest("shop", "stop", &ztv1.Block{Workloads: []string{"web"}}))
	c.check(err)
	can, err := c.Admin().Can(c.ctx(), &ztv1.CanRequest{Caller: "shop/web", Request: "GET orders /7"})
	c.check(err)
	if can.Allowed || can.Reason != "block:shop/stop" {
		t.Errorf("blocked: %v", can)
	}
	c.Submit(shop + ordersMustAnswer + workload("shop", "more"))
	// What the files themselves break is refused as ever.
	_, err = c.Admin().Apply(c.ctx(), applyRequest(shop+ordersMustAnswer+fileBlock+"---\n"))
	if c.refused(codes.InvalidArgument, err); !has(err, "ZT") {
		t.Errorf("a file's Block: %v", err)
	}
}

// TestDeletedNamesWait: the name of a workload that was deleted is not used again
// while a certificate of it may live.
func TestDeletedNamesWait(t *testing.T) {
	c, ahead := clocked(t)
	mesh := func(ttl string) string {
		return "---\napiVersion: ztmesh.dev/v1alpha1\nkind: Mesh\nmetadata: {namespace: mesh, name: mesh}\nspec: {trustDomain: shop.example, svidTTL: " + ttl + "}\n"
	}
	more := workload("shop", "more")
	c.Submit(shop + more)
	submit := func(yaml string, shadow bool) error {
		req := applyRequest(yaml)
		req.Shadow = shadow
		_, err := c.Admin().Apply(c.ctx(), req)
		return err
	}
	waits := func(what string, want bool) {
		t.Helper()
		for _, shadow := range []bool{true, false} {
			err := submit(shop+more, shadow)
			if got := has(err, "ZT4001"); got != want {
				t.Errorf("%s, shadow %v: waits %v, want %v (%v)", what, shadow, got, want, err)
			}
		}
	}
	c.check(submit(shop, false))
	waits("at once", true)
	c.check(submit(shop, false)) // nothing else is held up
	// A restart forgets nothing (CVE-2022-41316).
	c.Servers[0].Stop()
	c.Servers[0].Start()
	c.Leader()
	waits("after a restart", true)
	pass := func(d time.Duration) { ahead.Store(int64(d)) }
	pass(2*time.Hour + 4*time.Minute) // two hours by default, and a margin
	waits("after its certificates", true)
	pass(2*time.Hour + 6*time.Minute)
	waits("after the margin, too", false)

	// A shorter life is for certificates that are issued from then on.
	c.check(submit(mesh("10m"), false))
	pass(30 * time.Hour) // the default is forgotten
	c.check(submit(mesh("1m"), false))
	c.check(submit(shop, false))
	pass(30*time.Hour + 14*time.Minute)
	waits("after a life that was shortened", true)
	pass(30*time.Hour + 16*time.Minute)
	waits("after the longer life", false)
}

// TestBlockByAnyServer: a server that does not lead passes the call on, and the
// leader judges the caller.
func TestBlockByAnyServer(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.Submit(shop + workload("bank", "vault"))
	ed := c.addAdmin("ed", "editor", "bank")
	for _, s := range c.Servers {
		admin, editor := c.as(s, c.AdminPair()), c.as(s, ed)
		_, err := admin.Block(c.ctx(), blockRequest("shop", "stop", &ztv1.Block{Workloads: []string{"web"}}))
		c.check(err)
		for what, err := range map[string]error{
			"block":      second(editor.Block(c.ctx(), blockRequest("shop", "other", &ztv1.Block{Workloads: []string{"web"}}))),
			"unblock":    second(editor.Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "stop"})),
			"propose":    second(editor.Apply(c.ctx(), shadowRequest(shop))),
			"end shadow": second(editor.EndShadow(c.ctx(), &ztv1.EndShadowRequest{Namespace: "shop"})),
		} {
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s by an editor of another namespace: %v", what, err)
			}
		}
		_, err = editor.Apply(c.ctx(), shadowRequest(workload("bank", "vault")))
		c.check(err)
		shown, err := editor.GetShadow(c.ctx(), &ztv1.GetShadowRequest{})
		c.check(err)
		if len(shown.Proposals) != 1 || shown.Proposals[0].Who != "admin/ed" || len(shown.Unreachable) != 0 {
			t.Errorf("shown %v", shown)
		}
		_, err = editor.EndShadow(c.ctx(), &ztv1.EndShadowRequest{Namespace: "bank"})
		c.check(err)
		_, err = admin.Unblock(c.ctx(), &ztv1.UnblockRequest{Namespace: "shop", Name: "stop"})
		c.check(err)
	}
}

func second[T any](_ T, err error) error { return err }
