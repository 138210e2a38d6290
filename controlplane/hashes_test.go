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
	replica := func(s hashed) hashed { s.voter = false; return s }
	for name, tt := range map[string]struct {
		servers []hashed
		voters  int
		right   state.Hash
		wrong   []string
		split   []string
	}{
		"all agree":                         {[]hashed{voter("a", x), voter("b", x), voter("c", x)}, 3, x, nil, nil},
		"one of three":                      {[]hashed{voter("a", x), voter("b", y), voter("c", x)}, 3, x, []string{"b"}, nil},
		"two agree, and one is not heard":   {[]hashed{voter("a", x), voter("b", x)}, 3, x, nil, nil},
		"two differ, and one is not heard":  {[]hashed{voter("a", y), voter("b", x)}, 3, state.Hash{}, nil, []string{"a", "b"}},
		"two differ, and one is behind":     {[]hashed{voter("a", y), voter("b", x), voter("c")}, 3, state.Hash{}, nil, []string{"a", "b"}},
		"one is heard":                      {[]hashed{voter("a", x)}, 3, state.Hash{}, nil, nil},
		"two of two":                        {[]hashed{voter("a", y), voter("b", x)}, 2, state.Hash{}, nil, []string{"a", "b"}},
		"three of three":                    {[]hashed{voter("a", x), voter("b", y), voter("c", z)}, 3, state.Hash{}, nil, []string{"a", "b", "c"}},
		"half of four":                      {[]hashed{voter("a", x), voter("b", x), voter("c", y), voter("d", y)}, 4, state.Hash{}, nil, []string{"a", "b", "c", "d"}},
		"two of five":                       {[]hashed{voter("a", y), voter("b", y), voter("c", x), voter("d", x), voter("e", x)}, 5, x, []string{"a", "b"}, nil},
		"two of the three heard of five":    {[]hashed{voter("a", y), voter("b", x), voter("c", x)}, 5, state.Hash{}, nil, []string{"a", "b", "c"}},
		"a replica":                         {[]hashed{voter("a", x), voter("b", x), replica(voter("r", y))}, 3, x, []string{"r"}, nil},
		"replicas do not judge":             {[]hashed{voter("a", x), replica(voter("r", y)), replica(voter("s", y))}, 1, x, []string{"r", "s"}, nil},
		"a replica, and most are not heard": {[]hashed{voter("a", x), replica(voter("r", y)), replica(voter("s", y))}, 3, state.Hash{}, nil, []string{"a", "r", "s"}},
		"alone":                             {[]hashed{voter("a", x)}, 1, x, nil, nil},
		"nobody votes":                      {[]hashed{replica(voter("r", x))}, 0, state.Hash{}, nil, nil},
	} {
		for range 2 {
			got := judgeHashes(tt.servers, tt.voters, at)
			if got.right != tt.right || !slices.Equal(got.wrong, tt.wrong) || !slices.Equal(got.split, tt.split) {
				t.Errorf("%s: %+v", name, got)
			}
			slices.Reverse(tt.servers) // the order tells nothing
		}
	}
	if all := compare("a", []hashed{voter("b", x), voter("a", y)}, 2); len(all) != 1 || all[0].index != at {
		t.Errorf("%+v", all)
	}
	if all := compare("a", []hashed{voter("a", y)}, 1); len(all) != 0 {
		t.Errorf("compared with nobody: %+v", all)
	}
}
