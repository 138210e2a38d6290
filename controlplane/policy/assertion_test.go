package policy_test

import (
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// asks is a test of a request by a workload.
func asks(caller, request string) *ztv1.Test {
	return &ztv1.Test{As: &ztv1.Subject{Workload: caller}, Request: request}
}

const tests = `
---
apiVersion: ztmesh.dev/v1alpha1
kind: Assertion
metadata: {namespace: shop, name: safety}
spec:
  tests:
  - {as: {workload: web}, request: GET orders /orders/7, want: allow, by: web-reads-orders}
  - {as: {workload: web}, request: DELETE orders /orders/7, want: deny}
  - {as: {workload: web}, request: DELETE orders /orders/7, want: allow}
  - {as: {workload: admin}, request: GET orders /x, want: deny}
  - {as: {workload: web}, request: GET orders /orders/7, want: allow, by: admin-any}
  - {as: {workload: shop/web}, request: "GRPC shop/multi:rpc s.Stock/Get", want: allow, by: shop/web-stock}
`

func TestRunTests(t *testing.T) {
	docs := parse(t, shop+tests)
	ix := policy.New("shop.example", docs)
	results := policy.RunTests(ix, docs, noon)
	failed := policy.TestProblems(results)
	var got []string
	for _, p := range failed {
		got = append(got, p.Error())
	}
	want := []string{
		`spec.yaml:55:5: ZT2001 spec.tests[2]: DELETE orders /orders/7 by web gets deny (default), not allow (grant shop/web-reads-orders allows GET, not DELETE: add DELETE to its methods)`,
		`spec.yaml:56:5: ZT2001 spec.tests[3]: GET orders /x by admin gets allow (grant:shop/admin-any), not deny`,
		`spec.yaml:57:5: ZT2001 spec.tests[4]: GET orders /orders/7 by web is allowed by shop/web-reads-orders, not by shop/admin-any`,
	}
	if len(results) != 6 || len(got) != len(want) {
		t.Fatalf("%d results, failed: %q", len(results), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
	// A document from the log has no place in a file; the problem names it.
	for i, d := range docs {
		stored, err := spec.Decode(spec.Canonical(d))
		if err != nil {
			t.Fatal(err)
		}
		docs[i] = stored
	}
	if p := policy.TestProblems(policy.RunTests(ix, docs, noon)); len(p) != 3 || p[0].File != "Assertion shop/safety" || p[0].Line != 0 {
		t.Errorf("got %v", p)
	}
}

func TestCanRefuses(t *testing.T) {
	ix := policy.New("shop.example", nil)
	for _, c := range [][2]string{{"WEB", "GET orders /"}, {"web", "get orders /"}, {"web", "GET orders"}, {"a/b/c", "TCP db"}} {
		if d, err := policy.Can(ix, "shop", asks(c[0], c[1]), noon); err == nil {
			t.Errorf("%v: %+v", c, d)
		}
	}
}
