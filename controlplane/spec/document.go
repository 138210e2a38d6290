package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const (
	// APIVersion is what every document says.
	APIVersion = "ztmesh.dev/v1alpha1"
	// MeshNamespace is the reserved namespace of what is above all namespaces.
	MeshNamespace = "mesh"
	// EgressPort is where a proxy takes HTTP and gRPC calls of its applications.
	EgressPort = 15001

	// DefaultSVIDTTL is Mesh.svidTTL where the spec says nothing.
	DefaultSVIDTTL = 2 * time.Hour
	// DefaultMaxConnectionAge is Mesh.maxConnectionAge where the spec says nothing.
	DefaultMaxConnectionAge = 30 * time.Minute
	// DefaultClockSkew is IdentityProvider.clockSkew where the spec says nothing.
	DefaultClockSkew = 30 * time.Second
	// DefaultAuthorizerTimeout is ExternalAuthorizer.timeout where the spec says
	// nothing.
	DefaultAuthorizerTimeout = 200 * time.Millisecond

	// ExternalPort is by what requests, tests and tcpCalls may name the only port of
	// an external service.
	ExternalPort = "external"
	// HostSuffix is what the host names of services end in: <name>.<namespace>.mesh.
	HostSuffix = ".mesh"

	// OperatorAnnotation with the value OperatorValue marks what was written by
	// `ztctl block`, not by files.
	OperatorAnnotation = reservedPrefix + "managed-by"
	OperatorValue      = "operator"

	// reservedPrefix begins those labels and annotations that files may not use.
	reservedPrefix = "ztmesh.dev/"
)

// The kinds of documents.
const (
	KindMesh             = "Mesh"
	KindWorkload         = "Workload"
	KindService          = "Service"
	KindGrant            = "Grant"
	KindBlock            = "Block"
	KindIdentityProvider = "IdentityProvider"
	KindSegment          = "Segment"
	KindAssertion        = "Assertion"
	KindException        = "Exception"
)

// Kinds is all of them, sorted.
func Kinds() []string {
	return []string{
		KindAssertion, KindBlock, KindException, KindGrant, KindIdentityProvider, KindMesh, KindSegment, KindService, KindWorkload,
	}
}

// What an Exception keeps.
const (
	FindingPlaintext       = "plaintext"
	FindingPlaintextEgress = "plaintext-egress"
	FindingPlaintextJWKS   = "plaintext-jwks"
	FindingReservedAddress = "reserved-address"
)

// Key is the identity of a document.
type Key struct{ Kind, Namespace, Name string }

// String is "Grant shop/web-reads-orders".
func (k Key) String() string { return k.Kind + " " + k.Namespace + "/" + k.Name }

// Compare orders by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// Less orders by kind, namespace and name.
func (k Key) Less(o Key) bool { return k.Compare(o) < 0 }

// Document is one resource of a spec, with where each part of it was written.
// It is immutable. One from Decode has no positions.
type Document struct {
	*ztv1.Document

	file  string
	spots []spot // sorted by path, the root "" first; nil for a document from the log
	// faults are the paths at which Parse found problems. Others may refer to the
	// document, but nothing is concluded from what is at, in or around them.
	faults []string
}

// spot is where the value at a path begins.
type spot struct {
	path         string
	line, column int32
}

// Key is the document's identity.
func (d *Document) Key() Key {
	return Key{d.GetKind(), d.GetMetadata().GetNamespace(), d.GetMetadata().GetName()}
}

// Ref is the document's namespace and name.
func (d *Document) Ref() Ref { return Ref{d.GetMetadata().GetNamespace(), d.GetMetadata().GetName()} }

// Operator tells whether the document was written by `ztctl block`, not by files.
func (d *Document) Operator() bool {
	return d.GetMetadata().GetAnnotations()[OperatorAnnotation] == OperatorValue
}

// At is where the value at path ("spec.to.services[0]") begins; where nothing is
// written at path, the nearest thing around it. line and column count from 1.
// For a document without positions, file is its key and both are 0.
func (d *Document) At(path string) (file string, line, column int) {
	if d.spots == nil {
		return d.Key().String(), 0, 0
	}
	for {
		if i, ok := d.spot(path); ok {
			return d.file, int(d.spots[i].line), int(d.spots[i].column)
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
}

// spot is the index in spots of path.
func (d *Document) spot(path string) (int, bool) {
	return slices.BinarySearchFunc(d.spots, path, func(s spot, path string) int { return cmp.Compare(s.path, path) })
}

// wrote tells whether the text has a value at path.
func (d *Document) wrote(path string) bool {
	_, ok := d.spot(path)
	return ok
}

// problem is a problem of this document at path.
func (d *Document) problem(code, path, hint, format string, args ...any) Problem {
	p := Problem{Code: code, Path: path, Message: fmt.Sprintf(format, args...), Hint: cmp.Or(hint, hintOf(code))}
	p.File, p.Line, p.Column = d.At(path)
	return p
}

// MeshOf is the Mesh among docs, or one that says nothing.
func MeshOf(docs []*Document) *ztv1.Mesh {
	for _, d := range docs {
		if m := d.GetMesh(); m != nil {
			return m
		}
	}
	return &ztv1.Mesh{}
}

// Decode reads what Canonical wrote. The document has no positions. It errs on
// bytes that are no document and on fields that this version does not know:
// those were written by a newer one, and are not to be skipped.
func Decode(canonical []byte) (*Document, error) {
	d := &ztv1.Document{}
	if err := proto.Unmarshal(canonical, d); err != nil {
		return nil, fmt.Errorf("decode document: %w", err)
	}
	doc := &Document{Document: d}
	if hasUnknown(d.ProtoReflect()) {
		return nil, fmt.Errorf("decode %s: it has fields that this version does not know", doc.Key())
	}
	if spec := specField(d.GetKind()); spec == nil || !d.ProtoReflect().Has(spec) {
		return nil, fmt.Errorf("decode %s: its spec is not of its kind", doc.Key())
	}
	if d.GetMetadata() == nil {
		return nil, errors.New("decode document: it has no metadata")
	}
	return doc, nil
}

// hasUnknown tells whether m, or a message in it, has fields outside its schema.
func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				found = found || hasUnknown(v.List().Get(i).Message())
			}
		default:
			found = hasUnknown(v.Message())
		}
		return !found
	})
	return found
}

// specField is the field of Document that holds the spec of kind: the member of
// the oneof whose message has that name. nil for a kind that does not exist.
func specField(kind string) protoreflect.FieldDescriptor {
	members := (*ztv1.Document)(nil).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()
	for i := range members.Len() {
		if string(members.Get(i).Message().Name()) == kind {
			return members.Get(i)
		}
	}
	return nil
}
