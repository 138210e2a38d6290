package state

import (
	"testing"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

func TestGrows(t *testing.T) {
	put := func(kinds ...string) *logv1.Entry {
		a := &logv1.Apply{Deletes: []*logv1.Key{{Kind: "Grant"}}}
		for _, k := range kinds {
			a.Puts = append(a.Puts, &logv1.Put{Key: &logv1.Key{Kind: k}})
		}
		return &logv1.Entry{Op: &logv1.Entry_Apply{Apply: a}}
	}
	for name, c := range map[string]struct {
		e    *logv1.Entry
		want bool
	}{
		"a grant":           {put("Grant"), true},
		"a block":           {put("Block", "Block"), false},
		"a block and more":  {put("Block", "Grant"), true},
		"deletes":           {put(), false},
		"a proposal":        {&logv1.Entry{Op: &logv1.Entry_Propose{Propose: &logv1.Propose{}}}, true},
		"a proposal's end":  {&logv1.Entry{Op: &logv1.Entry_Propose{Propose: &logv1.Propose{End: true}}}, false},
		"a token":           {&logv1.Entry{Op: &logv1.Entry_PutToken{}}, true},
		"a token's end":     {&logv1.Entry{Op: &logv1.Entry_DeleteToken{}}, false},
		"an enrolment":      {&logv1.Entry{Op: &logv1.Entry_Redeem{}}, true},
		"an instance's end": {&logv1.Entry{Op: &logv1.Entry_Deregister{}}, false},
		"an admin":          {&logv1.Entry{Op: &logv1.Entry_PutAdmin{}}, true},
		"an admin's end":    {&logv1.Entry{Op: &logv1.Entry_DeleteAdmin{}}, false},
		"where a server is": {&logv1.Entry{Op: &logv1.Entry_PutServer{}}, false},
		"a server's end":    {&logv1.Entry{Op: &logv1.Entry_DeleteServer{}}, false},
		"a place":           {&logv1.Entry{Op: &logv1.Entry_Place{}}, false},
		"a withdrawal":      {&logv1.Entry{Op: &logv1.Entry_Endpoints{}}, false},
	} {
		if got := Grows(c.e); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
