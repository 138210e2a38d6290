package judge_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/judge"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

// shrinking is how long a smaller case is looked for.
const shrinking = 2 * time.Minute

// shrink looks for the smallest spec and request that show a disagreement: without
// documents, then without fields, then with a simpler request, as long as that
// helps. The Envoy is asked each time.
func shrink(p *judge.Proxy, f *finding) string {
	deadline := time.Now().Add(shrinking)
	small := *f
	better := func(docs []*spec.Document, q judge.Question) bool {
		says, ok := shows(p, docs, q)
		if ok {
			small.docs, small.question, small.says = docs, q, says
		}
		return ok
	}
	found := better(f.docs, f.question)
	for found {
		before := small
		for i := len(small.docs) - 1; i >= 0 && time.Now().Before(deadline); i-- {
			better(slices.Delete(slices.Clone(small.docs), i, i+1), small.question)
		}
		for i := range small.docs {
			for n := 0; time.Now().Before(deadline); {
				d := &spec.Document{Document: proto.CloneOf(small.docs[i].Document)}
				left := n
				if !edit(d.ProtoReflect(), &left) {
					break
				}
				docs := slices.Clone(small.docs)
				docs[i] = d
				if !better(docs, small.question) {
					n++
				}
			}
		}
		for _, simplify := range simpler {
			q := small.question
			if simplify(&q); !reflect.DeepEqual(q, small.question) && time.Now().Before(deadline) {
				better(small.docs, q)
			}
		}
		if reflect.DeepEqual(before, small) || time.Now().After(deadline) {
			break
		}
	}
	again := "shown again and made smaller"
	if !found {
		again = "not shown a second time; this is the whole of it"
	}
	return fmt.Sprintf("the judges disagree (%s; SEED=%d N=1):\n%s\n%s\n%s", again, f.seed, small.says, small.question,
		(&judge.Spec{Docs: small.docs}).YAML())
}

// shows tells whether the judges disagree about a request, if the spec is valid.
func shows(p *judge.Proxy, docs []*spec.Document, q judge.Question) (says string, ok bool) {
	_, problems := spec.Parse([]spec.File{{Name: "spec.yaml", Content: []byte((&judge.Spec{Docs: docs}).YAML())}})
	if len(problems) > 0 || len(spec.Check(docs, specgen.TrustDomain)) > 0 {
		return "", false
	}
	s := judge.NewSpec(specgen.TrustDomain, docs)
	ref, ok := s.Judge(q.Request.Request)
	if !ok {
		return "", false
	}
	h, err := p.Hear(s, ref)
	if err != nil {
		return "", false
	}
	answers, err := h.Ask([]judge.Question{q})
	if err != nil {
		return "", false
	}
	says = h.Difference(q, answers[0])
	return says, says != ""
}

// edit makes the n-th of the things that make a message smaller: without a field,
// an item of a list, or a key. It is false when there are fewer.
func edit(m protoreflect.Message, n *int) bool {
	this := func() bool { *n--; return *n < 0 }
	fields := m.Descriptor().Fields()
	for i := range fields.Len() { // Range has no order
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		if this() {
			m.Clear(fd)
			return true
		}
		switch {
		case fd.IsMap():
		case fd.IsList():
			list := m.Mutable(fd).List()
			for at := range list.Len() {
				if this() {
					for ; at+1 < list.Len(); at++ {
						list.Set(at, list.Get(at+1))
					}
					list.Truncate(list.Len() - 1)
					return true
				}
				if fd.Message() != nil && edit(list.Get(at).Message(), n) {
					return true
				}
			}
		case fd.Message() != nil:
			if edit(m.Mutable(fd).Message(), n) {
				return true
			}
		}
	}
	return false
}

// simpler are what makes a question smaller.
var simpler = []func(*judge.Question){
	func(q *judge.Question) { q.Target = "" },
	func(q *judge.Question) { q.Authority, q.Target = "", "" },
	func(q *judge.Question) { q.Headers = nil },
	func(q *judge.Question) { q.Headers = q.Headers[:max(len(q.Headers)-1, 0)] },
	func(q *judge.Question) { q.Headers = q.Headers[min(1, len(q.Headers)):] },
	func(q *judge.Question) { q.Token, q.Authorization = policy.Token{}, nil },
	func(q *judge.Question) {
		if q.Token.State == policy.TokenValid {
			q.Authorization = []string{"Bearer " + reqgen.GoodToken}
		}
	},
	func(q *judge.Question) { q.Source = netip.Addr{} },
	func(q *judge.Question) { q.Denied = false },
	func(q *judge.Question) { q.Upgrade = "" },
	func(q *judge.Question) { q.Path = "/" },
	func(q *judge.Question) { q.Path = "/a" },
	func(q *judge.Question) { q.Path = q.Path[:(len(q.Path)+1)/2] },
	func(q *judge.Question) { q.Path = q.Path[:max(len(q.Path)-1, 0)] },
	func(q *judge.Question) { q.Method = "GET" },
	func(q *judge.Question) {
		if q.Protocol == judge.HTTP2 {
			q.Protocol = judge.HTTP1
		}
	},
}
