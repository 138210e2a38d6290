package view

import (
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// mentions is who names what: by the mention and the key of the document.
type mentions = iradix.Tree[*spec.Document]

// Sound is the view, noted as one whose documents have passed spec.Check all
// together, so that a change of it is checked at the cost of what it changes.
func (v *View) Sound() *View {
	if v.mentions != nil {
		return v
	}
	txn := iradix.New[*spec.Document]().Txn()
	for d := range v.all() {
		mention(txn, d)
	}
	sound := *v
	sound.mentions = txn.Commit()
	return &sound
}

func mention(txn *iradix.Txn[*spec.Document], d *spec.Document) {
	for _, m := range spec.Mentions(d) {
		txn.Insert(mentionKey(m, d.Key()), d)
	}
}

func mentionKey(m spec.Mention, by spec.Key) []byte {
	return append(mentionPrefix(m), radixKey(by)...)
}

// mentionPrefix ends in a zero byte, which no name has.
func mentionPrefix(m spec.Mention) []byte {
	b := make([]byte, 0, len(m.Name)+64)
	return append(append(append(b, byte(m.What)), m.Name...), 0)
}

// Check tells whether the documents of next, which is v after a change, pass
// spec.Check all together. It looks at what changes, at those documents that name
// it, and at what they name. It is false, too, where it cannot tell so: where v is
// not known to be sound, or the change is of what everything may depend on. Then
// spec.Check of all documents tells. What it returns is next, noted as sound.
func (v *View) Check(next *View, puts []*spec.Document, deletes []spec.Key) (*View, bool) {
	if v.mentions == nil || !checkedAlone(puts, deletes) {
		return next, false
	}
	txn := v.mentions.Txn()
	for _, k := range deletes {
		v.unmention(txn, k)
	}
	for _, d := range puts {
		v.unmention(txn, d.Key())
	}
	for _, d := range puts {
		mention(txn, d)
	}
	sound := *next
	sound.mentions = txn.Commit()
	c := &change{now: &sound, check: map[spec.Key]*spec.Document{}, beside: map[spec.Key]*spec.Document{}}
	for _, d := range puts {
		c.check[d.Key()] = d
	}
	for _, d := range puts {
		before, _ := v.Document(d.Key())
		c.affects(d.Key(), before, d)
	}
	for _, k := range deletes {
		if before, ok := v.Document(k); ok {
			c.affects(k, before, nil)
		}
	}
	for _, d := range c.check {
		c.needs(d)
	}
	if len(c.check) > 0 {
		for _, kind := range spread {
			for d := range sound.OfKind(kind) {
				c.with(d)
			}
		}
	}
	if len(spec.CheckSome(values(c.check), values(c.beside), v.Index.TrustDomain())) > 0 {
		return next, false
	}
	return &sound, true
}

// spread are the kinds on which what spec.Check finds in any document may depend.
var spread = []string{spec.KindMesh, spec.KindSegment, spec.KindIdentityProvider, spec.KindException}

// checkedAlone tells whether a change is of few documents, and of none on which
// others depend without naming them.
func checkedAlone(puts []*spec.Document, deletes []spec.Key) bool {
	return !slices.ContainsFunc(puts, func(d *spec.Document) bool { return slices.Contains(spread, d.GetKind()) }) &&
		!slices.ContainsFunc(deletes, func(k spec.Key) bool { return slices.Contains(spread, k.Kind) })
}

func (v *View) unmention(txn *iradix.Txn[*spec.Document], k spec.Key) {
	d, ok := v.Document(k)
	if !ok {
		return
	}
	for _, m := range spec.Mentions(d) {
		txn.Delete(mentionKey(m, k))
	}
}

// change is the documents that a change makes worth checking, and those beside them
// that say whether they pass.
type change struct {
	now           *View
	check, beside map[spec.Key]*spec.Document
}

// affects adds the documents in which something else may be found because one
// document is another now; nil: it is not there.
func (c *change) affects(k spec.Key, before, after *spec.Document) {
	ref := spec.Ref{Namespace: k.Namespace, Name: k.Name}.String()
	came := (before == nil) != (after == nil)
	switch k.Kind {
	case spec.KindWorkload:
		if !came && samePorts(before.GetWorkload(), after.GetWorkload()) {
			return
		}
		c.named(ref)
		c.mentioning(spec.Mention{What: spec.MentionNamespace, Name: k.Namespace})
		c.mentioning(spec.Mention{What: spec.MentionAll})
	case spec.KindService:
		c.named(ref)
	case spec.KindGrant:
		if came {
			c.mentioning(spec.Mention{What: spec.MentionGrant, Name: ref})
		}
	}
}

func samePorts(a, b *ztv1.Workload) bool {
	return slices.EqualFunc(a.GetServes(), b.GetServes(), func(a, b *ztv1.Port) bool { return proto.Equal(a, b) })
}

// named adds who names a workload or a service, and who names a Service of it.
func (c *change) named(ref string) {
	for d := range c.now.mentioned(spec.Mention{What: spec.MentionName, Name: ref}) {
		c.check[d.Key()] = d
		if d.GetService() != nil && d.Ref().String() != ref {
			c.mentioning(spec.Mention{What: spec.MentionName, Name: d.Ref().String()})
		}
	}
}

func (c *change) mentioning(m spec.Mention) {
	for d := range c.now.mentioned(m) {
		c.check[d.Key()] = d
	}
}

// needs adds what a document mentions as documents beside it.
func (c *change) needs(d *spec.Document) {
	for _, m := range spec.Mentions(d) {
		switch m.What {
		case spec.MentionName:
			c.name(m.Name, true)
		case spec.MentionGrant:
			if ref, err := spec.ParseRef(m.Name, ""); err == nil {
				c.get(spec.Key{Kind: spec.KindGrant, Namespace: ref.Namespace, Name: ref.Name})
			}
		case spec.MentionNamespace:
			for w := range c.now.of(spec.KindWorkload, m.Name) {
				c.with(w)
			}
		case spec.MentionAll:
			for w := range c.now.OfKind(spec.KindWorkload) {
				c.with(w)
			}
		case spec.MentionHost:
			for s := range c.now.mentioned(m) {
				c.with(s)
			}
		}
	}
}

// name adds the workload and the Service of a name, and the Service's workloads.
func (c *change) name(name string, members bool) {
	ref, err := spec.ParseRef(name, "")
	if err != nil {
		return
	}
	c.get(spec.Key{Kind: spec.KindWorkload, Namespace: ref.Namespace, Name: ref.Name})
	s := c.get(spec.Key{Kind: spec.KindService, Namespace: ref.Namespace, Name: ref.Name})
	if s == nil || !members {
		return
	}
	for _, m := range spec.Mentions(s) {
		if m.What == spec.MentionName && m.Name != name {
			c.name(m.Name, false)
		}
	}
}

func (c *change) get(k spec.Key) *spec.Document {
	d, ok := c.now.Document(k)
	if !ok {
		return nil
	}
	c.with(d)
	return d
}

func (c *change) with(d *spec.Document) {
	if k := d.Key(); c.check[k] == nil {
		c.beside[k] = d
	}
}

func values(m map[spec.Key]*spec.Document) []*spec.Document {
	out := make([]*spec.Document, 0, len(m))
	for _, d := range m {
		out = append(out, d)
	}
	return out
}
