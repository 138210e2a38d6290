package e2e_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// perCallee is how many requests one Envoy of a random spec is asked.
const perCallee = 16

// TestRandomDecisions holds real Envoys to the evaluator on random specs and on
// requests that try to get around them. One control plane is given one spec after
// another, as a whole each time.
//
// ZT_SEED and ZT_SPECS say with which spec to begin and how many to try: the long
// form is ZT_SPECS=2000 go test -run TestRandomDecisions -timeout 0.
func TestRandomDecisions(t *testing.T) {
	seed, specs := number(t, "ZT_SEED", rand.IntN(1<<30)), number(t, "ZT_SPECS", 10)
	t.Logf("ZT_SEED=%d ZT_SPECS=%d", seed, specs)
	m := mesh.New(t, mesh.Config{TrustDomain: specgen.TrustDomain})
	httpApp, tcpApp := m.NewApp(), m.NewTCPApp()
	generator := rapid.Custom(specgen.Sound)
	cases := 0
	for barren := 0; specs > 0; seed++ {
		if barren++; barren > 1000 {
			t.Fatal("random specs allow nothing")
		}
		docs := generator.Example(seed)
		ix := policy.New(specgen.TrustDomain, docs)
		services := judged(ix)
		if len(services) == 0 {
			continue
		}
		specs, barren = specs-1, 0
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			yaml := render(whole(docs), httpApp, tcpApp)
			m.Apply(yaml)
			j := newJudges(t, m, ix)
			random := rand.New(rand.NewPCG(uint64(seed), 0))
			for _, service := range services {
				for n := range perCallee {
					r, target := request(random, ix, service)
					d := ix.Decide(r)
					j.ask(verdict{
						what: fmt.Sprintf("ZT_SEED=%d ZT_SPECS=1, request %d: %+v %q", seed, n, r, target), request: r,
						accepts: accepts(d), want: wanted(d.Reason, d.Grants),
					}, target)
				}
			}
			cases += j.settle()
			for _, in := range j.envoy {
				_, err := m.Admin().DeregisterInstance(t.Context(), &ztv1.DeregisterInstanceRequest{Instance: in.ID})
				check(t, err)
			}
			if t.Failed() {
				t.Logf("the spec:\n%s", yaml)
			}
		})
	}
	t.Logf("%d requests judged", cases)
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	check(t, err)
	return n
}

// whole makes a spec name every namespace that random specs have, and the
// mesh's, so that nothing of the one before stays.
func whole(docs []*spec.Document) []*spec.Document {
	out := slices.Clone(docs)
	for _, ns := range []string{"a", "ab", "b"} {
		d := &ztv1.Document{
			ApiVersion: spec.APIVersion, Kind: spec.KindWorkload, Metadata: &ztv1.Metadata{Namespace: ns, Name: "nobody"},
			Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{}},
		}
		out = append(out, &spec.Document{Document: d})
	}
	if spec.MeshOf(docs) == nil {
		d := &ztv1.Document{
			ApiVersion: spec.APIVersion, Kind: spec.KindMesh, Metadata: &ztv1.Metadata{Namespace: spec.MeshNamespace, Name: "mesh"},
			Spec: &ztv1.Document_Mesh{Mesh: &ztv1.Mesh{TrustDomain: specgen.TrustDomain}},
		}
		out = append(out, &spec.Document{Document: d})
	}
	return out
}

// judged are the two services with the most rules.
func judged(ix *policy.Index) []spec.Ref {
	rules := map[spec.Ref]int{}
	var services []spec.Ref
	ix.Workloads(func(w *policy.Workload) bool {
		for _, p := range w.Ports {
			rules[w.Ref] += len(ix.Rules(w.Ref, p.Name))
		}
		if rules[w.Ref] > 0 {
			services = append(services, w.Ref)
		}
		return true
	})
	slices.SortFunc(services, func(a, b spec.Ref) int {
		return cmp.Or(rules[b]-rules[a], a.Compare(b))
	})
	return services[:min(2, len(services))]
}

// request makes a request that is near to what a rule of the service allows, and
// what stands for its path in HTTP/1.1 if that is another thing.
func request(random *rand.Rand, ix *policy.Index, service spec.Ref) (r policy.Request, target string) {
	w, _ := ix.Workload(service)
	p := pick(random, w.Ports)
	r = policy.Request{Service: service, Port: p.Name, TCP: p.Protocol == policy.TCP}
	callers := []string{"spiffe://td.example/ns/a/sa/p", "spiffe://td.example/ns/ab/sa/q", "spiffe://td.example/ns/b/sa/ghost"}
	if admitted := ix.Callers(service, p.Name); len(admitted) > 0 && random.IntN(5) > 0 {
		callers = admitted
	}
	r.CallerID = pick(random, callers)
	if r.TCP {
		return r, ""
	}
	r.Method = pick(random, []string{"GET", "POST", "DELETE", "HEAD", "get", "PATCH", "TRACE"})
	path := pick(random, []string{"/", "/a", "/b", "/a/b/c", "/s.S/Get", "/t.T/Get"})
	if rules := ix.Rules(service, p.Name); len(rules) > 0 && random.IntN(5) > 0 {
		rule := pick(random, rules)
		if rule.Methods != nil {
			r.Method = pick(random, rule.Methods)
		} else {
			r.Method = pick(random, []string{"GET", "POST", "PUT"})
		}
		if rule.Paths != nil {
			path = pick(random, rule.Paths).Pattern + pick(random, []string{"", "", "/", "/x", "x"})
		}
	}
	for range random.IntN(4) {
		path = twist(random, path)
	}
	r.Path = path
	hosts := w.Hosts(p.Name)
	host := pick(random, hosts)
	r.Authority = pick(random, []string{
		host, host, host, host, host, host, strings.ToUpper(host), host + ".", fmt.Sprintf("%s:%d", host, p.Number),
		host + ":", host + "..", "x" + host, host + ",x", "u@" + host, "a.b.mesh", w.Ref.Name, "*", "127.0.0.1",
	})
	// Envoy's parser judges an absolute URL itself, before any filter does: it drops
	// a user and refuses what is no host.
	if strings.HasPrefix(path, "/") && !strings.ContainsAny(r.Authority, "@*,") && !strings.HasSuffix(r.Authority, ":") && random.IntN(6) == 0 {
		target = "http://" + r.Authority + path
	}
	return r, target
}

// twist writes a path in another way that some servers take for the same, or
// takes it elsewhere.
func twist(random *rand.Rand, path string) string {
	at := random.IntN(len(path) + 1)
	before, after := path[:at], path[at:]
	switch random.IntN(6) {
	case 0: // a character encoded, in either case, or twice
		if after != "" {
			return before + pick(random, []string{fmt.Sprintf("%%%02x", after[0]), fmt.Sprintf("%%%02X", after[0]), fmt.Sprintf("%%25%02x", after[0])}) + after[1:]
		}
		return path + "%"
	case 1:
		return before + pick(random, []string{"/", "//", "/./", "/../", "/x/../", "/..", "/.", "/%2e%2e/", "/.%2E/", "/..;/", "/..;x=1/", "/.;/", "/...", "/%2e"}) + after
	case 2:
		return before + pick(random, []string{"%2f", "%5C", "\\", ";", ";x=1", "%00", "%", "%zz", "%c0%af", "%e3%80%82", "~", "!", "+", "*", "'", ":", "@", "|", "^", "{", "\"", "<"}) + after
	case 3:
		return path + pick(random, []string{"?", "?/a", "?x=/../", "?%2f", "#", "#/a", "?x#y", ";", "/", "//", "\\", "."})
	case 4:
		return strings.ToUpper(before) + after
	default:
		return strings.Replace(path, "/", pick(random, []string{"//", "\\", "/./", "%2F", "/x/..//"}), 1)
	}
}

func pick[T any](random *rand.Rand, list []T) T { return list[random.IntN(len(list))] }
