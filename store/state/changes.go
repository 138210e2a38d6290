package state

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Key names a document.
type Key struct{ Kind, Namespace, Name string }

// String is such as "Grant shop/web-reads-orders".
func (k Key) String() string { return k.Kind + " " + k.Namespace + "/" + k.Name }

// Compare orders by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		strings.Compare(k.Kind, o.Kind),
		strings.Compare(k.Namespace, o.Namespace),
		strings.Compare(k.Name, o.Name),
	)
}

// valid tells whether radix maps no other key to the same bytes.
func (k Key) valid() bool {
	return k.Kind != "" && k.Name != "" && !strings.Contains(k.Kind+k.Namespace+k.Name, "\x00")
}

// radix is the key in the tree of documents; it sorts as Compare does.
func (k Key) radix() []byte {
	if k == (Key{}) {
		return nil
	}
	return []byte(k.Kind + "\x00" + k.Namespace + "\x00" + k.Name)
}

func keyOf(k *logv1.Key) Key {
	return Key{Kind: k.GetKind(), Namespace: k.GetNamespace(), Name: k.GetName()}
}

func (k Key) proto() *logv1.Key {
	return &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

// Changes tells what may differ between two states: never less than what does.
type Changes struct {
	Keys        []Key    // documents put or deleted, sorted
	InstanceIDs []string // instances enrolled, withdrawn, restored or removed, sorted
	Proposals   []string // namespaces whose proposal was made, replaced or ended, sorted
	Trust       bool     // trust domain, cluster id, epoch, roots, sealed root key
	Tokens      bool
	Admins      bool
	Servers     bool
	Journals    bool // anchors of issuance journals
}

// Empty tells whether nothing differs.
func (c Changes) Empty() bool {
	return len(c.Keys) == 0 && len(c.InstanceIDs) == 0 && len(c.Proposals) == 0 && !c.Trust && !c.Tokens && !c.Admins && !c.Servers && !c.Journals
}

// Union returns what c and all of the others tell together.
func (c Changes) Union(others ...Changes) Changes {
	u := Changes{Keys: slices.Clone(c.Keys), InstanceIDs: slices.Clone(c.InstanceIDs), Proposals: slices.Clone(c.Proposals)}
	for _, o := range append([]Changes{c}, others...) {
		u.Trust = u.Trust || o.Trust
		u.Tokens = u.Tokens || o.Tokens
		u.Admins = u.Admins || o.Admins
		u.Servers = u.Servers || o.Servers
		u.Journals = u.Journals || o.Journals
	}
	for _, o := range others {
		u.Keys = append(u.Keys, o.Keys...)
		u.InstanceIDs = append(u.InstanceIDs, o.InstanceIDs...)
		u.Proposals = append(u.Proposals, o.Proposals...)
	}
	slices.SortFunc(u.Keys, Key.Compare)
	u.Keys = slices.Compact(u.Keys)
	slices.Sort(u.InstanceIDs)
	u.InstanceIDs = slices.Compact(u.InstanceIDs)
	slices.Sort(u.Proposals)
	u.Proposals = slices.Compact(u.Proposals)
	return u
}

// Diff returns what differs between two states, exactly. Diff(New(), s) names
// everything in s. It walks those collections of both that differ; documents only
// if s does not follow old.
func Diff(old, s *State) Changes {
	c := Changes{
		Trust: old.trustDomain != s.trustDomain || old.clusterID != s.clusterID ||
			old.epoch != s.epoch || old.epochID != s.epochID ||
			!bytes.Equal(old.sealedRootKey, s.sealedRootKey) || !slices.EqualFunc(old.roots, s.roots, bytes.Equal),
		Tokens:   len(diff(old.tokens, s.tokens, sameMessage)) > 0,
		Admins:   len(diff(old.admins, s.admins, sameMessage)) > 0,
		Servers:  len(diff(old.servers, s.servers, sameMessage)) > 0,
		Journals: len(diff(old.anchors, s.anchors, sameMessage)) > 0,
	}
	c.Keys = diffDocuments(old, s)
	c.InstanceIDs = diff(old.instances, s.instances, sameMessage)
	c.Proposals = diff(old.proposals, s.proposals, sameMessage)
	return c
}

// Follows tells whether s has come from old by changes all of which s remembers, so
// that what differs in documents can be told without looking at all of them. A
// state that was read from a snapshot follows none from before.
func (s *State) Follows(old *State) bool {
	if s.documents == old.documents {
		return true
	}
	k := revisionKey(old.revision)
	then, had := old.history.Get(k)
	now, has := s.history.Get(k)
	return had && has && then == now
}

func diffDocuments(old, s *State) (keys []Key) {
	same := func(a, b *Document) bool {
		return a == b || a.Revision == b.Revision && bytes.Equal(a.Bytes, b.Bytes)
	}
	if old.documents == s.documents {
		return nil
	}
	if !s.Follows(old) {
		for _, k := range diff(old.documents, s.documents, same) {
			part := strings.SplitN(k, "\x00", 3)
			keys = append(keys, Key{Kind: part[0], Namespace: part[1], Name: part[2]})
		}
		return keys
	}
	later, _ := s.RevisionsAfter(old.revision)
	for r := range later {
		for _, c := range r.GetChanges() {
			keys = append(keys, keyOf(c.GetKey()))
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return slices.DeleteFunc(slices.Compact(keys), func(k Key) bool {
		a, was := old.documents.Get(k.radix())
		b, is := s.documents.Get(k.radix())
		return was == is && (!was || same(a, b))
	})
}

func sameMessage[M interface {
	comparable
	proto.Message
}](a, b M) bool {
	return a == b || proto.Equal(a, b)
}

// diff returns the keys whose values differ or that only one tree has, sorted.
func diff[T any](a, b *tree[T], same func(T, T) bool) []string {
	if a == b {
		return nil
	}
	var keys []string
	ia, ib := a.Root().Iterator(), b.Root().Iterator()
	ka, va, oka := ia.Next()
	kb, vb, okb := ib.Next()
	for oka || okb {
		order := bytes.Compare(ka, kb)
		switch {
		case !okb || oka && order < 0:
			keys = append(keys, string(ka))
			ka, va, oka = ia.Next()
		case !oka || order > 0:
			keys = append(keys, string(kb))
			kb, vb, okb = ib.Next()
		default:
			if !same(va.value, vb.value) {
				keys = append(keys, string(ka))
			}
			ka, va, oka = ia.Next()
			kb, vb, okb = ib.Next()
		}
	}
	return keys
}
