package controlplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/view"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

var gateStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// logOf is a state that entries are applied to.
type logOf struct {
	t     *rapid.T
	state *state.State
	index uint64
}

func (l *logOf) apply(when time.Time, e *logv1.Entry) {
	l.index++
	e.Format, e.When = state.Format, timestamppb.New(when)
	next, r := state.Apply(l.state, l.index, e)
	if r.Err != nil {
		l.t.Fatal(r.Err)
	}
	l.state = next
}

// become makes these documents all that there are.
func (l *logOf) become(when time.Time, docs []*spec.Document) {
	op := &logv1.Apply{ValidatedAt: l.state.Revision()}
	for d := range l.state.Documents("", "") {
		op.Deletes = append(op.Deletes, &logv1.Key{Kind: d.Key.Kind, Namespace: d.Key.Namespace, Name: d.Key.Name})
	}
	for _, d := range docs {
		k := d.Key()
		op.Puts = append(op.Puts, &logv1.Put{Key: &logv1.Key{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}, Document: spec.Canonical(d)})
	}
	l.apply(when, &logv1.Entry{Op: &logv1.Entry_Apply{Apply: op}})
}

// TestGatesFromHistory: a server that starts closes what one that was there all
// the time has closed, and so does one that saw only some of the states.
func TestGatesFromHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &logOf{t: t, state: state.New()}
		l.apply(gateStart, &logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{
			TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "a", Role: "admin"},
		}}})
		views := view.NewCache()
		now, old, was := gateStart, view.New("shop.example"), l.state
		there, dozing := gates{}, gates{}
		saw, seen := old, l.state // what dozing saw last
		look := func() {
			keys := keysOf(state.Diff(seen, l.state).Keys)
			dozing.fold(l.state, saw, old, seen.Revision(), keys, now)
			saw, seen = old, l.state
		}
		for range rapid.IntRange(1, 6).Draw(t, "revisions") {
			now = now.Add(time.Duration(rapid.IntRange(1, 3600).Draw(t, "seconds")) * time.Second)
			l.become(now, specgen.Sound(t))
			next, err := views.At(l.state)
			if err != nil {
				t.Fatal(err)
			}
			there.update(old.Index, next.Index, keysOf(state.Diff(was, l.state).Keys), now)
			there.expire(now)
			old, was = next, l.state
			if rapid.Bool().Draw(t, "looks") {
				look()
			}
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "later")) * time.Second)
		there.expire(now)
		started := gates{}
		started.fold(l.state, view.New("shop.example"), old, 0, nil, now)
		look()
		if diff := cmp.Diff(there, dozing); diff != "" {
			t.Errorf("gates (-there all the time +looked now and then):\n%s", diff)
		}
		if diff := cmp.Diff(there, started); diff != "" {
			t.Errorf("gates (-there all the time +started now):\n%s", diff)
		}
		for w, keys := range there {
			if len(keys) == 0 {
				t.Errorf("%s is kept without gates", w)
			}
		}
	})
}

// TestGatesOfOneGrant: what is taken away is closed for as long as a connection of
// before may live, or until it is given again.
func TestGatesOfOneGrant(t *testing.T) {
	docs, problems := spec.Parse([]spec.File{{Name: "f", Content: []byte(`
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: g}
spec: {from: {workloads: [web]}, to: {services: [orders]}}
`)}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	grant := []spec.Key{docs[2].Key()}
	given := policy.New("shop.example", docs)
	taken := given.With(nil, grant)
	key := policy.GateKey(spec.Ref{Namespace: "shop", Name: "orders"}, "http", "spiffe://shop.example/ns/shop/sa/web")
	hold := given.Mesh().MaxConnectionAge + gateMargin

	g := gates{}
	g.update(given, taken, grant, gateStart)
	if diff := cmp.Diff([]string{key}, g.keys("shop/orders")); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
	copied := g.clone()
	copied.update(taken, given, grant, gateStart)
	if len(copied.keys("shop/orders")) != 0 {
		t.Error("given again and still closed")
	}
	if len(g.keys("shop/orders")) != 1 {
		t.Error("a clone shares its gates")
	}
	if changed := g.expire(gateStart.Add(hold - 1)); len(changed) != 0 {
		t.Errorf("opened early: %v", changed)
	}
	if diff := cmp.Diff([]string{"shop/orders"}, g.expire(gateStart.Add(hold))); diff != "" {
		t.Errorf("opened in time (-want +got):\n%s", diff)
	}
	if len(g) != 0 {
		t.Errorf("left: %v", g)
	}
}
