package e2e_test

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// caller is an instance whose certificate a test shows.
type caller struct {
	*mesh.Instance
	svid *tls.Certificate
}

func newCaller(m *mesh.Mesh, workload string) *caller {
	in := m.EnrolAgent(workload)
	return &caller{in, in.SVID}
}

// TestShadow: what a shadow grant, or a proposed spec, would change is reported by
// the proxy, told by every server, and changes no verdict and no listener.
func TestShadow(t *testing.T) {
	m := mesh.New(t, mesh.Config{Servers: 2})
	base := fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp()) + grantTo("web", "http", ", methods: [GET]")
	tried := strings.Replace(grantTo("web", "http", ", methods: [POST]"), "{from", "{mode: shadow, from", 1)
	tried = strings.Replace(tried, "name: web-http", "name: web-writes", 1)
	m.Apply(base)
	in := m.Run("bank/ledger").Acked()
	web := newCaller(m, "bank/web")
	send := func(method, path string, status int) {
		t.Helper()
		if a := in.Raw(8080, web.svid, mesh.Request(method, ledger, path)); a.Status != status {
			t.Errorf("%s %s: %+v, want %d", method, path, a, status)
		}
	}
	before := listeners(t, in)
	m.Apply(base + tried)
	shadow := func(s *mesh.Server) *ztv1.GetShadowResponse {
		t.Helper()
		return mesh.Settled(m, "an answer", func() (*ztv1.GetShadowResponse, error) {
			return s.Admin().GetShadow(t.Context(), &ztv1.GetShadowRequest{Namespace: "bank"})
		})
	}
	reported := func(method, path string, allowed bool, reason, would string) {
		t.Helper()
		for _, s := range m.Servers {
			m.Until(fmt.Sprintf("%s tells of %s %s", s, method, path), func() bool {
				resp := shadow(s)
				if len(resp.Unreachable) > 0 || resp.Dropped > 0 {
					t.Fatalf("unreachable %v, dropped %d", resp.Unreachable, resp.Dropped)
				}
				for _, d := range resp.Differences {
					if d.Method == method && d.Path == path {
						if d.Service != "bank/ledger" || d.Port != "http" || d.Caller != "spiffe://shop.example/ns/bank/sa/web" ||
							d.Allowed != allowed || d.WouldAllow == allowed || !strings.Contains(d.Reason, reason) || !strings.Contains(d.WouldReason, would) {
							t.Fatalf("reported: %v", d)
						}
						return true
					}
				}
				return false
			})
		}
	}
	send("POST", "/orders?card=4711", 403)
	send("GET", "/orders", 200)
	reported("POST", "/orders", false, "default-deny", "bank/web-writes")
	for _, s := range m.Servers {
		for _, d := range shadow(s).Differences {
			if d.Method != "POST" {
				t.Errorf("reported without a difference: %v", d)
			}
		}
	}

	// A proposal takes the place of the namespace, and counts from nothing.
	propose := &ztv1.ApplyRequest{
		Shadow: true, Message: "less", Files: []*ztv1.File{{
			Name: "f.yaml", Content: []byte(fmt.Sprintf(bank, m.NewApp(), m.NewTCPApp()) + grantTo("web", "http", ", methods: [GET], paths: [/public/**]")),
		}},
	}
	mesh.Settled(m, "a proposal", func() (*ztv1.ApplyResponse, error) { return m.Admin().Apply(t.Context(), propose) })
	m.Until("the reports of before are forgotten", func() bool { return len(shadow(m.Servers[0]).Differences) == 0 })
	m.Until("the proposal is judged", func() bool {
		send("GET", "/private/a", 200)
		for _, d := range shadow(m.Servers[1]).Differences {
			if d.Path == "/private/a" {
				return true
			}
		}
		return false
	})
	send("GET", "/public/a", 200)
	reported("GET", "/private/a", true, "bank/web-http", "default-deny")
	if p := shadow(m.Servers[1]).Proposals; len(p) != 1 || p[0].Namespace != "bank" || p[0].Message != "less" {
		t.Errorf("proposals: %v", p)
	}
	if after := listeners(t, in); after != before {
		t.Errorf("listeners have changed:\n%s\nbefore:\n%s", after, before)
	}

	mesh.Settled(m, "the end of the proposal", func() (*ztv1.EndShadowResponse, error) {
		return m.Admin().EndShadow(t.Context(), &ztv1.EndShadowRequest{Namespace: "bank"})
	})
	m.Until("nothing is told any more", func() bool {
		resp := shadow(m.Servers[0])
		return len(resp.Differences) == 0 && len(resp.Proposals) == 0
	})
	m.Servers[1].Stop()
}
