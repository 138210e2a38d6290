package spec

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Canonical is the one form of what d says: the bytes that the log holds and
// that equality is judged by. Lists that are sets are sorted and hold nothing
// twice; what keeps its order is serves, tests, statements and the path of a
// claim. Defaults are not filled in.
func Canonical(d *Document) []byte { return marshal(normalized(d.Document)) }

func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Every string came through Parse or Decode and is valid UTF-8.
		panic(fmt.Sprintf("spec: canonical form: %v", err))
	}
	return b
}

// normalized is a copy of d in canonical order.
func normalized(d *ztv1.Document) *ztv1.Document {
	d = proto.CloneOf(d)
	sortSets(d.ProtoReflect())
	switch {
	case d.GetMesh() != nil:
		slices.SortFunc(d.GetMesh().GetFederation(), func(a, b *ztv1.FederatedTrustDomain) int {
			return cmp.Or(cmp.Compare(a.GetTrustDomain(), b.GetTrustDomain()), cmp.Compare(a.GetBundle(), b.GetBundle()))
		})
	case d.GetWorkload() != nil:
		slices.SortFunc(d.GetWorkload().GetTcpCalls(), func(a, b *ztv1.TCPCall) int {
			return cmp.Or(cmp.Compare(a.GetLocalPort(), b.GetLocalPort()), cmp.Compare(a.GetService(), b.GetService()))
		})
	case d.GetIdentityProvider() != nil:
		slices.SortStableFunc(d.GetIdentityProvider().GetClaims(), func(a, b *ztv1.Claim) int {
			return cmp.Compare(a.GetName(), b.GetName())
		})
	case d.GetGrant().GetWhen() != nil:
		w := d.GetGrant().GetWhen()
		slices.SortFunc(w.Windows, func(a, b *ztv1.Window) int { return bytes.Compare(marshal(a), marshal(b)) })
		w.Windows = slices.CompactFunc(w.Windows, func(a, b *ztv1.Window) bool { return proto.Equal(a, b) })
	}
	return d
}

// sortSets makes every list of texts in m sorted and without doubles, except the
// path of a claim: it is the one whose order says something.
func sortSets(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					sortSets(v.Message())
					return true
				})
			}
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				sortSets(v.List().Get(i).Message())
			}
		case fd.IsList():
			if fd.FullName() != claimPath {
				sortSet(v.List(), fd.FullName() == windowDays)
			}
		case fd.Message() != nil:
			sortSets(v.Message())
		}
		return true
	})
}

const (
	claimPath  = "zt.v1alpha1.Claim.path"
	windowDays = "zt.v1alpha1.Window.days"
)

// sortSet sorts l, days by the week.
func sortSet(l protoreflect.List, days bool) {
	texts := make([]string, l.Len())
	for i := range texts {
		texts[i] = l.Get(i).String()
	}
	if days {
		slices.SortFunc(texts, func(a, b string) int {
			return cmp.Or(cmp.Compare(slices.Index(Days(), a), slices.Index(Days(), b)), cmp.Compare(a, b))
		})
	} else {
		slices.Sort(texts)
	}
	texts = slices.Compact(texts)
	for i, s := range texts {
		l.Set(i, protoreflect.ValueOfString(s))
	}
	l.Truncate(len(texts))
}
