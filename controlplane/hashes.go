package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// hashed is what one server says of its past states.
type hashed struct {
	id    string
	voter bool
	at    map[uint64]state.Hash // by index
}

// judgement is what comparing the hashes after one entry says.
type judgement struct {
	index uint64
	right state.Hash // zero: no majority of the voters has said the same
	wrong []string   // ids of servers whose hash is another than right, sorted
	split []string   // where nothing is right: ids of servers that contradict one another, sorted
}

// judgeHashes is the rule, as a pure function: of all that was said after one entry, the
// hash of a majority of all voters is right, of those that cannot be heard as well. Where
// none has one, nobody is wrong, not even who contradicts the leader: a leader alone knows
// no more than any other. Servers that cannot say, of versions without hashes, are not
// among servers.
func judgeHashes(servers []hashed, voters int, index uint64) judgement {
	j := judgement{index: index}
	votes := map[state.Hash]int{}
	all := map[state.Hash]bool{}
	var said []string
	for _, s := range servers {
		h, has := s.at[index]
		if !has {
			continue
		}
		said, all[h] = append(said, s.id), true
		if s.voter {
			votes[h]++
		}
	}
	slices.Sort(said)
	for h, n := range votes {
		if 2*n > voters {
			j.right = h
		}
	}
	switch {
	case j.right == (state.Hash{}) && len(all) > 1:
		j.split = said
	case j.right != (state.Hash{}):
		for _, s := range servers {
			if h, has := s.at[index]; has && h != j.right {
				j.wrong = append(j.wrong, s.id)
			}
		}
		slices.Sort(j.wrong)
	}
	return j
}

// compare judges every index that somebody else names as well, oldest first.
func compare(self string, servers []hashed, voters int) (all []judgement) {
	seen := map[uint64]bool{}
	for _, s := range servers {
		if s.id == self {
			continue
		}
		for index := range s.at {
			seen[index] = true
		}
	}
	for index := range seen {
		all = append(all, judgeHashes(servers, voters, index))
	}
	slices.SortFunc(all, func(a, b judgement) int {
		if a.index < b.index {
			return -1
		}
		return 1
	})
	return all
}

// hashes is what every server that can be asked says, this one last, and how many voters
// there are, with those that cannot be asked.
func (c *cluster) hashes() (servers []hashed, voters int) {
	votes := map[string]bool{}
	for _, m := range c.store.Members() {
		if m.Voter {
			votes[m.ID] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	own := hashed{id: c.self, voter: votes[c.self], at: map[uint64]state.Hash{}}
	for _, h := range c.store.StateHashes() {
		own.at[h.Index] = h.Hash
	}
	for id, p := range c.peers {
		s := hashed{id: id, voter: votes[id], at: map[uint64]state.Hash{}}
		for _, h := range c.hashesOf(p) {
			if len(h.GetHash()) != len(state.Hash{}) {
				continue
			}
			s.at[h.Index] = state.Hash(h.Hash)
			if mine, ok := c.store.HashAt(h.Index); ok {
				own.at[h.Index] = mine
			}
		}
		if len(s.at) > 0 {
			servers = append(servers, s)
		}
	}
	return append(servers, own), len(votes)
}

// hashesOf is what a peer has said of its states lately: when it was asked, and when
// something had changed. c.mu is held.
func (c *cluster) hashesOf(p *peer) (out []*ztv1.StateHash) {
	if r := c.fresh(p); r != nil && r.HashKind == state.HashKind {
		out = append(out, r.Hashes...)
	}
	if p.reachable && p.state != nil {
		out = append(out, p.state)
	}
	return out
}

// hashesOf is what this server says of itself.
func hashesOf(s *store.Store) (out []*ztv1.StateHash) {
	for _, h := range s.StateHashes() {
		out = append(out, &ztv1.StateHash{Index: h.Index, Hash: h.Hash[:]})
	}
	return out
}

// newestHash is what this server says of its newest state when something has changed.
func (c *cluster) newestHash() *ztv1.StateHash {
	st := c.store.State()
	h := st.Hash()
	return &ztv1.StateHash{Index: st.Index(), Hash: h[:]}
}

// hashMetrics are those of comparing states.
type hashMetrics struct {
	agreed  prometheus.Gauge
	differs prometheus.Gauge
}

func newHashMetrics(registry prometheus.Registerer) *hashMetrics {
	m := &hashMetrics{
		agreed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zt_controlplane_state_agreed_index",
			Help: "The newest entry after which the state here was found to be that of most voters.",
		}),
		differs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zt_controlplane_state_differs",
			Help: "How many servers have another state than most voters after the same entry, or contradict one another while no majority of all voters says the same.",
		}),
	}
	registry.MustRegister(m.agreed, m.differs)
	return m
}

// comparePause is how long states are not compared again after they were.
const comparePause = 50 * time.Millisecond

// watchHashes compares the states of all servers until ctx ends: at intervals, and when
// one of them tells that it has changed. It ends with store.ErrDiverged when that of this
// one is wrong; first, that is written down, so that this server does not serve from it
// again. Where nobody can tell which is right, it says so, and everything goes on.
func (s *Server) watchHashes(ctx context.Context, others *cluster, every time.Duration, m *hashMetrics) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := map[string]bool{}
	var split []string // the servers that contradicted one another at the last tick
	alarmed := false   // so they still do, and it was said
	agreed := uint64(0)
	for ticked := true; ; {
		moved := others.moved.next()
		servers, voters := others.hashes()
		own := servers[len(servers)-1].at
		differ := map[string]bool{}
		var now judgement
		for _, j := range compare(s.id, servers, voters) {
			if slices.Contains(j.wrong, s.id) {
				return s.diverge(j, own[j.index], servers)
			}
			if _, has := own[j.index]; has && j.right != (state.Hash{}) {
				agreed = max(agreed, j.index) // under load, what is heard next may be of a checkpoint before
				m.agreed.Set(float64(agreed))
			}
			if len(j.split) > 0 {
				now = j
			}
			for _, id := range slices.Concat(j.wrong, j.split) {
				differ[id] = true
			}
			for _, id := range j.wrong {
				if !told[id] {
					told[id] = true
					s.cfg.Logger.Error("another server has diverged: it is to stop, and to be reseeded", "server", id, "index", j.index, "right", fmt.Sprintf("%x", j.right))
				}
			}
		}
		m.differs.Set(float64(len(differ)))
		others.setDiffering(differ)
		if ticked { // what is heard of some only, and a moment later of all, is no split
			lasts := len(now.split) > 0 && len(split) > 0
			if lasts && !alarmed {
				s.cfg.Logger.Error("the states of servers differ, and no majority of all voters says which is right: nobody stops, and one of them serves what is wrong; "+
					"bring back the voters that are down, and the one that is wrong stops by itself, or find out which it is, stop it, and run ztd reseed there",
					"servers", now.split, "index", now.index, "voters", voters)
			}
			alarmed, split = lasts, now.split
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			ticked = true
		case <-moved:
			ticked = false
			if err := await(ctx, time.After(comparePause)); err != nil {
				return err
			}
		}
	}
}

// divergence is the file that keeps a server from serving what is wrong.
type divergence struct {
	Index uint64    `json:"index"`
	Here  string    `json:"here"`  // the hash after that entry
	There string    `json:"there"` // of the others
	By    []string  `json:"by"`    // who says so
	When  time.Time `json:"when"`
}

func (d divergence) err(dir dataDir) error {
	return fmt.Errorf("%w: after entry %d its hash here is %.16s…, and %.16s… on %s; it was found at %s and kept in %s",
		store.ErrDiverged, d.Index, d.Here, d.There, strings.Join(d.By, ", "), d.When.UTC().Format(time.RFC3339), dir.diverged())
}

func (s *Server) diverge(j judgement, own state.Hash, servers []hashed) error {
	d := divergence{Index: j.index, Here: fmt.Sprintf("%x", own), There: fmt.Sprintf("%x", j.right), When: s.cfg.Now()}
	for _, o := range servers {
		if h, has := o.at[j.index]; has && h == j.right {
			d.By = append(d.By, o.id)
		}
	}
	return errors.Join(d.err(s.dir), writeJSON(s.dir.diverged(), d))
}

// checkDiverged refuses a folder whose state was found to be wrong.
func (d dataDir) checkDiverged() error {
	b, err := os.ReadFile(d.diverged())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var was divergence
	if err := json.Unmarshal(bytes.TrimSpace(b), &was); err != nil {
		return fmt.Errorf("%w, says %s: %w", store.ErrDiverged, d.diverged(), err)
	}
	return was.err(d)
}
