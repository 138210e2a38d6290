package state_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

func TestInit(t *testing.T) {
	c := &cluster{t: t, s: state.New(), now: epoch}
	if r := c.apply(c.put(doc("Workload", "shop", "web", "w"))); !errors.Is(r.Err, state.ErrNotInit) {
		t.Errorf("before Init: %v", r.Err)
	}
	for name, spoil := range map[string]func(*logv1.Init){
		"no trust domain": func(i *logv1.Init) { i.TrustDomain = "" },
		"no cluster id":   func(i *logv1.Init) { i.ClusterId = "" },
		"no admin":        func(i *logv1.Init) { i.Admin = nil },
		"only a viewer":   func(i *logv1.Init) { i.Admin.Role = "viewer" },
	} {
		op := initOp()
		spoil(op)
		if r := c.apply(&logv1.Entry{Op: &logv1.Entry_Init{Init: op}}); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	r := c.must(&logv1.Entry{Op: &logv1.Entry_Init{Init: initOp()}})
	if want := (state.Changes{Trust: true, Admins: true}); !cmp.Equal(r.Changed, want) {
		t.Errorf("changed %+v", r.Changed)
	}
	if c.s.TrustDomain() != "shop.example" || c.s.ClusterID() != "c1" || string(c.s.Roots()[0]) != "root" || string(c.s.SealedRootKey()) != "sealed" {
		t.Errorf("state is %q %q", c.s.TrustDomain(), c.s.ClusterID())
	}
	if r := c.apply(&logv1.Entry{Op: &logv1.Entry_Init{Init: initOp()}}); !errors.Is(r.Err, state.ErrExists) {
		t.Errorf("second Init: %v", r.Err)
	}
}

func TestUnknownEntryChangesNothing(t *testing.T) {
	c := newCluster(t)
	before := c.s
	ok := c.put(doc("Grant", "shop", "g", "1"))
	for name, e := range map[string]struct {
		index uint64
		e     *logv1.Entry
	}{
		"nil":           {10, nil},
		"no operation":  {10, &logv1.Entry{Format: 1}},
		"no format":     {10, &logv1.Entry{Op: ok.Op}},
		"newer format":  {10, &logv1.Entry{Format: state.Format + 1, Op: ok.Op}},
		"index again":   {before.Index(), &logv1.Entry{Format: 1, Op: ok.Op}},
		"earlier index": {0, &logv1.Entry{Format: 1, Op: ok.Op}},
	} {
		s, r := state.Apply(before, e.index, e.e)
		if !errors.Is(r.Err, state.ErrUnknownEntry) || s != before {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
}

func TestApplyDocuments(t *testing.T) {
	c := newCluster(t)
	r := c.must(c.put(doc("Workload", "shop", "web", "w1"), doc("Grant", "shop", "g", "g1"), doc("Grant", "bank", "g", "b1")))
	if r.Revision != 2 || c.s.Revision() != 2 || c.s.NamespaceRevision("shop") != 2 || c.s.NamespaceRevision("bank") != 2 {
		t.Fatalf("revision %d", r.Revision)
	}
	wantKeys := []state.Key{{Kind: "Grant", Namespace: "bank", Name: "g"}, {Kind: "Grant", Namespace: "shop", Name: "g"}, {Kind: "Workload", Namespace: "shop", Name: "web"}}
	if !slices.Equal(r.Changed.Keys, wantKeys) {
		t.Errorf("changed %v", r.Changed.Keys)
	}

	// What is put as it stands is no change, also beside a change.
	r = c.must(c.put(doc("Workload", "shop", "web", "w1"), doc("Grant", "bank", "g", "b2")))
	if r.Revision != 3 || c.s.NamespaceRevision("shop") != 2 || c.s.NamespaceRevision("bank") != 3 || len(r.Changed.Keys) != 1 {
		t.Errorf("revision %d, shop at %d", r.Revision, c.s.NamespaceRevision("shop"))
	}
	d, ok := c.s.Document(state.Key{Kind: "Workload", Namespace: "shop", Name: "web"})
	if !ok || d.Revision != 2 || string(d.Bytes) != "w1" {
		t.Errorf("document %+v", d)
	}

	// Nothing changed: no revision.
	r = c.must(c.put(doc("Grant", "bank", "g", "b2")))
	if r.Revision != 3 || !r.Changed.Empty() || c.s.Index() != 4 {
		t.Errorf("no-op: %+v", r)
	}
	r = c.must(applyEntry(&logv1.Apply{ValidatedAt: 3, Deletes: []*logv1.Key{{Kind: "Grant", Namespace: "shop", Name: "nothing"}}}))
	if r.Revision != 3 || !r.Changed.Empty() {
		t.Errorf("delete of nothing: %+v", r)
	}

	// A put wins over a delete of the same key.
	c.must(applyEntry(&logv1.Apply{ValidatedAt: 3, Deletes: []*logv1.Key{{Kind: "Grant", Namespace: "bank", Name: "g"}}, Puts: []*logv1.Put{doc("Grant", "bank", "g", "b3")}}))
	if d, _ := c.s.Document(state.Key{Kind: "Grant", Namespace: "bank", Name: "g"}); string(d.Bytes) != "b3" {
		t.Errorf("document %q", d.Bytes)
	}
	// An emptied namespace keeps its revision.
	r = c.must(applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Deletes: []*logv1.Key{{Kind: "Grant", Namespace: "bank", Name: "g"}}}))
	if _, ok := c.s.Document(state.Key{Kind: "Grant", Namespace: "bank", Name: "g"}); ok || c.s.NamespaceRevision("bank") != r.Revision {
		t.Errorf("bank at %d, revision %d", c.s.NamespaceRevision("bank"), r.Revision)
	}

	for name, p := range map[string]*logv1.Put{
		"no key": {Document: []byte("x")}, "no bytes": doc("Grant", "a", "b", ""), "NUL": doc("Grant", "a\x00b", "c", "x"), "no name": doc("Grant", "a", "", "x"),
	} {
		if r := c.apply(c.put(p)); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
}

func TestBases(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Grant", "shop", "g", "1"))) // 2
	c.must(c.put(doc("Grant", "bank", "g", "1"))) // 3
	change := []*logv1.Put{doc("Grant", "shop", "g", "2")}

	var stale *state.StaleBaseError
	r := c.apply(applyEntry(&logv1.Apply{Bases: map[string]uint64{"shop": 1, "bank": 3, "new": 0}, ValidatedAt: 1, Puts: change}))
	if !errors.Is(r.Err, state.ErrStaleBase) || !errors.As(r.Err, &stale) {
		t.Fatalf("stale base: %v", r.Err)
	}
	if want := map[string]uint64{"shop": 2, "bank": 3, "new": 0}; !cmp.Equal(stale.Current, want) {
		t.Errorf("current %v", stale.Current)
	}
	if want := "base revision is stale: bank is at 3, new is at 0, shop is at 2"; r.Err.Error() != want {
		t.Errorf("%q", r.Err)
	}
	for _, at := range []uint64{2, 4, 0} {
		if r := c.apply(applyEntry(&logv1.Apply{Bases: map[string]uint64{"shop": 2}, ValidatedAt: at, Puts: change})); !errors.Is(r.Err, state.ErrRevalidate) {
			t.Errorf("validated at %d: %v", at, r.Err)
		}
	}
	if r := c.must(applyEntry(&logv1.Apply{Bases: map[string]uint64{"shop": 2, "new": 0}, ValidatedAt: 3, Puts: change})); r.Revision != c.index {
		t.Errorf("revision %d", r.Revision)
	}
}

func TestIdempotencyKeys(t *testing.T) {
	c := newCluster(t)
	keyed := func(key, op string, e *logv1.Entry) *logv1.Entry {
		e.IdempotencyKey, e.OperationHash = key, hashOf(op)
		return e
	}
	// A refused entry leaves its key free.
	if r := c.apply(keyed("k", "a", applyEntry(&logv1.Apply{ValidatedAt: 99}))); !errors.Is(r.Err, state.ErrRevalidate) {
		t.Fatal(r.Err)
	}
	first := c.must(keyed("k", "a", c.put(doc("Grant", "shop", "g", "1"))))
	c.must(c.put(doc("Grant", "shop", "g", "2")))

	// The retry may carry other puts: the hash tells that it is the same.
	r := c.must(keyed("k", "a", c.put()))
	if !r.Replayed || r.Revision != first.Revision || !r.Changed.Empty() {
		t.Errorf("replay: %+v, first %+v", r, first)
	}
	if d, _ := c.s.Document(state.Key{Kind: "Grant", Namespace: "shop", Name: "g"}); string(d.Bytes) != "2" {
		t.Errorf("the replay had an effect: %q", d.Bytes)
	}
	if r := c.apply(keyed("k", "b", c.put(doc("Grant", "shop", "h", "1")))); !errors.Is(r.Err, state.ErrKeyReused) {
		t.Errorf("other operation: %v", r.Err)
	}
	if o, ok := c.s.Outcome("k"); !ok || o.GetRevision() != first.Revision {
		t.Errorf("outcome %v", o)
	}
	// It holds for every operation: without the key the second would be refused.
	for range 2 {
		c.must(keyed("t", "t", c.token("t", "shop/web")))
	}
}

func TestOutcomesAreForgotten(t *testing.T) {
	c := newCluster(t)
	keyed := func(key string) *logv1.Entry {
		return &logv1.Entry{IdempotencyKey: key, Op: &logv1.Entry_Endpoints{Endpoints: &logv1.Endpoints{}}}
	}
	c.must(keyed("old"))
	at := c.s.When()
	c.now = at.Add(state.OutcomeAge - 2*time.Second)
	if r := c.must(keyed("old")); !r.Replayed {
		t.Error("forgotten before a day")
	}
	if r := c.must(keyed("old")); r.Replayed {
		t.Error("remembered after a day")
	}
	if r := c.must(keyed("old")); !r.Replayed {
		t.Error("not remembered again")
	}

	first := ""
	for i := range state.MaxOutcomes {
		key := fmt.Sprint("k", i)
		if i == 0 {
			first = key
		}
		e := keyed(key)
		e.When = timestamppb.New(c.s.When()) // State time stands still: it wins over an earlier stamp.
		c.must(e)
	}
	if _, ok := c.s.Outcome("old"); ok {
		t.Error("more than MaxOutcomes are kept")
	}
	if _, ok := c.s.Outcome(first); !ok {
		t.Error("fewer than MaxOutcomes are kept")
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	c := newCluster(t)
	at := c.s.When()
	for name, ts := range map[string]*timestamppb.Timestamp{
		"earlier": timestamppb.New(at.Add(-time.Hour)), "none": {}, "out of range": {Seconds: 1 << 62},
	} {
		e := c.put()
		e.When = ts
		if c.must(e); !c.s.When().Equal(at) {
			t.Errorf("%s: %v", name, c.s.When())
		}
	}
}

func TestHistory(t *testing.T) {
	c := newCluster(t)
	e := c.put(doc("Grant", "shop", "g", "1"))
	e.GetApply().Message = "first"
	first := c.must(e).Revision
	for i := range state.MaxRevisions {
		c.must(c.put(doc("Grant", "shop", "g", fmt.Sprint("v", i))))
		c.must(c.put(doc("Grant", "shop", "g", fmt.Sprint("v", i)))) // makes no revision
	}
	all := slices.Collect(c.s.Revisions(0))
	if len(all) != state.MaxRevisions || all[0].GetRevision() != c.s.Revision() {
		t.Fatalf("%d revisions, newest %d", len(all), all[0].GetRevision())
	}
	oldest := all[len(all)-1]
	if got := oldest.GetChanges()[0]; string(got.GetBefore()) != "1" || string(got.GetAfter()) != "v0" {
		t.Errorf("oldest change %v", got)
	}
	if _, ok := c.s.RevisionsAfter(first); ok {
		t.Error("complete although the first is gone")
	}
	after, ok := c.s.RevisionsAfter(oldest.GetRevision())
	if n := len(slices.Collect(after)); !ok || n != state.MaxRevisions-1 {
		t.Errorf("%d after the oldest, complete %v", n, ok)
	}
	if _, ok := c.s.RevisionsAfter(c.s.Revision()); !ok {
		t.Error("nothing after the newest, yet not complete")
	}
	next := slices.Collect(c.s.Revisions(all[1].GetRevision()))
	if len(next) != len(all)-2 || next[0] != all[2] {
		t.Error("the page before a revision does not begin below it")
	}
	// Bytes are shared, not copied.
	d, _ := c.s.Document(state.Key{Kind: "Grant", Namespace: "shop", Name: "g"})
	if &d.Bytes[0] != &all[0].GetChanges()[0].GetAfter()[0] || &all[0].GetChanges()[0].GetBefore()[0] != &all[1].GetChanges()[0].GetAfter()[0] {
		t.Error("the history copies documents")
	}
}

func TestHistoryIsBoundedInBytes(t *testing.T) {
	c := newCluster(t)
	big := make([]byte, state.MaxRevisionBytes/4)
	for i := range byte(6) {
		big := slices.Clone(big)
		big[0] = i + 1
		c.must(c.put(&logv1.Put{Key: &logv1.Key{Kind: "Grant", Namespace: "shop", Name: "g"}, Document: big}))
	}
	if n := len(slices.Collect(c.s.Revisions(0))); n != 2 {
		t.Errorf("%d revisions of half the bound each are kept", n)
	}
}
