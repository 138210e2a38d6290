package controlplane

import (
	"errors"
	"strings"
	"testing"
)

// TestSurvivors: who may go on without a quorum, and everything that speaks against it.
func TestSurvivors(t *testing.T) {
	at := func(id string, term, index uint64) Survivor {
		return Survivor{Server: id, Voter: true, LastTerm: term, LastIndex: index, From: id + ".json"}
	}
	three := map[string]bool{"a": true, "b": true, "c": true}
	five := map[string]bool{"a": true, "b": true, "c": true, "d": true, "e": true}
	replica := func(s Survivor) Survivor { s.Voter = false; return s }
	for name, tt := range map[string]struct {
		r    recovery
		want []string // parts of the error; none: it may
	}{
		"the only one of three": {recovery{self: at("a", 2, 7), members: three, lost: []string{"b", "c"}}, nil},
		"nobody is accounted for": {
			recovery{self: at("a", 2, 7), members: three, silent: map[string]string{"c": "10.0.0.3:7402: refused"}},
			[]string{"server b has not told", "server c has not told", "10.0.0.3:7402: refused", "--lost c"},
		},
		"one is not accounted for":  {recovery{self: at("a", 2, 7), members: three, lost: []string{"b"}}, []string{"server c has not told"}},
		"two of five, this is more": {recovery{self: at("b", 3, 5), members: five, survivors: []Survivor{at("a", 2, 9)}, lost: []string{"c", "d", "e"}}, nil},
		"the other is of a later term": {
			recovery{self: at("a", 2, 9), members: five, survivors: []Survivor{at("b", 3, 5)}, lost: []string{"c", "d", "e"}},
			[]string{"server b (b.json) has entries that this one has not", "5 of term 3, here it is 9 of term 2", "Recover that one"},
		},
		"the other has one entry more": {
			recovery{self: at("a", 2, 9), members: five, survivors: []Survivor{at("b", 2, 10)}, lost: []string{"c", "d", "e"}},
			[]string{"server b (b.json) has entries"},
		},
		"equal, and this goes first": {recovery{self: at("a", 2, 9), members: five, survivors: []Survivor{at("b", 2, 9)}, lost: []string{"c", "d", "e"}}, nil},
		"equal, and the other goes first": {
			recovery{self: at("b", 2, 9), members: five, survivors: []Survivor{at("a", 2, 9)}, lost: []string{"c", "d", "e"}},
			[]string{"server a (a.json) has the same entries, and goes first"},
		},
		"equal, and the other is a replica": {
			recovery{self: at("b", 2, 9), members: map[string]bool{"a": false, "b": true, "c": true, "d": true}, survivors: []Survivor{replica(at("a", 2, 9))}, lost: []string{"c", "d"}}, nil,
		},
		"a replica has more": {
			recovery{self: at("b", 2, 9), members: map[string]bool{"a": false, "b": true, "c": true, "d": true}, survivors: []Survivor{replica(at("a", 2, 10))}, lost: []string{"c", "d"}},
			[]string{"server a (a.json) has entries"},
		},
		"a replica goes on": {recovery{self: replica(at("a", 2, 9)), members: map[string]bool{"a": false, "b": true}, lost: []string{"b"}}, nil},
		"two of three are a quorum": {
			recovery{self: at("a", 2, 9), members: three, survivors: []Survivor{at("b", 2, 9)}, lost: []string{"c"}},
			[]string{"2 of 3 voting servers are there, and that is a quorum"},
		},
		"a cluster of one":       {recovery{self: at("a", 2, 9), members: map[string]bool{"a": true}}, []string{"1 of 1 voting"}},
		"half of four is none":   {recovery{self: at("a", 2, 9), members: map[string]bool{"a": true, "b": true, "c": true, "d": true}, survivors: []Survivor{at("b", 1, 9)}, lost: []string{"c", "d"}}, nil},
		"there is a leader":      {recovery{self: at("a", 2, 9), members: five, survivors: []Survivor{{Server: "b", Leader: "c", From: "x:1"}}, lost: []string{"c", "d", "e"}}, []string{"server b (x:1) hears a leader, c"}},
		"a lost one that is not": {recovery{self: at("a", 2, 9), members: five, survivors: []Survivor{at("b", 2, 9)}, lost: []string{"b", "c", "d", "e"}}, []string{"--lost b: it is not lost"}},
		"itself is lost":         {recovery{self: at("a", 2, 9), members: three, lost: []string{"a", "b", "c"}}, []string{"--lost a: that is this server"}},
		"a lost one that never was": {
			recovery{self: at("a", 2, 9), members: three, lost: []string{"b", "c", "x"}},
			[]string{"--lost x: there is no such member; the others are b, c"},
		},
		"a report of a stranger": {
			recovery{self: at("a", 2, 9), members: three, survivors: []Survivor{at("x", 1, 1)}, lost: []string{"b", "c"}},
			[]string{"server x (x.json) is no member"},
		},
	} {
		err := tt.r.judge()
		if len(tt.want) == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, ErrRecover) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q is not in\n%v", name, w, err)
			}
		}
	}
}
