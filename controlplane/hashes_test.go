package controlplane

import (
	"slices"
	"testing"

	"github.com/ztmesh/ztmesh/store/state"
)

// TestHashRule: whose state is wrong, after one entry.
func TestHashRule(t *testing.T) {
	const at = 64
	x, y, z := state.Hash{1}, state.Hash{2}, state.Hash{3}
	type said map[uint64]state.Hash
	voter := func(id string, h ...state.Hash) hashed {
		s := hashed{id: id, voter: true, at: said{}}
		for _, v := range h {
			s.at[at] = v
		}
		return s
	}
	leads := func(s hashed) hashed { s.leader = true; return s }
	replica := func(s hashed) hashed { s.voter = false; return s }
	for name, tt := range map[string]struct {
		servers []hashed
		right   state.Hash
		wrong   []string
	}{
		"all agree":                        {[]hashed{leads(voter("a", x)), voter("b", x), voter("c", x)}, x, nil},
		"a follower":                       {[]hashed{leads(voter("a", x)), voter("b", y), voter("c", x)}, x, []string{"b"}},
		"the leader":                       {[]hashed{leads(voter("a", y)), voter("b", x), voter("c", x)}, x, []string{"a"}},
		"the leader, and one is not heard": {[]hashed{leads(voter("a", y)), voter("b", x), voter("c")}, state.Hash{}, nil},
		"two of two: the leader is right":  {[]hashed{leads(voter("a", y)), voter("b", x)}, y, []string{"b"}},
		"two of two, and nobody leads":     {[]hashed{voter("a", y), voter("b", x)}, state.Hash{}, nil},
		"three of three":                   {[]hashed{voter("a", x), leads(voter("b", y)), voter("c", z)}, y, []string{"a", "c"}},
		"half of four":                     {[]hashed{leads(voter("a", x)), voter("b", x), voter("c", y), voter("d", y)}, x, []string{"c", "d"}},
		"two of five":                      {[]hashed{leads(voter("a", y)), voter("b", y), voter("c", x), voter("d", x), voter("e", x)}, x, []string{"a", "b"}},
		"a replica":                        {[]hashed{leads(voter("a", x)), voter("b", x), replica(voter("r", y))}, x, []string{"r"}},
		"replicas do not judge":            {[]hashed{leads(voter("a", x)), replica(voter("r", y)), replica(voter("s", y))}, x, []string{"r", "s"}},
		"who has not come so far":          {[]hashed{leads(voter("a", x)), voter("b", x), voter("c")}, x, nil},
		"alone":                            {[]hashed{leads(voter("a", x))}, x, nil},
		"nobody votes":                     {[]hashed{replica(voter("r", x))}, state.Hash{}, nil},
	} {
		for range 2 {
			got := judgeHashes(tt.servers, at)
			if got.right != tt.right || !slices.Equal(got.wrong, tt.wrong) {
				t.Errorf("%s: %+v", name, got)
			}
			slices.Reverse(tt.servers) // the order tells nothing
		}
	}
	if all := compare("a", []hashed{voter("b", x), voter("a", y)}); len(all) != 1 || all[0].index != at {
		t.Errorf("%+v", all)
	}
	if all := compare("a", []hashed{voter("a", y)}); len(all) != 0 {
		t.Errorf("compared with nobody: %+v", all)
	}
}
