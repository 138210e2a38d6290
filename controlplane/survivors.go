package controlplane

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrRecover is returned when a quorum is not to be given up, or not by this server.
// Nothing was changed.
var ErrRecover = errors.New("the cluster is not recovered from this server")

// Survivor is what a server has, for a recovery to compare. It is the content of a
// report (Report) as well.
type Survivor struct {
	Server      string    `json:"server"`
	TrustDomain string    `json:"trustDomain"`
	Epoch       string    `json:"epoch"` // of the cluster
	Voter       bool      `json:"voter"`
	LastTerm    uint64    `json:"lastTerm"`  // of the last entry in its log
	LastIndex   uint64    `json:"lastIndex"` // of that entry
	Revision    uint64    `json:"revision"`
	When        time.Time `json:"when"`   // of its state
	From        string    `json:"-"`      // who says so: a file, or an address
	Leader      string    `json:"leader"` // the leader that it hears; empty: none
}

// compare orders by what was acknowledged: the larger term, and in one term the larger
// index, has what the other one has. Of equal ones a voter goes first, then the smaller
// id, so that two operators with the same reports choose the same server.
func (s Survivor) compare(o Survivor) int {
	vote := func(s Survivor) int {
		if s.Voter {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(s.LastTerm, o.LastTerm), cmp.Compare(s.LastIndex, o.LastIndex),
		cmp.Compare(vote(s), vote(o)), strings.Compare(o.Server, s.Server),
	)
}

// recovery is what is known when a cluster is to go on from self alone.
type recovery struct {
	self      Survivor
	members   map[string]bool // every member, self among them; whether it votes
	survivors []Survivor      // the others that have said what they have
	silent    map[string]string
	lost      []string // given up by the operator
}

// judge is the rule, as a pure function: it returns everything that speaks against
// going on from self. Every other member is either compared or given up by name; those
// that are there are no majority; and none of them has more than self.
func (r recovery) judge() error {
	var errs []error
	here := map[string]bool{r.self.Server: true}
	for _, s := range r.survivors {
		here[s.Server] = true
		if s.Leader != "" {
			errs = append(errs, fmt.Errorf("server %s (%s) hears a leader, %s: the cluster has its quorum. Start this server, or reseed it", s.Server, s.From, s.Leader))
		}
		if _, is := r.members[s.Server]; !is {
			errs = append(errs, fmt.Errorf("server %s (%s) is no member, by the log of this server", s.Server, s.From))
		}
	}
	for _, id := range r.lost {
		switch _, is := r.members[id]; {
		case !is:
			errs = append(errs, fmt.Errorf("--lost %s: there is no such member; the others are %s", id, strings.Join(r.others(), ", ")))
		case id == r.self.Server:
			errs = append(errs, fmt.Errorf("--lost %s: that is this server", id))
		case here[id]:
			errs = append(errs, fmt.Errorf("--lost %s: it is not lost, it has told what it has", id))
		}
	}
	for _, id := range r.others() {
		if !here[id] && !slices.Contains(r.lost, id) {
			errs = append(errs, fmt.Errorf("server %s has not told what it has (%s). Start it; or bring a report of it (ztd recover --report there, --survivor FILE here); or give it up for ever: --lost %s",
				id, cmp.Or(r.silent[id], "its address is not known"), id))
		}
	}
	voters, votersHere := 0, 0
	for id, votes := range r.members {
		if votes {
			voters++
			if here[id] {
				votersHere++
			}
		}
	}
	if 2*votersHere > voters {
		errs = append(errs, fmt.Errorf("%d of %d voting servers are there, and that is a quorum: start them, and nothing is lost", votersHere, voters))
	}
	if best := slices.MaxFunc(append(slices.Clone(r.survivors), r.self), Survivor.compare); best.Server != r.self.Server {
		why := "has entries that this one has not"
		if best.LastTerm == r.self.LastTerm && best.LastIndex == r.self.LastIndex {
			why = "has the same entries, and goes first, so that no two servers are recovered"
		}
		errs = append(errs, fmt.Errorf("server %s (%s) %s: its last is %d of term %d, here it is %d of term %d. Recover that one instead",
			best.Server, best.From, why, best.LastIndex, best.LastTerm, r.self.LastIndex, r.self.LastTerm))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w, and nothing was changed:\n%w", ErrRecover, errors.Join(errs...))
	}
	return nil
}

// others are the ids of the other members, sorted.
func (r recovery) others() (ids []string) {
	for id := range r.members {
		if id != r.self.Server {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
