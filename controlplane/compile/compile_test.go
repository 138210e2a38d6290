package compile_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	"github.com/ztmesh/ztmesh/xds"
)

// TestSoundSpecsCompile: what passes spec.Check has a valid configuration, for
// every workload, and the same one whatever the order of documents and lists.
func TestSoundSpecsCompile(t *testing.T) {
	rapid.Check(t, sound)
}

func FuzzSoundSpecsCompile(f *testing.F) { f.Fuzz(rapid.MakeFuzz(sound)) }

func sound(t *rapid.T) {
	docs := specgen.Sound(t)
	ix := policy.New(specgen.TrustDomain, docs)
	shuffled := policy.New(specgen.TrustDomain, specgen.Shuffled(t, docs))
	ix.Workloads(func(w *policy.Workload) bool {
		c, err := compile.Workload(ix, nil, w.Ref)
		if err != nil {
			t.Fatal(err)
		}
		again, err := compile.Workload(shuffled, nil, w.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if c.YAML() != again.YAML() {
			t.Fatalf("another order of the same spec:\n%s\n%s", c.YAML(), again.YAML())
		}
		return true
	})
}

// TestIncremental: an index that was changed step by step compiles to what one made
// at once does, and what a change does not touch stays as it was, with and without
// a proposal beside it.
func TestIncremental(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := specgen.Sound(t), specgen.Sound(t)
		old := policy.New(specgen.TrustDomain, before)
		var deletes, changed []spec.Key
		for _, d := range before {
			deletes, changed = append(deletes, d.Key()), append(changed, d.Key())
		}
		for _, d := range after {
			changed = append(changed, d.Key())
		}
		now, scratch := old.With(after, deletes), policy.New(specgen.TrustDomain, after)
		touched := map[spec.Ref]bool{}
		for _, ref := range now.Touched(old, changed) {
			touched[ref] = true
		}
		scratch.Workloads(func(w *policy.Workload) bool {
			want := config(t, scratch, nil, w.Ref)
			if got := config(t, now, nil, w.Ref); got != want {
				t.Fatalf("%s: step by step\n%s\nat once\n%s", w.Ref, got, want)
			}
			if got, want := config(t, now, old, w.Ref), config(t, scratch, policy.New(specgen.TrustDomain, before), w.Ref); got != want {
				t.Fatalf("%s: beside a proposal, step by step\n%s\nat once\n%s", w.Ref, got, want)
			}
			if _, was := old.Workload(w.Ref); was && !touched[w.Ref] && config(t, old, nil, w.Ref) != want {
				t.Fatalf("%s is not touched and differs:\n%s\n%s", w.Ref, config(t, old, nil, w.Ref), want)
			}
			return true
		})
	})
}

func config(t *rapid.T, ix, shadow *policy.Index, ref spec.Ref) string {
	c, err := compile.Workload(ix, shadow, ref)
	if err != nil {
		t.Fatal(err)
	}
	return c.YAML()
}

func TestUndeclared(t *testing.T) {
	ix := policy.New("shop.example", nil)
	ref := spec.Ref{Namespace: "shop", Name: "web"}
	if c, err := compile.Workload(ix, nil, ref); err == nil || err.Error() != "workload shop/web is not declared" {
		t.Errorf("got %v, %v", c, err)
	}
}

// TestHealthPath: the evaluator and the proxies speak of one reserved path.
func TestHealthPath(t *testing.T) {
	if policy.HealthPath != xds.HealthPath {
		t.Errorf("policy says %s, xds %s", policy.HealthPath, xds.HealthPath)
	}
}

// TestProposedProtocol: a proposal makes an http service of one that is tcp, which
// has no requests to judge in shadow.
func TestProposedProtocol(t *testing.T) {
	const mesh = `
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {tcpCalls: [{service: mail, localPort: 2525}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Service
metadata: {namespace: shop, name: mail}
spec: {external: {hosts: [mail.partner.example], port: 465, protocol: %s}}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-mails}
spec: {from: {workloads: [web]}, to: {services: [mail]}}
`
	index := func(protocol string) *policy.Index {
		docs, problems := spec.Parse([]spec.File{{Name: "mesh.yaml", Content: fmt.Appendf(nil, mesh, protocol)}})
		if err := problems.Err(); err != nil {
			t.Fatal(err)
		}
		return policy.New("shop.example", docs)
	}
	for now, proposed := range map[string]string{"tcp": "http", "http": "tcp"} {
		c, err := compile.Workload(index(now), index(proposed), spec.Ref{Namespace: "shop", Name: "web"})
		if err != nil {
			t.Errorf("%s, proposed as %s: %v", now, proposed, err)
			continue
		}
		if shadow := c.Egress[0].Shadow; (shadow != nil) != (now == "http") {
			t.Errorf("%s, proposed as %s: shadow %+v", now, proposed, shadow)
		}
	}
}
