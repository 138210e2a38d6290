package state_test

import (
	"bytes"
	"errors"
	"testing"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

// byLineage is a change that was validated on s, which may be only expected.
func byLineage(s *state.State, docs ...*logv1.Put) *logv1.Entry {
	l := s.Lineage()
	e := applyEntry(&logv1.Apply{Lineage: l[:], Puts: docs})
	e.Format = state.Format
	return e
}

// TestLineage: changes that were each validated on top of the one before, of which
// only the contents were known, take effect exactly if the one before has.
func TestLineage(t *testing.T) {
	grant := func(value string) *logv1.Put { return doc("Grant", "shop", "g", value) }
	for name, tc := range map[string]struct {
		lost    int // which of the three never comes into the log; -1: none
		between *logv1.Entry
		want    []bool // whether each takes effect
	}{
		"all":                         {-1, nil, []bool{true, true, true}},
		"the first is lost":           {0, nil, []bool{false, false, false}},
		"the second is lost":          {1, nil, []bool{true, false, false}},
		"another kind of entry":       {-1, &logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: &logv1.Server{Id: "s"}}}}, []bool{true, true, true}},
		"a change by revision":        {-1, applyEntry(&logv1.Apply{ValidatedAt: 2, Puts: []*logv1.Put{doc("Grant", "bank", "g", "x")}}), []bool{false, false, false}},
		"a change to what was before": {-1, applyEntry(&logv1.Apply{ValidatedAt: 2, Puts: []*logv1.Put{grant("1")}}), []bool{false, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.must(c.put(grant("0")))
			expected := c.s
			var entries []*logv1.Entry
			for _, value := range []string{"1", "2", "3"} {
				e := byLineage(expected, grant(value))
				entries = append(entries, e)
				expected, _ = state.Apply(expected, expected.Index()+1, e)
			}
			if tc.between != nil {
				c.must(tc.between)
			}
			for i, e := range entries {
				if i == tc.lost {
					continue
				}
				r := c.apply(e)
				if r.After != c.s {
					t.Error("the result does not say which state it led to")
				}
				if tc.want[i] && r.Err != nil || !tc.want[i] && !errors.Is(r.Err, state.ErrRevalidate) {
					t.Errorf("change %d: %v", i, r.Err)
				}
			}
			if same := c.s.Lineage() == expected.Lineage(); same != tc.want[2] {
				t.Errorf("the lineage is the expected one: %v", same)
			}
			restored, err := state.Read(bytes.NewReader(snapshotOf(t, c.s)))
			if err != nil || restored.Lineage() != c.s.Lineage() {
				t.Errorf("restored with another lineage: %v", err)
			}
			c.s = restored
			c.must(byLineage(c.s, grant("4")))
			c.must(c.put(grant("5"))) // those by revision go on
			c.must(byLineage(c.s, grant("6")))
		})
	}
}

// TestLineageTellsChangesApart: what one change says in two fields, no other says.
func TestLineageTellsChangesApart(t *testing.T) {
	c := newCluster(t)
	seen := map[state.Lineage][]*logv1.Put{c.s.Lineage(): nil}
	for _, docs := range [][]*logv1.Put{
		{doc("Grant", "a", "bc", "x")},
		{doc("Grant", "ab", "c", "x")},
		{doc("Grant", "a", "b", "cx")},
		{doc("Grant", "a", "b", "c"), doc("Grant", "a", "c", "d")},
		{doc("Grant", "a", "b", "d"), doc("Grant", "a", "c", "c")},
	} {
		s, r := state.Apply(c.s, c.s.Index()+1, byLineage(c.s, docs...))
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if other, twice := seen[s.Lineage()]; twice {
			t.Errorf("%v and %v lead to one lineage", docs, other)
		}
		seen[s.Lineage()] = docs
	}
}

// TestJudged: a change takes effect only while the rights that it was judged by
// stand, whoever has changed them in between.
func TestJudged(t *testing.T) {
	c := newCluster(t)
	ed := &logv1.Admin{Name: "ed", Role: "editor", Namespaces: []string{"shop"}}
	put := func(a *logv1.Admin) {
		c.must(&logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: a}}})
	}
	put(ed)
	change := func(value string) state.Result {
		e := byLineage(c.s, doc("Grant", "shop", "g", value))
		e.GetApply().Judged = ed
		return c.apply(e)
	}
	if r := change("1"); r.Err != nil {
		t.Fatal(r.Err)
	}
	put(&logv1.Admin{Name: "ed", Role: "editor", Namespaces: []string{"bank"}})
	if r := change("2"); !errors.Is(r.Err, state.ErrRevalidate) {
		t.Errorf("with rights that are others now: %v", r.Err)
	}
	put(ed)
	if r := change("3"); r.Err != nil {
		t.Error(r.Err)
	}
	c.must(&logv1.Entry{Op: &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: "ed"}}})
	if r := change("4"); !errors.Is(r.Err, state.ErrRevalidate) {
		t.Errorf("without rights: %v", r.Err)
	}
}

// TestOlderReaders: what is since format 3 is refused where it says less, and an
// entry or snapshot without it stays of the format that it was.
func TestOlderReaders(t *testing.T) {
	c := newCluster(t)
	for _, e := range []*logv1.Entry{
		byLineage(c.s, doc("Grant", "shop", "g", "1")),
		applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Judged: &logv1.Admin{Name: "root", Role: "admin"}, Puts: []*logv1.Put{doc("Grant", "shop", "g", "1")}}),
	} {
		if got := state.FormatOf(e); got != 3 {
			t.Errorf("%v: format %d", e, got)
		}
		e.Format = 2
		if r := c.apply(e); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%v: %v", e, r.Err)
		}
	}
	c.must(c.put(doc("Grant", "shop", "g", "1")))
	if got := formatOf(t, snapshotOf(t, c.s)); got != 1 {
		t.Errorf("a snapshot of format %d", got)
	}
	c.must(byLineage(c.s, doc("Grant", "shop", "g", "2")))
	if got := formatOf(t, snapshotOf(t, c.s)); got != 3 {
		t.Errorf("a snapshot of format %d", got)
	}
}
