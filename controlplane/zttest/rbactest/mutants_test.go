package rbactest_test

import (
	_ "embed"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/rbactest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
	"github.com/ztmesh/ztmesh/xds"
)

//go:embed testdata/equivalent.txt
var equivalent string

// TestMutants asks whether it would show if something that a proxy is told were
// missing or the other way round: each element of each list and map, each
// verdict, each predicate in turn. For each of these mutants some request must
// exist on which it and the evaluator disagree, save those in equivalent.txt, of
// which none can be told from the original, or no more than 1 in 20.
//
// It mutates what was built. "make mutation-check" mutates what builds it.
func TestMutants(t *testing.T) {
	archive, err := os.ReadFile("testdata/mutants.txtar")
	if err != nil {
		t.Fatal(err)
	}
	s, err := script.Parse("mutants", archive)
	if err != nil {
		t.Fatal(err)
	}
	j := newJudges(s.TrustDomain, s.Docs)
	asked := questions(t, j, s)
	reasons := equivalents(t)
	total, caught, same := 0, 0, 0
	used := map[string]bool{}
	short := strings.NewReplacer(".typed_config", "", ".default_filter_chain", "", ".matcher_list.matchers", "", ".matcher_tree", "",
		".exact_match_map.map", "", ".prefix_match_map.map", "~", ".on_no_match", ".else", ".matcher", "", "spiffe://shop.example/ns/", "", "_predicate", "")
	for _, ref := range slices.SortedFunc(maps.Keys(asked), spec.Ref.Compare) {
		r, secrets, err := j.told(ref, script.Noon)
		if err != nil {
			t.Fatal(err)
		}
		for _, res := range r.All() {
			if !strings.HasSuffix(res.Type, ".Listener") && !strings.HasSuffix(res.Type, ".TypedExtensionConfig") {
				continue
			}
			// What leaves the mesh is asked about as a call of web.
			if strings.HasPrefix(res.Name, "out/") != (ref.Name == "web") {
				continue
			}
			original := res.Body
			variants(original, ref.Name+" "+res.Name+" ", func(name string, m proto.Message) {
				name = short.Replace(name)
				total++
				res.Body = m.(*anypb.Any)
				shows := j.shows(r, secrets, asked[ref])
				entry, known := covered(reasons, name)
				switch {
				case shows && known:
					t.Errorf("is caught, and stands among the equivalent: %s", name)
				case shows:
					caught++
				case known:
					same++
				default:
					t.Logf("survives: %s", name)
				}
				if known {
					used[entry] = true
				}
			})
			res.Body = original
		}
	}
	for name := range reasons {
		if used[name] {
			continue
		}
		t.Errorf("stands among the equivalent, and there is none: %s", name)
	}
	t.Logf("%d mutants, %d equivalent, %d of %d others caught", total, same, caught, total-same)
	if caught*20 < (total-same)*19 {
		t.Error("fewer than 95% are caught")
	}
}

// equivalents are the reasons by mutant: below a line "# reason" a line for each,
// or for all that begin alike, with "*" at its end.
func equivalents(t *testing.T) map[string]string {
	t.Helper()
	out, reason := map[string]string{}, ""
	for line := range strings.Lines(equivalent) {
		line = strings.TrimSuffix(line, "\n")
		if r, ok := strings.CutPrefix(line, "# "); ok {
			reason = r
		} else if line != "" {
			if out[line] != "" || reason == "" {
				t.Errorf("twice, or without a reason: %s", line)
			}
			out[line] = reason
		}
	}
	return out
}

// covered finds the entry of a mutant: its name, or what it begins with and "*".
func covered(reasons map[string]string, name string) (entry string, ok bool) {
	if _, ok := reasons[name]; ok {
		return name, true
	}
	for entry := range reasons {
		if begin, ok := strings.CutSuffix(entry, "*"); ok && strings.HasPrefix(name, begin) {
			return entry, true
		}
	}
	return "", false
}

// question is a request with what the evaluator says.
type question struct {
	reqgen.Request
	decision policy.Decision
}

// questions are requests by the workload whose proxy judges them: those of the
// script and random ones. About the original all agree.
func questions(t *testing.T, j *judges, s *script.Script) map[spec.Ref][]question {
	t.Helper()
	var all []reqgen.Request
	for _, l := range s.Lines {
		if err := l.Check(j.decide(l.Request)); err != nil {
			t.Error(err)
		}
		all = append(all, reqgen.Of(l.Request))
	}
	g, random := reqgen.New(s.TrustDomain, s.Docs), rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	for range 2000 {
		r, _ := g.To(random.IntN, spec.Ref{})
		all = append(all, r)
	}
	out := map[spec.Ref][]question{}
	for _, r := range all {
		if _, lifted := j.ix.Lift(r.Time); len(lifted) > 0 {
			continue // another configuration
		}
		v, asked, err := j.ask(r)
		if err != nil {
			t.Fatal(err)
		}
		if !asked {
			continue
		}
		q := question{r, j.decide(r.Request)}
		if diff := disagree(r.Request, q.decision, v); diff != "" {
			t.Fatal(diff)
		}
		judge := r.Service
		if j.external[judge] != nil {
			judge = j.callers[r.CallerID]
		}
		out[judge] = append(out[judge], q)
	}
	return out
}

// shows tells whether a proxy with these resources disagrees about a request.
func (j *judges) shows(r *xds.Resources, secrets []*xds.Resource, questions []question) bool {
	p, err := rbactest.Load(r, secrets...)
	if err != nil {
		return true
	}
	for i, q := range questions {
		v, err := j.askProxy(p, q.Request)
		if err != nil || disagree(q.Request.Request, q.decision, v) != "" {
			copy(questions[1:i+1], questions[:i]) // what has shown one may show the next
			questions[0] = q
			return true
		}
	}
	return false
}

// silent are fields that judge nothing.
func silent(fd protoreflect.FieldDescriptor) bool {
	switch fd.Name() {
	case "access_log", "local_reply_config", "http2_protocol_options", "common_http_protocol_options", "config_source",
		"sds_config", "tls_params", "response_headers_to_remove", "request_headers_to_remove", "grpc_service", "audiences",
		"remote_jwks", "local_jwks", "type_urls", "alpn_protocols", "internal_address_config", "default_config",
		"tls_certificate_sds_secret_configs", "address", "decoder_header_mutation_rules", "parsed", "expr_match", "condition",
		"early_header_mutation_extensions", "stat_prefix":
		return true
	}
	return false
}

// variants calls yield with every mutant of m, which it does not change.
func variants(m proto.Message, at string, yield func(string, proto.Message)) {
	if a, ok := m.(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			panic(err)
		}
		variants(inner, at, func(name string, m proto.Message) {
			out, err := anypb.New(m)
			if err != nil {
				panic(err)
			}
			yield(name, out)
		})
		return
	}
	inverted(m, at, yield)
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if silent(fd) {
			return true
		}
		field := at + "." + string(fd.Name())
		change := func(name string, f func(protoreflect.Message)) {
			out := proto.Clone(m)
			f(out.ProtoReflect())
			yield(name, out)
		}
		switch {
		case fd.IsList() && fd.Message() != nil:
			elements(fd, v.List(), field, change)
		case fd.IsMap() && fd.MapValue().Message() != nil:
			entries(fd, v.Map(), field, change)
		case fd.Message() != nil && !fd.IsMap():
			variants(v.Message().Interface(), field, func(name string, inner proto.Message) {
				change(name, func(out protoreflect.Message) { out.Set(fd, protoreflect.ValueOfMessage(inner.ProtoReflect())) })
			})
		}
		if optional(fd) {
			change(field+": dropped", func(out protoreflect.Message) { out.Clear(fd) })
		}
		return true
	})
}

// optional are the fields that a message may be without.
func optional(fd protoreflect.FieldDescriptor) bool {
	switch fd.Name() {
	case "on_no_match", "filter_chain_match", "headers", "ignore_case", "invert_match":
		return true
	}
	return false
}

// elements drops each element of a list, and mutates each.
func elements(fd protoreflect.FieldDescriptor, list protoreflect.List, at string, change func(string, func(protoreflect.Message))) {
	for i := range list.Len() {
		here := fmt.Sprintf("%s[%d]", at, i)
		change(here+": dropped", func(out protoreflect.Message) {
			old := out.Get(fd).List()
			kept := out.NewField(fd).List()
			for k := range old.Len() {
				if k != i {
					kept.Append(old.Get(k))
				}
			}
			out.Set(fd, protoreflect.ValueOfList(kept))
		})
		variants(list.Get(i).Message().Interface(), here, func(name string, inner proto.Message) {
			change(name, func(out protoreflect.Message) {
				out.Mutable(fd).List().Set(i, protoreflect.ValueOfMessage(inner.ProtoReflect()))
			})
		})
	}
}

// entries drops each entry of a map, and mutates each.
func entries(fd protoreflect.FieldDescriptor, m protoreflect.Map, at string, change func(string, func(protoreflect.Message))) {
	m.Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
		here := fmt.Sprintf("%s[%s]", at, key)
		change(here+": dropped", func(out protoreflect.Message) { out.Mutable(fd).Map().Clear(key) })
		variants(v.Message().Interface(), here, func(name string, inner proto.Message) {
			change(name, func(out protoreflect.Message) {
				out.Mutable(fd).Map().Set(key, protoreflect.ValueOfMessage(inner.ProtoReflect()))
			})
		})
		return true
	})
}

// inverted yields m as its opposite.
func inverted(m proto.Message, at string, yield func(string, proto.Message)) {
	switch m := m.(type) {
	case *rbacv3.Action:
		out := proto.CloneOf(m)
		out.Action = rbacv3.RBAC_DENY - m.GetAction()
		yield(at+": "+out.GetAction().String(), out)
	case *rbacv3.RBAC:
		out := proto.CloneOf(m)
		out.Action = rbacv3.RBAC_DENY - m.GetAction()
		yield(at+": "+out.GetAction().String(), out)
	case *matcherv3.Matcher_MatcherList_Predicate:
		yield(at+": negated", &matcherv3.Matcher_MatcherList_Predicate{
			MatchType: &matcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: m},
		})
	case *matcherv3.Matcher_MatcherTree:
		out := proto.CloneOf(m)
		if exact := out.GetExactMatchMap(); exact != nil {
			out.TreeType = &matcherv3.Matcher_MatcherTree_PrefixMatchMap{PrefixMatchMap: exact}
			yield(at+": by prefix", out)
		} else {
			out.TreeType = &matcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: out.GetPrefixMatchMap()}
			yield(at+": exact", out)
		}
	case *matcherv3.StringMatcher:
		out := proto.CloneOf(m)
		switch {
		case m.GetExact() != "":
			out.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: m.GetExact()}
			yield(at+": by prefix", out)
		case m.GetPrefix() != "":
			out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: m.GetPrefix()}
			yield(at+": exact", out)
		case m.GetContains() != "":
			out.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: m.GetContains()}
			yield(at+": exact", out)
		}
	}
}
