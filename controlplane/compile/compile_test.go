package compile_test

import (
	"fmt"
	"strings"
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

// TestAgreesWithDecide reads a configuration as a proxy would and compares its
// verdict with the evaluator's.
func TestAgreesWithDecide(t *testing.T) {
	allowed := 0
	rapid.Check(t, func(t *rapid.T) {
		ix := policy.New(specgen.TrustDomain, specgen.Sound(t))
		ix.Workloads(func(callee *policy.Workload) bool {
			c, err := compile.Workload(ix, nil, callee.Ref)
			if err != nil {
				t.Fatal(err)
			}
			for i := range c.Inbound {
				in := &c.Inbound[i]
				ix.Workloads(func(caller *policy.Workload) bool {
					for _, request := range []string{"GET /", "GET /a", "POST /a/b", "DELETE /a/", "POST /s.S/Get", "POST /s.S/Get/x", "POST /t.T/"} {
						method, path, _ := strings.Cut(request, " ")
						r := policy.Request{CallerID: caller.ID, Service: callee.Ref, Port: in.Name, Method: method, Path: path, TCP: !in.Protocol.IsHTTP()}
						want := ix.Decide(r)
						if got := judge(in, caller.ID, method, path); got != want.Allowed {
							t.Fatalf("%+v: configuration says %v, evaluator %+v\n%s", r, got, want, c)
						}
						if want.Allowed {
							allowed++
						}
					}
					return true
				})
			}
			return true
		})
	})
	if allowed == 0 {
		t.Error("nothing was ever allowed")
	}
}

// judge is the meaning of an inbound port, from the comments of package xds.
func judge(in *xds.Inbound, id, method, path string) bool {
	open := false
	for _, g := range in.Gate {
		open = open || g.ID == id
	}
	if !open || !in.Protocol.IsHTTP() {
		return open
	}
	for _, r := range in.Rules {
		caller, verb, way := r.Callers.Any, r.Methods == nil, r.Paths == nil
		for _, c := range r.Callers.IDs {
			caller = caller || c == id
		}
		for _, p := range r.Callers.Prefixes {
			caller = caller || strings.HasPrefix(id, p)
		}
		for _, m := range r.Methods {
			verb = verb || m == method
		}
		for _, p := range r.Paths {
			rest, below := strings.CutPrefix(path, p.Value)
			switch p.Kind {
			case xds.Exact:
				way = way || path == p.Value
			case xds.Rest:
				way = way || p.Value == "/" || below && (rest == "" || rest[0] == '/')
			case xds.OneSegment:
				way = way || below && rest != "" && !strings.Contains(rest, "/")
			}
		}
		if caller && verb && way {
			return true
		}
	}
	return false
}

func TestUndeclared(t *testing.T) {
	ix := policy.New("shop.example", nil)
	ref := spec.Ref{Namespace: "shop", Name: "web"}
	if c, err := compile.Workload(ix, nil, ref); err == nil || err.Error() != "workload shop/web is not declared" {
		t.Errorf("got %v, %v", c, err)
	}
	if pairs := compile.Pairs(ix, ref); pairs != nil {
		t.Errorf("got %v", pairs)
	}
}

// TestHealthPath: the evaluator and the proxies speak of one reserved path.
func TestHealthPath(t *testing.T) {
	if policy.HealthPath != xds.HealthPath {
		t.Errorf("policy says %s, xds %s", policy.HealthPath, xds.HealthPath)
	}
}

func TestPairs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ix := policy.New(specgen.TrustDomain, specgen.Sound(t))
		ix.Workloads(func(w *policy.Workload) bool {
			c, err := compile.Workload(ix, nil, w.Ref)
			if err != nil {
				t.Fatal(err)
			}
			pairs := compile.Pairs(ix, w.Ref)
			if len(pairs) != len(c.Inbound) {
				t.Fatalf("%d ports, %d pairs", len(c.Inbound), len(pairs))
			}
			for _, in := range c.Inbound {
				if fmt.Sprint(pairs[in.Name]) != fmt.Sprint(in.Gate) {
					t.Fatalf("%s: %v, want %v", in.Name, pairs[in.Name], in.Gate)
				}
			}
			return true
		})
	})
}
