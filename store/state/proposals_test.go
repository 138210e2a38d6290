package state_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// deletes is an Apply of today that deletes workloads and retires their names.
func (c *cluster) deletes(names ...*logv1.Retired) *logv1.Entry {
	op := &logv1.Apply{ValidatedAt: c.s.Revision(), Retired: names}
	for _, n := range names {
		ns, name, _ := strings.Cut(n.GetWorkload(), "/")
		op.Deletes = append(op.Deletes, key("Workload", ns, name))
	}
	return applyEntry(op)
}

func TestRetired(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w"), doc("Workload", "shop", "db", "d"), doc("Workload", "shop", "stays", "s")))
	for name, bad := range map[string]*logv1.Retired{
		"no time": {Workload: "shop/web"}, "time out of range": {Workload: "shop/web", Until: &timestamppb.Timestamp{Seconds: 1 << 62}},
	} {
		if r := c.apply(c.deletes(bad)); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	until := c.s.When().Add(time.Hour)
	e := c.deletes(c.retired("shop/web", time.Hour), c.retired("shop/db", 2*time.Hour), c.retired("shop/ghost", time.Hour))
	e.GetApply().Puts = []*logv1.Put{doc("Workload", "shop", "stays", "s2")}
	e.GetApply().Retired = append(e.GetApply().Retired, c.retired("shop/stays", time.Hour))
	c.must(e)
	if got, ok := c.s.Retired("shop/web"); !ok || !got.Equal(until) {
		t.Errorf("retired until %v, want %v", got, until)
	}
	for _, w := range []string{"shop/ghost", "shop/stays", "", "shop"} {
		if _, ok := c.s.Retired(w); ok {
			t.Errorf("%q is retired and was not deleted", w)
		}
	}
	// CVE-2022-41316: it outlives a restart.
	s, err := state.Read(bytes.NewReader(snapshotOf(t, c.s)))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Retired("shop/web"); !ok || !got.Equal(until) {
		t.Errorf("restored: retired until %v, want %v", got, until)
	}
	// Its time is half-open, and the state's.
	c.now = until.Add(-time.Second)
	e = c.put()
	e.When = timestamppb.New(until.Add(-time.Nanosecond))
	c.must(e)
	if _, ok := c.s.Retired("shop/web"); !ok {
		t.Error("not retired right before its time")
	}
	c.now = until.Add(-time.Second)
	c.must(c.put())
	if _, ok := c.s.Retired("shop/web"); ok {
		t.Error("retired at its time")
	}
	// The next that retires drops those whose time is over.
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	c.must(c.deletes(c.retired("shop/web", time.Hour)))
	c.now = c.now.Add(3 * time.Hour)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	c.must(c.deletes(c.retired("shop/web", -time.Hour)))
	if b := snapshotOf(t, c.s); formatOf(t, b) != 1 {
		t.Errorf("ended names are kept: format %d", formatOf(t, b))
	}
}

func TestProposals(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Grant", "shop", "g", "1")))
	at := c.s.Revision()
	e := propose("shop", doc("Workload", "shop", "z", "z"), doc("Grant", "shop", "g", "2"))
	e.GetPropose().Namespaces = []string{"shop", "bank"}
	e.GetPropose().Message = "try"
	given := proto.CloneOf(e.GetPropose())
	r := c.must(e)
	if r.Revision != at || c.s.NamespaceRevision("shop") != at || !slices.Equal(r.Changed.Proposals, []string{"bank", "shop"}) || len(r.Changed.Keys) != 0 {
		t.Errorf("proposed: %+v", r)
	}
	if !proto.Equal(e.GetPropose(), given) {
		t.Error("the entry was changed")
	}
	if d, _ := c.s.Document(state.Key{Kind: "Grant", Namespace: "shop", Name: "g"}); string(d.Bytes) != "1" {
		t.Errorf("a proposal changed a document to %q", d.Bytes)
	}
	p, ok := c.s.Proposal("shop")
	if !ok || p.GetWho() != "admin/ed" || p.GetMessage() != "try" || !p.GetWhen().AsTime().Equal(c.s.When()) ||
		len(p.GetPuts()) != 2 || p.GetPuts()[0].GetKey().GetKind() != "Grant" {
		t.Errorf("proposal %v", p)
	}
	// The second one replaces the first, and leaves other namespaces.
	c.must(propose("shop", doc("Grant", "shop", "h", "1")))
	if p, _ := c.s.Proposal("shop"); len(p.GetPuts()) != 1 || len(slices.Collect(c.s.Proposals())) != 2 {
		t.Errorf("replaced: %v", p)
	}
	for name, bad := range map[string]*logv1.Propose{
		"nothing":            {},
		"no namespace":       {Namespaces: []string{""}},
		"another namespace":  {Namespaces: []string{"shop"}, Puts: []*logv1.Put{doc("Grant", "bank", "g", "1")}},
		"twice":              {Namespaces: []string{"shop"}, Puts: []*logv1.Put{doc("Grant", "shop", "g", "1"), doc("Grant", "shop", "g", "2")}},
		"no bytes":           {Namespaces: []string{"shop"}, Puts: []*logv1.Put{doc("Grant", "shop", "g", "")}},
		"no key":             {Namespaces: []string{"shop"}, Puts: []*logv1.Put{{Document: []byte("x")}}},
		"NUL":                {Namespaces: []string{"shop"}, Puts: []*logv1.Put{doc("Grant", "shop", "a\x00b", "x")}},
		"an end with a put":  {Namespaces: []string{"shop"}, End: true, Puts: []*logv1.Put{doc("Grant", "shop", "g", "1")}},
		"an end of nothing":  {End: true},
		"two, one is absent": {Namespaces: []string{"shop", ""}, End: true},
	} {
		if r := c.apply(&logv1.Entry{Op: &logv1.Entry_Propose{Propose: bad}}); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	// It ends by an end, and by an apply that says so, with or without a change.
	end := func(ns string) *logv1.Entry {
		return &logv1.Entry{Op: &logv1.Entry_Propose{Propose: &logv1.Propose{Namespaces: []string{ns}, End: true}}}
	}
	if r := c.must(end("bank")); !slices.Equal(r.Changed.Proposals, []string{"bank"}) {
		t.Errorf("ended: %+v", r.Changed)
	}
	if r := c.apply(end("bank")); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("ended twice: %v", r.Err)
	}
	ends := func(puts ...*logv1.Put) *logv1.Entry {
		return applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Puts: puts, EndsProposals: []string{"shop", "bank"}})
	}
	stale := ends()
	stale.GetApply().ValidatedAt++
	if r := c.apply(stale); !errors.Is(r.Err, state.ErrRevalidate) || len(slices.Collect(c.s.Proposals())) != 1 {
		t.Errorf("refused: %v", r.Err)
	}
	if r := c.must(ends()); r.Revision != at || !slices.Equal(r.Changed.Proposals, []string{"shop"}) {
		t.Errorf("without a change: %+v", r)
	}
	c.must(propose("shop"))
	if r := c.must(ends(doc("Grant", "shop", "g", "9"))); r.Revision == at || len(r.Changed.Keys) != 1 || len(slices.Collect(c.s.Proposals())) != 0 {
		t.Errorf("with a change: %+v", r)
	}
}

// TestFormats: what an older version would leave out is of a newer format, and all
// else still is of the first.
func TestFormats(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	newer := map[string]*logv1.Entry{
		"retires":        c.deletes(c.retired("shop/web", time.Hour)),
		"ends proposals": applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), EndsProposals: []string{"shop"}}),
		"proposes":       propose("shop"),
	}
	for name, e := range newer {
		if got := state.FormatOf(e); got != 2 {
			t.Errorf("%s: format %d", name, got)
		}
		e.Format = 1
		if r := c.apply(e); !errors.Is(r.Err, state.ErrInvalid) || !r.Changed.Empty() {
			t.Errorf("%s, of format 1: %v", name, r.Err)
		}
	}
	for _, e := range []*logv1.Entry{c.put(doc("Grant", "shop", "g", "1")), c.token("t", "shop/web"), redeem("t", "i", "shop/web"), nil} {
		if got := state.FormatOf(e); got != 1 {
			t.Errorf("%v: format %d", e, got)
		}
	}
	if got := formatOf(t, snapshotOf(t, c.s)); got != 1 {
		t.Errorf("snapshot of format %d", got)
	}
	c.must(propose("shop"))
	if got := formatOf(t, snapshotOf(t, c.s)); got != 2 {
		t.Errorf("with a proposal: snapshot of format %d", got)
	}
}
