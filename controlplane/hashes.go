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
	id     string
	voter  bool
	leader bool
	at     map[uint64]state.Hash // by index
}

// judgement is what comparing the hashes after one entry says.
type judgement struct {
	index uint64
	right state.Hash // zero: nobody can tell yet
	wrong []string   // ids of servers whose hash is another, sorted
}

// judgeHashes is the rule, as a pure function: of all that was said after one entry, the
// hash of a majority of the voters that can be asked is right. Where there is none, and
// all of them have been heard, it is that of the leader. Servers that cannot say, of
// versions without hashes, are not among servers.
func judgeHashes(servers []hashed, index uint64) judgement {
	j := judgement{index: index}
	votes := map[state.Hash]int{}
	voters, heard := 0, 0
	var led state.Hash
	for _, s := range servers {
		h, has := s.at[index]
		if has && s.leader {
			led = h
		}
		if !s.voter {
			continue
		}
		voters++
		if has {
			heard++
			votes[h]++
		}
	}
	for h, n := range votes {
		if 2*n > voters {
			j.right = h
		}
	}
	if j.right == (state.Hash{}) && heard == voters {
		j.right = led
	}
	if j.right == (state.Hash{}) {
		return j
	}
	for _, s := range servers {
		if h, has := s.at[index]; has && h != j.right {
			j.wrong = append(j.wrong, s.id)
		}
	}
	slices.Sort(j.wrong)
	return j
}

// compare judges every index that somebody else names as well, oldest first.
func compare(self string, servers []hashed) (all []judgement) {
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
		all = append(all, judgeHashes(servers, index))
	}
	slices.SortFunc(all, func(a, b judgement) int {
		if a.index < b.index {
			return -1
		}
		return 1
	})
	return all
}

// hashes is what every server that can be asked says, this one among them.
func (c *cluster) hashes() (servers []hashed) {
	voters := map[string]bool{}
	for _, m := range c.store.Members() {
		voters[m.ID] = m.Voter
	}
	leader, _ := c.store.Leader()
	c.mu.Lock()
	defer c.mu.Unlock()
	own := hashed{id: c.self, voter: voters[c.self], leader: leader == c.self, at: map[uint64]state.Hash{}}
	for _, h := range c.store.StateHashes() {
		own.at[h.Index] = h.Hash
	}
	for id, p := range c.peers {
		r := c.fresh(p)
		if r == nil || r.HashKind != state.HashKind {
			continue
		}
		s := hashed{id: id, voter: voters[id], leader: leader == id, at: map[uint64]state.Hash{}}
		for _, h := range r.Hashes {
			if len(h.Hash) != len(state.Hash{}) {
				continue
			}
			s.at[h.Index] = state.Hash(h.Hash)
			if mine, ok := c.store.HashAt(h.Index); ok {
				own.at[h.Index] = mine
			}
		}
		servers = append(servers, s)
	}
	return append(servers, own)
}

// hashesOf is what this server says of itself.
func hashesOf(s *store.Store) (out []*ztv1.StateHash) {
	for _, h := range s.StateHashes() {
		out = append(out, &ztv1.StateHash{Index: h.Index, Hash: h.Hash[:]})
	}
	return out
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
			Help: "How many other servers have another state than most voters after the same entry: they are about to stop.",
		}),
	}
	registry.MustRegister(m.agreed, m.differs)
	return m
}

// watchHashes compares the states of all servers until ctx ends. It ends with
// store.ErrDiverged when that of this one is wrong; first, that is written down, so that
// this server does not serve from it again.
func (s *Server) watchHashes(ctx context.Context, others *cluster, every time.Duration, m *hashMetrics) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := map[string]bool{}
	for {
		differ := map[string]bool{}
		servers := others.hashes()
		own := servers[len(servers)-1].at
		for _, j := range compare(s.id, servers) {
			if slices.Contains(j.wrong, s.id) {
				return s.diverge(j, own[j.index], servers)
			}
			if _, has := own[j.index]; has && j.right != (state.Hash{}) {
				m.agreed.Set(float64(j.index))
			}
			for _, id := range j.wrong {
				differ[id] = true
				if !told[id] {
					told[id] = true
					s.cfg.Logger.Error("another server has diverged: it is to stop, and to be reseeded", "server", id, "index", j.index, "right", fmt.Sprintf("%x", j.right))
				}
			}
		}
		m.differs.Set(float64(len(differ)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
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
