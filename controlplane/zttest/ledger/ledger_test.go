package ledger

import (
	"errors"
	"strings"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// stored is a document as a cluster holds it.
func stored(t *testing.T, value int) *ztv1.Document {
	t.Helper()
	docs, problems := spec.Parse([]spec.File{{Name: "w", Content: document("w0/d0", value)}})
	if len(docs) != 1 || len(problems) > 0 {
		t.Fatalf("%v", problems)
	}
	if got, err := valueOf(docs[0].Document); got != value || err != nil {
		t.Fatalf("%d is read as %d, %v", value, got, err)
	}
	return docs[0].Document
}

// TestFaultsAreSeen: what a cluster may not do is told, each fault by its name; and
// what it may do is not.
func TestFaultsAreSeen(t *testing.T) {
	write := func(key string, value int, revision, began, ended uint64) *Write {
		return &Write{Key: key, Document: "w0/d0", Value: value, Revision: revision, began: began, ended: ended}
	}
	for name, tt := range map[string]struct {
		l       *Ledger
		history []*ztv1.Revision
		docs    map[string]*ztv1.StoredDocument
		want    string // "": no fault
	}{
		"twice": {
			l:       &Ledger{keys: map[string]*Write{"a": write("a", 1, 10, 1, 2)}, revision: map[string]uint64{"a": 10}},
			history: []*ztv1.Revision{{Revision: 12, Message: "a"}}, want: "twice in the history",
		},
		"of nobody": {
			l:       &Ledger{revision: map[string]uint64{}},
			history: []*ztv1.Revision{{Revision: 12, Message: "a"}}, want: "nobody wrote",
		},
		"refused, and there": {
			l:       &Ledger{keys: map[string]*Write{"a": {Key: "a", Refused: true}}, revision: map[string]uint64{}},
			history: []*ztv1.Revision{{Revision: 12, Message: "a"}}, want: "said that nothing was changed",
		},
		"at another revision": {
			l:       &Ledger{keys: map[string]*Write{"a": write("a", 1, 10, 1, 2)}, revision: map[string]uint64{}},
			history: []*ztv1.Revision{{Revision: 12, Message: "a"}}, want: "acknowledged at 10 and is at 12",
		},
		"not there": {
			l: &Ledger{current: map[string]*Write{"w0/d0": write("a", 1, 10, 1, 2)}}, want: "is not there",
		},
		"as it was": {
			l:    &Ledger{current: map[string]*Write{"w0/d0": write("b", 2, 10, 1, 2)}},
			docs: map[string]*ztv1.StoredDocument{"w0/d0": {Revision: 9, Document: stored(t, 1)}},
			want: "is 1 at 9",
		},
		"in order": {l: &Ledger{
			writes:   []*Write{write("a", 1, 10, 1, 4), write("b", 2, 11, 2, 3), write("c", 5, 12, 5, 6)},
			revision: map[string]uint64{"a": 10, "b": 11, "c": 12},
			reads:    []read{{document: "w0/d0", value: 2, began: 3, ended: 7}, {document: "w0/d0", value: 5, began: 7, ended: 8}},
		}},
		"lost": {
			l:    &Ledger{writes: []*Write{write("a", 1, 10, 1, 2)}, revision: map[string]uint64{}},
			want: "is lost",
		},
		"out of order": {
			l: &Ledger{
				writes:   []*Write{write("a", 1, 11, 1, 2), write("b", 3, 10, 3, 4)},
				revision: map[string]uint64{"a": 11, "b": 10},
			},
			want: "began after a was acknowledged",
		},
		"before the last check": {
			l:    &Ledger{newest: 10, writes: []*Write{write("a", 1, 10, 1, 2)}, revision: map[string]uint64{"a": 10}},
			want: "began when 10 was there",
		},
		"a stale read": {
			l:    &Ledger{current: map[string]*Write{"w0/d0": write("a", 2, 10, 2, 3)}, reads: []read{{document: "w0/d0", value: 1, began: 4, ended: 5}}},
			want: "stale read",
		},
		"reads that go back": {
			l: &Ledger{reads: []read{
				{document: "w0/d0", value: 2, began: 3, ended: 4}, {document: "w0/d0", value: 1, began: 5, ended: 6},
			}},
			want: "stale read",
		},
		"a read of the future": {
			l:    &Ledger{reads: []read{{document: "w0/d0", value: 9, began: 3, ended: 4}}},
			want: "written after the read",
		},
	} {
		floor := tt.l.newest
		errs := []error{tt.l.checkHistory(tt.history), tt.l.checkWrites(floor), tt.l.checkReads()}
		if tt.docs != nil || tt.want == "is not there" {
			errs = append(errs, tt.l.checkDocuments(tt.docs))
		}
		err := errors.Join(errs...)
		if got := ""; err != nil {
			got = err.Error()
			if tt.want == "" || !strings.Contains(got, tt.want) {
				t.Errorf("%s: %s", name, got)
			}
		} else if tt.want != "" {
			t.Errorf("%s: no fault is seen", name)
		}
	}
}
