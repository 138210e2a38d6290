package controlplane

import (
	"fmt"
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
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
	"github.com/ztmesh/ztmesh/xds"
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

// newLog is the log of a cluster that was just made.
func newLog(t *rapid.T) *logOf {
	l := &logOf{t: t, state: state.New()}
	l.apply(gateStart, &logv1.Entry{Op: &logv1.Entry_Init{Init: &logv1.Init{
		TrustDomain: "shop.example", ClusterId: "c", Admin: &logv1.Admin{Name: "a", Role: "admin"},
	}}})
	return l
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

// looker follows a log as a server does that looks at it now and then.
type looker struct {
	gates gates
	saw   *view.View
	seen  *state.State
	at    time.Time
}

func newLooker(st *state.State) *looker {
	return &looker{gates: gates{}, saw: view.New("shop.example"), seen: st}
}

func (k *looker) look(st *state.State, v *view.View, now time.Time) {
	keys := keysOf(state.Diff(k.seen, st).Keys)
	k.at = k.gates.fold(st, k.saw, v, k.seen.Revision(), keys, k.at, now)
	k.saw, k.seen = v, st
}

// TestGatesFromHistory: a server that starts closes what one that was there all
// the time has closed, and so does one that saw only some of the states.
func TestGatesFromHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLog(t)
		views := view.NewCache()
		now := gateStart
		there, dozing, started := newLooker(l.state), newLooker(l.state), newLooker(l.state)
		var v *view.View
		for range rapid.IntRange(1, 6).Draw(t, "revisions") {
			now = now.Add(time.Duration(rapid.IntRange(1, 3600).Draw(t, "seconds")) * time.Second)
			l.become(now, specgen.Sound(t))
			var err error
			if v, err = views.At(l.state); err != nil {
				t.Fatal(err)
			}
			there.look(l.state, v, now)
			if rapid.Bool().Draw(t, "looks") {
				dozing.look(l.state, v, now)
			}
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "later")) * time.Second)
		for _, k := range []*looker{there, dozing, started} {
			k.look(l.state, v, now)
		}
		if diff := cmp.Diff(there.gates, dozing.gates); diff != "" {
			t.Errorf("gates (-there all the time +looked now and then):\n%s", diff)
		}
		if diff := cmp.Diff(there.gates, started.gates); diff != "" {
			t.Errorf("gates (-there all the time +started now):\n%s", diff)
		}
		for w, keys := range there.gates {
			if len(keys) == 0 {
				t.Errorf("%s is kept without gates", w)
			}
		}
	})
}

// TestGatesByTheirMeaning: whatever revisions and time do, and whenever a server
// looks, a gate is closed if and only if its pair was admitted, is not any more,
// and a connection of before may be left: found by asking of every pair at every
// moment at which anything may change.
func TestGatesByTheirMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLog(t)
		views := view.NewCache()
		k := newLooker(l.state)
		want := meaning{pairs: map[policy.Pair]*was{}}
		now := gateStart
		var v *view.View
		for range rapid.IntRange(1, 8).Draw(t, "revisions") {
			next := now.Add(time.Duration(rapid.IntRange(0, 45*60).Draw(t, "seconds")) * time.Second)
			want.pass(v, now, next)
			now = next
			l.become(now, timedDocuments(t, now))
			var err error
			if v, err = views.At(l.state); err != nil {
				t.Fatal(err)
			}
			want.judge(v.Index, now)
			for range rapid.IntRange(0, 2).Draw(t, "looks") {
				k.look(l.state, v, now)
				next := now.Add(time.Duration(rapid.IntRange(0, 10*60).Draw(t, "more seconds")) * time.Second)
				want.pass(v, now, next)
				now = next
			}
		}
		started := newLooker(state.New())
		for name, k := range map[string]*looker{"there": k, "started": started} {
			k.look(l.state, v, now)
			if diff := cmp.Diff(want.closed(now), k.gates); diff != "" {
				t.Errorf("%s at %v (-meaning +gates):\n%s", name, now, diff)
			}
		}
	})
}

// meaning is what became of every pair, moment by moment.
type meaning struct{ pairs map[policy.Pair]*was }

type was struct {
	admitted bool
	closed   time.Time // until; zero: not closed
}

// pass judges every full minute after one moment up to another: documents of
// timedDocuments begin and end at no others.
func (m meaning) pass(v *view.View, after, to time.Time) {
	for at := after.Truncate(time.Minute).Add(time.Minute); v != nil && !at.After(to); at = at.Add(time.Minute) {
		m.judge(v.Index, at)
	}
}

func (m meaning) judge(ix *policy.Index, at time.Time) {
	var blocks []spec.Key
	for _, name := range blockNames {
		blocks = append(blocks, spec.Key{Kind: spec.KindBlock, Namespace: "shop", Name: name})
	}
	unblocked := ix.With(nil, blocks)
	for _, port := range []string{"http", "raw"} {
		for _, caller := range append([]string{"orders"}, callerNames...) {
			p := policy.Pair{Service: spec.Ref{Namespace: "shop", Name: "orders"}, Port: port, SourceID: policy.ID("shop.example", spec.Ref{Namespace: "shop", Name: caller})}
			had := m.pairs[p]
			if had == nil {
				had = &was{}
				m.pairs[p] = had
			}
			admitted := ix.Admits(p.Service, p.Port, p.SourceID, at)
			switch {
			case admitted:
				had.closed = time.Time{}
			case had.admitted && port == "http" && unblocked.Admits(p.Service, p.Port, p.SourceID, at):
				had.closed = at.Add(time.Minute)
			case had.admitted:
				had.closed = at.Add(35 * time.Minute)
			}
			had.admitted = admitted
		}
	}
}

func (m meaning) closed(now time.Time) gates {
	out := gates{}
	for p, w := range m.pairs {
		if now.Before(w.closed) {
			service := p.Service.String()
			if out[service] == nil {
				out[service] = map[string]time.Time{}
			}
			out[service][xds.GateKey(p.Service.String(), p.Port, p.SourceID)] = w.closed
		}
	}
	return out
}

var (
	callerNames = []string{"cart", "web"}
	blockNames  = []string{"b1", "b2"}
)

// timedDocuments is a callee, two callers, and grants and Blocks that begin and end
// at full minutes around a moment.
func timedDocuments(t *rapid.T, now time.Time) []*spec.Document {
	doc := func(kind, name string, rest any) *spec.Document {
		d := &ztv1.Document{ApiVersion: spec.APIVersion, Kind: kind, Metadata: &ztv1.Metadata{Namespace: "shop", Name: name}}
		switch rest := rest.(type) {
		case *ztv1.Workload:
			d.Spec = &ztv1.Document_Workload{Workload: rest}
		case *ztv1.Grant:
			d.Spec = &ztv1.Document_Grant{Grant: rest}
		case *ztv1.Block:
			d.Spec = &ztv1.Document_Block{Block: rest}
		}
		return &spec.Document{Document: d}
	}
	minute := func(label string) time.Time {
		return now.Truncate(time.Minute).Add(time.Duration(rapid.IntRange(-5, 30).Draw(t, label)) * time.Minute)
	}
	docs := []*spec.Document{doc(spec.KindWorkload, "orders", &ztv1.Workload{Serves: []*ztv1.Port{
		{Name: "http", Port: 8080, Protocol: "http"}, {Name: "raw", Port: 9000, Protocol: "tcp"},
	}})}
	for _, name := range callerNames {
		if rapid.IntRange(0, 9).Draw(t, "gone") > 0 {
			docs = append(docs, doc(spec.KindWorkload, name, &ztv1.Workload{}))
		}
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "grants") {
		g := &ztv1.Grant{
			From: &ztv1.Caller{}, To: &ztv1.Target{Services: []string{"orders"}, Ports: []string{rapid.SampledFrom([]string{"http", "raw"}).Draw(t, "port")}},
		}
		if rapid.Bool().Draw(t, "any") {
			g.From.AnyWorkload = true
		} else {
			g.From.Workloads = []string{rapid.SampledFrom(callerNames).Draw(t, "caller")}
		}
		if rapid.Bool().Draw(t, "ends") {
			g.Until = timestamppb.New(minute("until"))
		}
		if rapid.Bool().Draw(t, "recurs") {
			start := minute("start")
			g.When = &ztv1.When{Windows: []*ztv1.Window{{
				Zone: "UTC", Start: start.Format("15:04"), End: start.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "length")) * time.Minute).Format("15:04"),
			}}}
		}
		if rapid.IntRange(0, 4).Draw(t, "mode") == 0 {
			g.Mode = "shadow"
		}
		docs = append(docs, doc(spec.KindGrant, fmt.Sprintf("g%d", i), g))
	}
	for _, name := range blockNames {
		if rapid.Bool().Draw(t, "blocked") {
			b := &ztv1.Block{Reason: "test"}
			if rapid.Bool().Draw(t, "caller") {
				b.Workloads = []string{rapid.SampledFrom(callerNames).Draw(t, "blocked caller")}
			} else {
				b.Services = []string{"orders"}
			}
			if rapid.Bool().Draw(t, "ends") {
				b.Until = timestamppb.New(minute("until"))
			}
			docs = append(docs, doc(spec.KindBlock, name, b))
		}
	}
	return docs
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
	key := xds.GateKey("shop/orders", "http", "spiffe://shop.example/ns/shop/sa/web")
	hold := given.Mesh().MaxConnectionAge + gateMargin

	g := gates{}
	g.update(given, taken, grant, gateStart, gateStart)
	if diff := cmp.Diff([]string{key}, g.keys("shop/orders")); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
	copied := g.clone()
	copied.update(taken, given, grant, gateStart, gateStart)
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
