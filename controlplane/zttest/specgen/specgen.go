// Package specgen makes random specs for property tests: few names, so that
// documents refer to one another, and every field that a spec can have.
//
// Most specs pass spec.Check; those of Any need not, since policy is total. It
// knows no judge. The keys of its identity providers and of the foreign trust
// domain are derived from their names, so that a harness can sign for them
// (Token, ForeignCA).
package specgen

import (
	"slices"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// The trust domains of the specs made here: the mesh's own, a former name of it,
// and a federated one.
const (
	TrustDomain = "td.example"
	Alias       = "old.example"
	Foreign     = "ally.example"
)

var (
	namespaces = []string{"a", "ab", "b"}
	names      = []string{"p", "q", "r", "rs"}
	grants     = []string{"g", "h", "i", "j", "k", "l"}
	segments   = []string{"s", "t"}
	portNames  = []string{"http", "admin", "rpc", "raw"}
	protocols  = []string{"http", "http", "http2", "grpc", "tcp"}
	methods    = []string{"GET", "POST", "DELETE"}
	grpcCalls  = []string{"s.S/Get", "s.S/Put", "s.S/*", "t.T/Get"}
	paths      = []string{
		"/", "/a", "/a/", "/a/b", "/a/**", "/a/b/**", "/**",
		"/*", "/a/*", "/*/b", "/a/{id}/c", "/*/b/**", "/a/*/", "/{x}/{y}",
	}
	foreignIDs = []string{"spiffe://" + Foreign + "/ns/a/sa/p", "spiffe://" + Foreign + "/robot"}
	headers    = []string{"x-team", "x-tier"}
	values     = []string{"red", "blue", "red,blue"}
	cidrs      = []string{"127.0.0.0/8", "127.0.0.1/32", "127.0.0.2/31", "10.0.0.0/8", "::1/128", "0.0.0.0/0"}
	zones      = []string{"UTC", "Europe/Berlin", "Asia/Kolkata"}
	clocks     = []string{"00:00", "06:00", "09:30", "12:00", "18:00", "23:59"}
	subjects   = []string{"ada", "bob", "eve"}
	hosts      = []string{"api.ext.test", "pay.ext.test", "raw.ext.test"}

	past, future = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2098, 7, 1, 12, 0, 0, 0, time.UTC)
)

// Expressions are those of `when.cel` in random specs.
func Expressions() []string {
	return []string{
		`request.method == "GET"`,
		`request.url_path.startsWith("/a/") || request.url_path == "/"`,
		`"x-team" in request.headers && request.headers["x-team"] == "red"`,
		`request.headers["x-tier"] in ["red", "blue"]`,
		`size(request.url_path) < 5`,
		`request.time < timestamp("2098-07-01T12:00:00Z")`,
		`request.time.getHours("Europe/Berlin") >= 0 && request.time.getDayOfWeek("UTC") < 7`,
		`connection.uri_san_peer_certificate.endsWith("/sa/p")`,
		`!has(request.headers.absent)`,
	}
}

// Any makes a set of documents with distinct keys, each well formed by itself:
// most of the workloads that there are names for, and some more documents.
func Any(t *rapid.T) []*spec.Document {
	m := newMaker(t)
	m.world()
	for range rapid.IntRange(2, 14).Draw(t, "grants") {
		m.addGrant()
	}
	for range rapid.SampledFrom([]int{0, 0, 1, 1, 2}).Draw(t, "blocks") {
		m.addBlock()
	}
	return distinct(m.docs)
}

// Sound makes a set of documents that passes spec.Check, by leaving out what
// Check complains of.
func Sound(t *rapid.T) []*spec.Document {
	docs := Any(t)
	for {
		problems := spec.Check(docs, TrustDomain)
		if len(problems) == 0 {
			return docs
		}
		bad := map[string]bool{}
		for _, p := range problems {
			bad[p.File] = true // a document without positions is its key
		}
		docs = slices.DeleteFunc(docs, func(d *spec.Document) bool { return bad[d.Key().String()] })
	}
}

// Document makes one document of any kind but Assertion.
func Document(t *rapid.T) *spec.Document {
	m := newMaker(t)
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0:
		m.addMesh()
	case 1, 2, 3:
		m.addWorkload(m.ref(names))
	case 4:
		m.addProvider(m.pick(Providers()))
	case 5:
		m.addSegment(m.pick(segments))
	case 6:
		m.addService(m.pick(namespaces))
	case 7, 8:
		m.addBlock()
	case 9:
		m.addException(spec.Ref{Namespace: m.pick(namespaces), Name: m.pick(names)}, m.pick(portNames))
	default:
		m.addGrant()
	}
	return m.docs[0]
}

// Statement makes one statement of an Assertion.
func Statement(t *rapid.T) *ztv1.Statement {
	m := newMaker(t)
	s := &ztv1.Statement{From: m.caller(), To: &ztv1.Target{}}
	switch rapid.IntRange(0, 4).Draw(t, "of") {
	case 0:
		s.To.AllServices = true
	case 1:
		s.To.Namespaces = m.some(namespaces)
	default:
		s.To.Services = []string{m.pick(namespaces) + "/" + m.pick(names)}
	}
	if m.oneIn(2) {
		m.requests(s.To, "http")
	}
	return s
}

// Shuffled is the same spec in another order of documents and of the items of
// every list whose order says nothing.
func Shuffled(t *rapid.T, docs []*spec.Document) []*spec.Document {
	out := make([]*spec.Document, len(docs))
	for i, d := range docs {
		c, err := spec.Decode(spec.Canonical(d))
		if err != nil {
			t.Fatalf("%s: %v", d.Key(), err)
		}
		shuffleLists(t, c.ProtoReflect())
		out[i] = c
	}
	if len(out) < 2 {
		return out
	}
	return rapid.Permutation(out).Draw(t, "order")
}

// shuffleLists shuffles the lists of m and of the messages in it, except for the
// path of a claim.
func shuffleLists(t *rapid.T, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() { // Range has no order, and draws need one
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		switch {
		case fd.IsMap() || fd.Message() == nil && !fd.IsList():
		case !fd.IsList():
			shuffleLists(t, m.Mutable(fd).Message())
		default:
			list := m.Mutable(fd).List()
			items := make([]protoreflect.Value, list.Len())
			for i := range items {
				if items[i] = list.Get(i); fd.Message() != nil {
					shuffleLists(t, items[i].Message())
				}
			}
			if len(items) > 1 && fd.FullName() != "zt.v1alpha1.Claim.path" {
				for i, v := range rapid.Permutation(items).Draw(t, "order") {
					list.Set(i, v)
				}
			}
		}
	}
}

func distinct(docs []*spec.Document) []*spec.Document {
	seen := map[spec.Key]bool{}
	return slices.DeleteFunc(docs, func(d *spec.Document) bool {
		was := seen[d.Key()]
		seen[d.Key()] = true
		return was
	})
}
