// Package specgen makes random specs for property tests: few names, so that
// documents refer to one another, and every field that a spec can have.
//
// Most specs pass spec.Check; those of Any need not, since policy is total. It
// knows no judge.
package specgen

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TrustDomain is that of every spec made here.
const TrustDomain = "td.example"

var (
	namespaces = []string{"a", "ab", "b"}
	names      = []string{"p", "q", "r", "rs"}
	grants     = []string{"g", "h", "i", "j", "k", "l"}
	portNames  = []string{"http", "admin", "rpc", "raw"}
	protocols  = []string{"http", "http2", "grpc", "tcp"}
	methods    = []string{"GET", "POST", "DELETE"}
	grpcCalls  = []string{"s.S/Get", "s.S/Put", "s.S/*", "t.T/Get"}
	paths      = []string{"/", "/a", "/a/", "/a/b", "/a/**", "/a/b/**", "/**"}
)

// Any makes a set of documents with distinct keys, each well formed by itself:
// most of the workloads that there are names for, and some more documents.
func Any(t *rapid.T) []*spec.Document {
	var docs []*spec.Document
	for _, ns := range namespaces {
		for _, name := range names {
			if rapid.IntRange(0, 4).Draw(t, "declared") > 0 {
				d := &ztv1.Document{ApiVersion: spec.APIVersion, Kind: spec.KindWorkload, Metadata: &ztv1.Metadata{Namespace: ns, Name: name}}
				d.Spec = &ztv1.Document_Workload{Workload: workload(t)}
				docs = append(docs, &spec.Document{Document: d})
			}
		}
	}
	return distinct(append(docs, rapid.SliceOfN(rapid.Custom(Document), 0, 16).Draw(t, "docs")...))
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

// Document makes one document.
func Document(t *rapid.T) *spec.Document {
	d := &ztv1.Document{ApiVersion: spec.APIVersion}
	switch rapid.IntRange(0, 12).Draw(t, "kind") {
	case 12:
		d.Kind, d.Metadata = spec.KindMesh, &ztv1.Metadata{Namespace: spec.MeshNamespace, Name: "mesh"}
		d.Spec = &ztv1.Document_Mesh{Mesh: mesh(t)}
	case 10, 11:
		d.Kind, d.Metadata = spec.KindWorkload, metadata(t, names)
		d.Spec = &ztv1.Document_Workload{Workload: workload(t)}
	default:
		d.Kind, d.Metadata = spec.KindGrant, metadata(t, grants)
		d.Spec = &ztv1.Document_Grant{Grant: grant(t)}
	}
	return &spec.Document{Document: d}
}

// Shuffled is the same spec in another order of documents and of the items of
// every list that is a set.
func Shuffled(t *rapid.T, docs []*spec.Document) []*spec.Document {
	out := make([]*spec.Document, len(docs))
	for i, d := range docs {
		c, err := spec.Decode(spec.Canonical(d))
		if err != nil {
			t.Fatalf("%s: %v", d.Key(), err)
		}
		if w := c.GetWorkload(); w != nil {
			w.TcpCalls = shuffle(t, w.TcpCalls)
			w.Serves = shuffle(t, w.Serves)
		}
		if g := c.GetGrant(); g != nil {
			g.From.Workloads, g.From.Namespaces = shuffle(t, g.From.Workloads), shuffle(t, g.From.Namespaces)
			g.To.Services, g.To.Ports = shuffle(t, g.To.Services), shuffle(t, g.To.Ports)
			g.To.Methods, g.To.Paths = shuffle(t, g.To.Methods), shuffle(t, g.To.Paths)
		}
		out[i] = c
	}
	return shuffle(t, out)
}

func shuffle[T any](t *rapid.T, list []T) []T {
	if len(list) < 2 {
		return list
	}
	return rapid.Permutation(list).Draw(t, "order")
}

func distinct(docs []*spec.Document) []*spec.Document {
	seen := map[spec.Key]bool{}
	return slices.DeleteFunc(docs, func(d *spec.Document) bool {
		was := seen[d.Key()]
		seen[d.Key()] = true
		return was
	})
}

func metadata(t *rapid.T, names []string) *ztv1.Metadata {
	m := &ztv1.Metadata{Namespace: pick(t, namespaces), Name: pick(t, names)}
	if rapid.IntRange(0, 4).Draw(t, "labelled") == 0 {
		m.Labels = map[string]string{"team": pick(t, names)}
	}
	return m
}

func mesh(t *rapid.T) *ztv1.Mesh {
	m := &ztv1.Mesh{TrustDomain: TrustDomain}
	if rapid.Bool().Draw(t, "aged") {
		m.MaxConnectionAge = durationpb.New(time.Duration(rapid.IntRange(10, 12).Draw(t, "age")) * time.Second)
	}
	if rapid.Bool().Draw(t, "lived") {
		m.SvidTtl = durationpb.New(time.Duration(rapid.IntRange(1, 3).Draw(t, "ttl")) * time.Hour)
	}
	return m
}

func workload(t *rapid.T) *ztv1.Workload {
	w := &ztv1.Workload{}
	for i := range rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3}).Draw(t, "ports") {
		w.Serves = append(w.Serves, &ztv1.Port{
			Name: portNames[i], Port: uint32(8000 + 10*rapid.IntRange(0, 1).Draw(t, "number") + i), Protocol: pick(t, protocols),
		})
	}
	for i := range rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "calls") {
		service := reference(t, names)
		if rapid.Bool().Draw(t, "named") {
			service += ":" + pick(t, portNames)
		}
		w.TcpCalls = append(w.TcpCalls, &ztv1.TCPCall{Service: service, LocalPort: uint32(5000 + i)})
	}
	return w
}

func grant(t *rapid.T) *ztv1.Grant {
	g := &ztv1.Grant{From: &ztv1.Caller{}, To: &ztv1.Target{Services: some(t, names)}}
	if rapid.IntRange(0, 4).Draw(t, "owned") == 0 {
		g.Owner = pick(t, names)
	}
	switch rapid.IntRange(0, 5).Draw(t, "from") {
	case 0:
		g.From.AnyWorkload = true
	case 1, 2:
		g.From.Namespaces = some(t, namespaces)
	default:
		for range rapid.IntRange(1, 3).Draw(t, "callers") {
			g.From.Workloads = append(g.From.Workloads, reference(t, names))
		}
	}
	if rapid.Bool().Draw(t, "ports") {
		g.To.Ports = some(t, portNames)
	}
	switch rapid.IntRange(0, 6).Draw(t, "to") {
	case 0, 1:
		g.To.Methods = some(t, methods)
	case 2:
		g.To.Methods = some(t, grpcCalls)
	case 3:
		g.To.Paths = some(t, paths)
	case 4:
		g.To.Methods, g.To.Paths = some(t, methods), some(t, paths)
	}
	return g
}

func reference(t *rapid.T, names []string) string {
	if rapid.Bool().Draw(t, "qualified") {
		return fmt.Sprintf("%s/%s", pick(t, namespaces), pick(t, names))
	}
	return pick(t, names)
}

func pick(t *rapid.T, list []string) string { return rapid.SampledFrom(list).Draw(t, "pick") }

func some(t *rapid.T, list []string) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(list), 1, 3, rapid.ID[string]).Draw(t, "some")
}
