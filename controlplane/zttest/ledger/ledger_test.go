package ledger

import (
	"strings"
	"testing"
)

// TestFaultsAreSeen: what a cluster may not do is told, each fault by its name; and
// what it may do is not.
func TestFaultsAreSeen(t *testing.T) {
	write := func(key string, value int, revision, began, ended uint64) *Write {
		return &Write{Key: key, Document: "w0/d0", Value: value, Revision: revision, began: began, ended: ended}
	}
	for name, tt := range map[string]struct {
		l    *Ledger
		want string // "": no fault
	}{
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
		err := tt.l.checkWrites(tt.l.newest)
		if err == nil {
			err = tt.l.checkReads()
		}
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
