package api

import (
	"slices"
	"testing"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestDetail: an answer shows of the documents that change what is asked for, and a
// revision the same.
func TestDetail(t *testing.T) {
	l := newFakeLog(t)
	l.atOnce = true
	s, ctx := newServer(l), as(t.Context(), "root")
	apply := func(detail ztv1.Detail, dry bool, yaml string) *ztv1.ApplyResponse {
		t.Helper()
		resp, err := s.Apply(ctx, &ztv1.ApplyRequest{Files: files(yaml), Detail: detail, DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	before := workloadYAML("a", "stays") + grantYAML("a", "goes", "a/stays", "stays", "/z") + grantYAML("a", "g", "a/stays", "stays", "/x")
	after := workloadYAML("a", "stays") + grantYAML("a", "comes", "a/stays", "stays", "/z") + grantYAML("a", "g", "a/stays", "stays", "/y")
	apply(0, false, before)
	for detail, want := range map[ztv1.Detail][]string{
		ztv1.Detail_DETAIL_UNSPECIFIED: {"add after", "change before after", "remove before"},
		ztv1.Detail_DETAIL_ALL:         {"add after", "change before after", "remove before"},
		ztv1.Detail_DETAIL_DIFFERENCES: {"add", "change before after", "remove"},
		ztv1.Detail_DETAIL_NAMES:       {"add", "change", "remove"},
	} {
		if got := shown(apply(detail, true, after).Changes); !slices.Equal(got, want) {
			t.Errorf("dry run, %v: %q, want %q", detail, got, want)
		}
		if got := shown(apply(detail, false, after).Changes); !slices.Equal(got, want) {
			t.Errorf("%v: %q, want %q", detail, got, want)
		}
		resp, err := s.ListRevisions(ctx, &ztv1.ListRevisionsRequest{PageSize: 1, Detail: detail, Stale: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := shown(resp.Revisions[0].Changes); !slices.Equal(got, want) {
			t.Errorf("revision, %v: %q, want %q", detail, got, want)
		}
		apply(detail, false, before)
	}
}

// shown is what changes show, sorted.
func shown(changes []*ztv1.Change) []string {
	var out []string
	for _, c := range changes {
		text := c.Action
		if c.Before != "" {
			text += " before"
		}
		if c.After != "" {
			text += " after"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}
