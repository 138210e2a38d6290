package controlplane_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func shadowRequest(yaml string) *ztv1.ApplyRequest {
	req := applyRequest(yaml)
	req.Shadow = true
	return req
}

// proposed are the namespaces that have a proposal.
func (c *cluster) proposed() (out []string) {
	c.t.Helper()
	resp, err := c.Admin().GetShadow(c.ctx(), &ztv1.GetShadowRequest{})
	c.check(err)
	for _, p := range resp.Proposals {
		out = append(out, p.Namespace)
	}
	return out
}

// TestProposals: a proposal changes no document and no revision, and ends by an
// apply of its namespace or when it is taken back.
func TestProposals(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop + workload("bank", "vault"))
	before := c.revision()
	req := shadowRequest(shop + workload("shop", "new"))
	req.Message, req.IdempotencyKey = "what if", "try-1"
	dry := shadowRequest(shop)
	dry.DryRun = true
	_, err := c.Admin().Apply(c.ctx(), dry)
	c.check(err)
	if got := c.proposed(); len(got) != 0 {
		t.Errorf("a dry run proposes for %v", got)
	}
	for range 2 { // the second is a retry
		resp, err := c.Admin().Apply(c.ctx(), req)
		c.check(err)
		if resp.Revision != before || resp.Bases["shop"] != before {
			t.Errorf("proposed at %v, was %d", resp, before)
		}
	}
	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
	shown, err := c.Admin().GetShadow(c.ctx(), &ztv1.GetShadowRequest{Namespace: "shop"})
	c.check(err)
	if p := shown.Proposals; len(p) != 1 || p[0].Namespace != "shop" || p[0].Who != "admin/admin" || p[0].Message != "what if" || p[0].When == nil {
		t.Errorf("proposals %v", p)
	}
	if shown, err = c.Admin().GetShadow(c.ctx(), &ztv1.GetShadowRequest{Namespace: "bank"}); err != nil || len(shown.Proposals) != 0 {
		t.Errorf("of another namespace: %v, %v", shown, err)
	}
	// It stays over a restart, and over an apply of another namespace.
	c.Servers[0].Stop()
	c.Servers[0].Start()
	c.Leader()
	c.Submit(workload("bank", "vault") + workload("bank", "more"))
	if got := c.proposed(); len(got) != 1 {
		t.Errorf("proposed for %v", got)
	}
	// The files as they stand end it, without a revision.
	before = c.revision()
	if resp := c.Submit(shop); resp.Revision != before || len(c.proposed()) != 0 {
		t.Errorf("at %d, was %d, proposed for %v", resp.Revision, before, c.proposed())
	}
	_, err = c.Admin().Apply(c.ctx(), shadowRequest(shop+workload("bank", "vault")))
	c.check(err)
	_, err = c.Admin().EndShadow(c.ctx(), &ztv1.EndShadowRequest{Namespace: "bank"})
	c.check(err)
	_, err = c.Admin().EndShadow(c.ctx(), &ztv1.EndShadowRequest{Namespace: "bank"})
	c.refused(codes.NotFound, err)
	if got := c.proposed(); len(got) != 1 || got[0] != "shop" {
		t.Errorf("proposed for %v", got)
	}
	c.Submit(shop + workload("shop", "new"))
	if got := c.proposed(); len(got) != 0 {
		t.Errorf("proposed for %v after the apply", got)
	}
}

// TestProposalsAreValidated: as an apply is, but that an assertion which would not
// hold is a warning.
func TestProposalsAreValidated(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.Submit(shop + ordersMustAnswer)
	_, err := c.Admin().Apply(c.ctx(), shadowRequest(broken))
	if c.refused(codes.InvalidArgument, err); len(problems(err)) < 3 {
		t.Errorf("problems %v", problems(err))
	}
	stale := shadowRequest(shop)
	stale.Bases = map[string]uint64{"shop": 1}
	_, err = c.Admin().Apply(c.ctx(), stale)
	c.refused(codes.Aborted, err)
	if got := c.proposed(); len(got) != 0 {
		t.Errorf("proposed for %v", got)
	}
	withoutGrant := workload("shop", "web") + `---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
` + ordersMustAnswer
	_, err = c.Admin().Apply(c.ctx(), applyRequest(withoutGrant))
	if c.refused(codes.InvalidArgument, err); !has(err, "ZT2001") {
		t.Errorf("enforced: %v", problems(err))
	}
	resp, err := c.Admin().Apply(c.ctx(), shadowRequest(withoutGrant))
	c.check(err)
	warned := false
	for _, w := range resp.Warnings {
		warned = warned || w.Code == "ZT2001" && w.Line > 0
	}
	if !warned || len(c.proposed()) != 1 {
		t.Errorf("warnings %v, proposed for %v", resp.Warnings, c.proposed())
	}
}

// TestWarnings: what is allowed and worth a second look comes back with its place,
// for the namespaces that the files name and no others.
func TestWarnings(t *testing.T) {
	c := newCluster(t, 1, nil)
	legacy := func(ns string) string {
		return document("Workload", ns, "old", "{serves: [{name: http, port: 8080, protocol: http, allowEncodedPaths: true}]}") +
			document("Exception", ns, "legacy", `{finding: plaintext, subject: "old:http", peers: [10.0.0.0/8], owner: o, reason: r, until: 2100-01-01T00:00:00Z}`)
	}
	if resp := c.Submit(shop); len(resp.Warnings) != 0 {
		t.Errorf("of nothing: %v", resp.Warnings)
	}
	c.Submit(legacy("bank"))
	before := c.revision()
	for _, shadow := range []bool{true, false} {
		for _, dry := range []bool{true, false} {
			req := applyRequest(shop + legacy("shop"))
			req.Shadow, req.DryRun = shadow, dry
			resp, err := c.Admin().Apply(c.ctx(), req)
			c.check(err)
			if len(resp.Warnings) != 2 {
				t.Errorf("shadow %v, dry %v: %v", shadow, dry, resp.Warnings)
			}
			for _, w := range resp.Warnings {
				if w.File != "spec.yaml" || w.Line == 0 || w.Code == "" || w.Message == "" {
					t.Errorf("warning %v", w)
				}
			}
		}
	}
	if c.revision() == before {
		t.Error("a warning has kept an apply out")
	}
	if resp := c.Submit(shop); len(resp.Warnings) != 0 {
		t.Errorf("mended: %v", resp.Warnings)
	}
}
