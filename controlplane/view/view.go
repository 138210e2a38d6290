// Package view is what a state means: its documents decoded, and the policy
// index of them. The state holds bytes, the policy wants documents; this package
// is where the two meet, so that the door (api) and the reconcile loop read the
// same thing.
//
// A View never changes. Making the next one costs what has changed.
package view

import (
	"fmt"
	"iter"
	"reflect"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/parallel"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/xds"
)

// View is the documents of one revision and their index.
type View struct {
	Index *policy.Index
	docs  *iradix.Tree[*spec.Document]
	// mentions is of docs; nil unless they have passed spec.Check all together.
	mentions *mentions
}

// New is the view of no documents.
func New(trustDomain string) *View {
	return &View{Index: policy.New(trustDomain, nil), docs: iradix.New[*spec.Document]()}
}

// With is the view after a change.
func (v *View) With(puts []*spec.Document, deletes []spec.Key) *View {
	txn := v.docs.Txn()
	for _, d := range puts {
		txn.Insert(radixKey(d.Key()), d)
	}
	for _, k := range deletes {
		txn.Delete(radixKey(k))
	}
	return &View{Index: v.Index.With(puts, deletes), docs: txn.Commit()}
}

// Document returns one document.
func (v *View) Document(k spec.Key) (*spec.Document, bool) { return v.docs.Get(radixKey(k)) }

// Documents returns all documents, sorted by key. The slice is the caller's.
func (v *View) Documents() []*spec.Document {
	out := make([]*spec.Document, 0, v.docs.Len())
	for d := range v.all() {
		out = append(out, d)
	}
	return out
}

// OfKind is the documents of a kind, sorted by key.
func (v *View) OfKind(kind string) iter.Seq[*spec.Document] {
	return under(v.docs, []byte(kind+"\x00"))
}

// OfNamespace is the documents of a namespace, those of each kind sorted by name.
func (v *View) OfNamespace(namespace string) iter.Seq[*spec.Document] {
	return func(yield func(*spec.Document) bool) {
		for _, kind := range spec.Kinds() {
			for d := range v.of(kind, namespace) {
				if !yield(d) {
					return
				}
			}
		}
	}
}

// of is the documents of a kind in a namespace.
func (v *View) of(kind, namespace string) iter.Seq[*spec.Document] {
	return under(v.docs, []byte(kind+"\x00"+namespace+"\x00"))
}

func (v *View) all() iter.Seq[*spec.Document] { return under(v.docs, nil) }

// mentioned is the documents that mention m; of a sound view only.
func (v *View) mentioned(m spec.Mention) iter.Seq[*spec.Document] {
	return under(v.mentions, mentionPrefix(m))
}

// under is what a tree has under keys that begin with prefix.
func under(t *iradix.Tree[*spec.Document], prefix []byte) iter.Seq[*spec.Document] {
	return func(yield func(*spec.Document) bool) {
		it := t.Root().Iterator()
		it.SeekPrefix(prefix)
		for _, d, ok := it.Next(); ok; _, d, ok = it.Next() {
			if !yield(d) {
				return
			}
		}
	}
}

// Undo is the view before a revision, of the view right after it.
func (v *View) Undo(r *logv1.Revision) (*View, error) {
	var puts []*spec.Document
	var deletes []spec.Key
	for _, c := range r.GetChanges() {
		if len(c.GetBefore()) == 0 {
			deletes = append(deletes, KeyOf(c.GetKey()))
			continue
		}
		d, err := spec.Decode(c.GetBefore())
		if err != nil {
			return nil, fmt.Errorf("revision %d: %s: %w", r.GetRevision(), KeyOf(c.GetKey()), err)
		}
		puts = append(puts, d)
	}
	return v.With(puts, deletes), nil
}

// KeyOf is a key of the log as a key of the spec.
func KeyOf(k *logv1.Key) spec.Key {
	return spec.Key{Kind: k.GetKind(), Namespace: k.GetNamespace(), Name: k.GetName()}
}

func radixKey(k spec.Key) []byte {
	return []byte(k.Kind + "\x00" + k.Namespace + "\x00" + k.Name)
}

// CompileError is returned when the documents of a workload have no valid
// configuration: a mistake of this program, or a spec that another version
// accepted.
type CompileError struct {
	Workload spec.Ref
	Err      error
}

func (e *CompileError) Error() string { return fmt.Sprintf("compile %s: %v", e.Workload, e.Err) }

// Unwrap returns the cause.
func (e *CompileError) Unwrap() error { return e.Err }

// Problem is the error as a refusal of an apply.
func (e *CompileError) Problem() spec.Problem {
	return spec.Problem{
		Code: "ZT4003", Path: "Workload " + e.Workload.String(), Message: e.Error(),
		Hint: "this spec has no valid proxy configuration; please report it",
	}
}

// Affected are those of the touched workloads that are asked for and whose
// configuration differs between two views, sorted as touched is. All of touched are
// compiled in next, and a workload that does not compile there is the error.
func Affected(old, next *View, touched []spec.Ref, ask func(spec.Ref) bool) ([]spec.Ref, error) {
	const worthAProcessor = 16
	differ, errs := make([]bool, len(touched)), make([]error, len(touched))
	parallel.Chunks(len(touched), worthAProcessor, func(from, to int) {
		for i := from; i < to; i++ {
			var after *xds.Config
			if after, errs[i] = next.config(touched[i]); errs[i] == nil && ask(touched[i]) {
				before, err := old.config(touched[i])
				differ[i] = err != nil || !reflect.DeepEqual(before, after)
			}
		}
	})
	var out []spec.Ref
	for i, ref := range touched {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if differ[i] {
			out = append(out, ref)
		}
	}
	return out, nil
}

// config is the configuration of a workload; nil for one that does not exist.
func (v *View) config(ref spec.Ref) (*xds.Config, error) {
	if _, ok := v.Index.Workload(ref); !ok {
		return nil, nil
	}
	c, err := compile.Workload(v.Index, nil, ref)
	if err != nil {
		return nil, &CompileError{Workload: ref, Err: err}
	}
	return c, nil
}
