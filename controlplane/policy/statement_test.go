package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const td = "shop.example"

func document(kind, namespace, name string, set func(*ztv1.Document)) *spec.Document {
	d := &ztv1.Document{ApiVersion: spec.APIVersion, Kind: kind, Metadata: &ztv1.Metadata{Namespace: namespace, Name: name}}
	set(d)
	return &spec.Document{Document: d}
}

// fleet is workloads of two namespaces, some of which serve.
func fleet() []*spec.Document {
	var docs []*spec.Document
	for name, ports := range map[string][]*ztv1.Port{
		"a/one":  nil,
		"a/two":  {{Name: "http", Port: 8080, Protocol: HTTP, Upgrades: []string{webSocket}}},
		"b/one":  {{Name: "rpc", Port: 9000, Protocol: GRPC}, {Name: "http", Port: 8080, Protocol: HTTP}},
		"b/two":  {{Name: "raw", Port: 7000, Protocol: TCP}},
		"b/idle": nil,
	} {
		ns, n, _ := strings.Cut(name, "/")
		docs = append(docs, document(spec.KindWorkload, ns, n, func(d *ztv1.Document) {
			d.Spec = &ztv1.Document_Workload{Workload: &ztv1.Workload{Serves: ports}}
		}))
	}
	return docs
}

func drawCaller(t *rapid.T) *ztv1.Caller {
	switch rapid.IntRange(0, 3).Draw(t, "caller") {
	case 0:
		return &ztv1.Caller{AnyWorkload: true}
	case 1:
		return &ztv1.Caller{Namespaces: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b"}), 1, 2, rapid.ID).Draw(t, "namespaces")}
	}
	refs := []string{"a/one", "a/two", "b/one", "b/idle"}
	return &ztv1.Caller{Workloads: rapid.SliceOfNDistinct(rapid.SampledFrom(refs), 1, 3, rapid.ID).Draw(t, "workloads")}
}

// drawTarget draws a target among the services of refs.
func drawTarget(t *rapid.T, refs []string) *ztv1.Target {
	to := &ztv1.Target{Services: []string{rapid.SampledFrom(refs).Draw(t, "service")}}
	switch to.Services[0] {
	case "a/two":
		if rapid.IntRange(0, 3).Draw(t, "upgrades") == 0 {
			to.Upgrades = []string{webSocket}
		}
	case "b/two":
		return to
	default:
		to.Ports = []string{rapid.SampledFrom([]string{"http", "rpc"}).Draw(t, "port")}
	}
	if slices.Equal(to.Ports, []string{"rpc"}) {
		if rapid.Bool().Draw(t, "some calls") {
			to.Methods = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a/b", "a/c", "b/*"}), 1, 2, rapid.ID).Draw(t, "calls")
		}
		return to
	}
	if rapid.Bool().Draw(t, "some methods") {
		to.Methods = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"GET", "POST", "PUT"}), 1, 3, rapid.ID).Draw(t, "methods")
	}
	for range rapid.IntRange(0, 3).Draw(t, "paths") {
		to.Paths = append(to.Paths, drawPath(t, "path").String())
	}
	return to
}

// speaks tells of the requests of a statement, from its words alone. upgrades is
// what it means where it names none.
func speaks(st *ztv1.Statement, caller spec.Ref, port *Port, r Request, upgrades bool) bool {
	from, to := st.From, st.To
	if !from.AnyWorkload && !slices.Contains(from.Namespaces, caller.Namespace) && !slices.Contains(from.Workloads, caller.String()) ||
		!slices.Contains(to.Services, r.Service.String()) || len(to.Ports) > 0 && !slices.Contains(to.Ports, port.Name) {
		return false
	}
	if port.Protocol == TCP {
		return to.Methods == nil && to.Paths == nil && to.Upgrades == nil
	}
	if r.Upgrade == "" && to.Upgrades != nil || r.Upgrade != "" && to.Upgrades == nil && !upgrades {
		return false
	}
	path := to.Paths == nil || slices.ContainsFunc(to.Paths, func(p string) bool { return oracle(newPath(p)).MatchString(r.Path) })
	return path && len(to.Methods) == 0 || slices.ContainsFunc(to.Methods, func(m string) bool {
		if strings.Contains(m, "/") {
			return r.Method == "POST" && oracle(newPath("/"+m)).MatchString(r.Path)
		}
		return path && r.Method == m
	})
}

// TestStatementsByEnumeration holds never and always to the decisions about every
// request over a small alphabet.
func TestStatementsByEnumeration(t *testing.T) {
	paths := slices.DeleteFunc(canonicalPaths(), func(p string) bool { return strings.Count(p, "/") > 4 })
	early, end := noon, noon.Add(time.Hour) // conditional grants end then
	counts := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		docs := fleet()
		for i := range rapid.IntRange(0, 4).Draw(t, "grants") {
			to := drawTarget(t, []string{"a/two", "b/one", "b/two"})
			ns, _, _ := strings.Cut(to.Services[0], "/")
			g := &ztv1.Grant{From: drawCaller(t), To: to}
			if rapid.IntRange(0, 3).Draw(t, "conditional") == 0 {
				g.Until = timestamppb.New(end)
			}
			docs = append(docs, document(spec.KindGrant, ns, string(rune('a'+i)), func(d *ztv1.Document) {
				d.Spec = &ztv1.Document_Grant{Grant: g}
			}))
		}
		ix := New(td, docs)
		st := &ztv1.Statement{From: drawCaller(t), To: drawTarget(t, []string{"a/two", "b/one", "b/two"})}
		if st.To.Upgrades != nil && st.To.Methods != nil && !slices.Contains(st.To.Methods, "GET") {
			return // it speaks of nothing
		}
		some, all := "", "" // requests that are allowed, or not
		ix.Workloads(func(caller *Workload) bool {
			ix.Workloads(func(w *Workload) bool {
				if !slices.Contains(st.To.Services, w.Ref.String()) {
					return true
				}
				for i := range w.Ports {
					p := &w.Ports[i]
					for _, method := range []string{"GET", "POST", "PUT", "PATCH", "WS"} {
						for _, path := range paths {
							r := Request{CallerID: caller.ID, Service: w.Ref, Port: p.Name, Method: method, Path: path, Time: early}
							if p.Protocol == TCP {
								r.TCP, r.Method, r.Path = true, "", ""
							} else if method == "WS" {
								r.Method, r.Upgrade = "GET", webSocket
							}
							if speaks(st, caller.Ref, p, r, true) && ix.Decide(r).Allowed {
								some = caller.Ref.String() + " " + method + " " + path
							}
							r.Time = end
							if speaks(st, caller.Ref, p, r, false) && !ix.Decide(r).Allowed {
								all = caller.Ref.String() + " " + method + " " + path
							}
							if r.TCP {
								break
							}
						}
					}
				}
				return true
			})
			return true
		})
		code, failure := ix.never("a", st)
		if (code == CodeNever) != (some != "") || code == CodeUndecided {
			t.Fatalf("never %v: got %s %s, want like %q", st, code, failure, some)
		}
		counts["never "+code]++
		code, failure, _ = ix.always("a", st)
		if (code == CodeAlways) != (all != "") || code == CodeUndecided {
			t.Fatalf("always %v: got %s %s, want like %q", st, code, failure, all)
		}
		counts["always "+code]++
		example := func(failure string, at time.Time, upgrades bool) Decision {
			request, rest, _ := strings.Cut(failure, " by ")
			caller, _, _ := strings.Cut(rest, " ")
			test := &ztv1.Test{As: &ztv1.Subject{Workload: caller}, Request: request, At: timestamppb.New(at)}
			r, err := ix.request("", test, at)
			if err != nil {
				t.Fatalf("%s: %v", failure, err)
			}
			ref, err := spec.ParseRef(caller, "")
			w, _ := ix.Workload(r.Service)
			if err != nil || !speaks(st, ref, w.port(r.Port), r, upgrades) {
				t.Fatalf("%v does not speak of %s", st, failure)
			}
			return ix.Decide(r)
		}
		if _, failure := ix.never("a", st); failure != "" && !example(failure, early, true).Allowed {
			t.Fatalf("never: %s is no example", failure)
		}
		if _, failure, _ := ix.always("a", st); failure != "" && example(failure, end, false).Allowed {
			t.Fatalf("always: %s is no example", failure)
		}
	})
	for _, outcome := range []string{"never ", "never " + CodeNever, "always ", "always " + CodeAlways} {
		if counts[outcome] == 0 {
			t.Errorf("no statement was %q: %v", outcome, counts)
		}
	}
}
