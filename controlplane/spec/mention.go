package spec

import (
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Mention is something that a document names, so that what Check finds in the
// document may depend on it.
type Mention struct {
	What MentionKind
	Name string // "namespace/name" of what has one, else the name
}

// MentionKind is what a Mention names.
type MentionKind byte

// What documents mention.
const (
	MentionName      MentionKind = 'n' // a workload or a service
	MentionGrant     MentionKind = 'g'
	MentionNamespace MentionKind = 's' // all workloads of a namespace
	MentionAll       MentionKind = 'a' // all workloads; it has no name
	MentionHost      MentionKind = 'h' // a host of an external service
)

// Mentions is what d names, in no order and maybe twice; each document mentions
// itself where its name is that of a workload or a service. Mesh, Segments,
// IdentityProviders and Exceptions are not told: what Check finds may depend on any
// of them.
func Mentions(d *Document) []Mention {
	m := &mentions{namespace: d.Ref().Namespace}
	switch {
	case d.GetWorkload() != nil:
		m.add(MentionName, d.Ref().String())
		for _, c := range d.GetWorkload().GetTcpCalls() {
			m.name(c.GetService())
		}
	case d.GetService() != nil:
		m.add(MentionName, d.Ref().String())
		m.names(d.GetService().GetWorkloads())
		for _, h := range d.GetService().GetExternal().GetHosts() {
			m.add(MentionHost, h)
		}
	case d.GetGrant() != nil:
		m.caller(d.GetGrant().GetFrom())
		m.target(d.GetGrant().GetTo())
	case d.GetBlock() != nil:
		b := d.GetBlock()
		m.names(b.GetWorkloads())
		m.names(b.GetServices())
		m.ids(b.GetSpiffeIds())
		m.namespaces(b.GetNamespaces())
	case d.GetSegment() != nil:
		m.names(d.GetSegment().GetWorkloads())
		m.namespaces(d.GetSegment().GetNamespaces())
	case d.GetException() != nil:
		m.name(d.GetException().GetSubject())
	case d.GetAssertion() != nil:
		for _, t := range d.GetAssertion().GetTests() {
			m.test(t)
		}
		for _, s := range d.GetAssertion().GetNever() {
			m.caller(s.GetFrom())
			m.target(s.GetTo())
		}
		for _, s := range d.GetAssertion().GetAlways() {
			m.caller(s.GetFrom())
			m.target(s.GetTo())
		}
	}
	return m.list
}

type mentions struct {
	namespace string
	list      []Mention
}

func (m *mentions) add(what MentionKind, name string) { m.list = append(m.list, Mention{what, name}) }

// name adds a reference, maybe with a port. What is none has been reported.
func (m *mentions) name(s string) {
	if ref, _, err := ParseServicePort(s, m.namespace); err == nil {
		m.add(MentionName, ref.String())
	}
}

func (m *mentions) names(list []string) {
	for _, s := range list {
		m.name(s)
	}
}

func (m *mentions) ids(list []string) {
	for _, id := range list {
		if _, path, err := ParseID(id); err == nil {
			if ref, ok := workloadOf(path); ok {
				m.add(MentionName, ref.String())
			}
		}
	}
}

func (m *mentions) namespaces(list []string) {
	for _, ns := range list {
		m.add(MentionNamespace, ns)
	}
}

func (m *mentions) caller(c *ztv1.Caller) {
	m.names(c.GetWorkloads())
	m.ids(c.GetSpiffeIds())
	m.namespaces(c.GetNamespaces())
	if c.GetAnyWorkload() {
		m.add(MentionAll, "")
	}
}

func (m *mentions) target(t *ztv1.Target) {
	m.names(t.GetServices())
	m.namespaces(t.GetNamespaces())
	if t.GetAllServices() {
		m.add(MentionAll, "")
	}
}

func (m *mentions) test(t *ztv1.Test) {
	m.name(t.GetAs().GetWorkload())
	if r, err := ParseRequest(t.GetRequest(), m.namespace); err == nil {
		m.add(MentionName, r.Service.String())
	}
	if ref, err := ParseRef(t.GetBy(), m.namespace); err == nil {
		m.add(MentionGrant, ref.String())
	}
}

// CheckSome is what Check finds in these documents, when those beside them are what
// they mention. It looks for nothing in those beside.
func CheckSome(docs, beside []*Document, trustDomain string) Problems {
	c := newChecker(trustDomain)
	for _, d := range docs {
		c.index(d)
	}
	for _, d := range beside {
		c.index(d)
	}
	c.segments.join(c.workloads)
	for _, d := range docs {
		c.document(d)
	}
	return c.problems.capped()
}
