package controlplane

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// reportTimeout bounds asking a server where it stands, and with it the error of
// reading its clock: half of that.
const reportTimeout = 5 * time.Second

// said is what a peer has said of itself.
type said struct {
	*ztv1.GetReportResponse
	at    time.Time     // by the clock here
	ahead time.Duration // its clock, of the one here
}

// ask asks a peer where it stands, again and again, until ctx ends.
func (c *cluster) ask(ctx context.Context, id string, p *peer) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		if s, ok := c.askOnce(ctx, p); ok && s.Server == id {
			c.store.Heard(id, cmp.Or(s.Format, state.Reads(nil)))
			c.mu.Lock()
			p.said = s
			c.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *cluster) askOnce(ctx context.Context, p *peer) (*said, bool) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	conn, err := c.conn(p.address)
	if err != nil {
		return nil, false
	}
	asked := c.now().Round(0) // of the clock on the wall
	r, err := ztv1.NewPeerServiceClient(conn).GetReport(ctx, &ztv1.GetReportRequest{})
	if err != nil {
		return nil, false
	}
	got := c.now().Round(0)
	// A clock that was set in between, here or there, tells nothing.
	if took := got.Sub(asked); took < 0 || took > reportTimeout || !r.Now.IsValid() {
		return nil, false
	}
	return &said{r, got, r.Now.AsTime().Sub(asked.Add(got.Sub(asked) / 2))}, true
}

// Report is api.Cluster: where this server stands.
func (c *cluster) Report() *ztv1.GetReportResponse { return reportOf(c.self, c.store, c.now()) }

func reportOf(self string, s *store.Store, now time.Time) *ztv1.GetReportResponse {
	st := s.State()
	leader, _ := s.Leader()
	index, term := s.LastEntry()
	return &ztv1.GetReportResponse{
		Server: self, Version: Version, Format: s.Format(), Now: timestamppb.New(now), Leader: leader,
		LastIndex: index, LastTerm: term, AppliedIndex: st.Index(), Revision: st.Revision(), When: timestamppb.New(st.When()),
		Hashes: hashesOf(s), HashKind: state.HashKind,
	}
}

// fresh is what a peer has said lately; nil if it has not. c.mu is held.
func (c *cluster) fresh(p *peer) *said {
	if p == nil || p.said == nil {
		return nil
	}
	// After a clock was set here, what was read before is of another time.
	if age := c.now().Sub(p.said.at); age < 0 || age > 2*reportTimeout {
		return nil
	}
	return p.said
}

// clocks is how far the clocks of the voters that can be asked are ahead of the one
// here, which is among them if it votes, and how many voters there are.
func (c *cluster) clocks() (ahead []time.Duration, voters int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.store.Members() {
		if !m.Voter {
			continue
		}
		voters++
		if m.ID == c.self {
			ahead = append(ahead, 0)
		} else if s := c.fresh(c.peers[m.ID]); s != nil {
			ahead = append(ahead, s.ahead)
		}
	}
	return ahead, voters
}

// clockIsOff tells whether the clock of another server is far from the one here.
func (c *cluster) clockIsOff(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.fresh(c.peers[id])
	return s != nil && s.ahead.Abs() > maxSkew
}

// leadElsewhere hands leadership to a voter in contact whose clock is nearest to the
// median.
func (c *cluster) leadElsewhere(ctx context.Context) error {
	ahead, _ := c.clocks()
	if len(ahead) == 0 {
		return errors.New("no other voter can be asked")
	}
	median := slices.Sorted(slices.Values(ahead))[len(ahead)/2]
	type candidate struct {
		id  string
		off time.Duration
	}
	var to []candidate
	c.mu.Lock()
	for _, m := range c.store.Members() {
		if s := c.fresh(c.peers[m.ID]); m.Voter && s != nil {
			to = append(to, candidate{m.ID, (s.ahead - median).Abs()})
		}
	}
	c.mu.Unlock()
	slices.SortFunc(to, func(a, b candidate) int { return cmp.Compare(a.off, b.off) })
	err := errors.New("no other voter can be asked")
	for _, t := range to {
		if t.off > maxSkew {
			break
		}
		if err = c.store.TransferLeadershipTo(ctx, t.id); err == nil {
			return nil
		}
	}
	return err
}

// Members is api.Cluster: the servers, sorted by id. One that is still of the group, but
// has no record any more, is a removal that was cut short: it is there until it is
// removed again.
func (c *cluster) Members() []*ztv1.Member {
	st, now := c.store.State(), c.now()
	leader, _ := c.store.Leader()
	group := map[string]store.Member{}
	for _, m := range c.store.Members() {
		group[m.ID] = m
	}
	leads := c.store.IsLeader()
	followers := c.store.Followers()
	last, _ := c.store.LastEntry()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*ztv1.Member
	for s := range st.Servers() {
		m := &ztv1.Member{
			Id: s.Id, AdminAddress: s.AdminAddress, NodeAddress: s.NodeAddress, ClusterAddress: s.ClusterAddress,
			Version: s.Version, Leader: s.Id == leader, Voter: group[s.Id].Voter, Replica: s.Replica, Format: state.Reads(s), Zone: s.Zone,
			Differs: c.differing[s.Id],
		}
		delete(group, s.Id)
		if s.Id == c.self {
			m.Reachable, m.Revision, m.Format, m.DiskFull = true, st.Revision(), c.store.Format(), c.store.Full()
			m.ClockSkew, m.Heard = durationpb.New(0), timestamppb.New(now)
			if leads {
				m.Lag = new(uint64)
			}
		} else if p := c.peers[s.Id]; p != nil {
			m.Reachable, m.Revision, m.DiskFull = p.reachable, p.revision, p.reachable && p.full
			if r := p.said; r != nil {
				m.Format, m.Heard = r.Format, timestamppb.New(r.at)
			}
			if r := c.fresh(p); r != nil {
				m.ClockSkew = durationpb.New(r.ahead)
			}
			if f, ok := followers[s.Id]; ok && leads {
				lag := last - min(f.LastIndex, last)
				m.Lag = &lag
			}
		}
		out = append(out, m)
	}
	for id, g := range group {
		out = append(out, &ztv1.Member{Id: id, ClusterAddress: g.Address, Leader: g.Leader, Voter: g.Voter})
	}
	slices.SortFunc(out, func(a, b *ztv1.Member) int { return cmp.Compare(a.Id, b.Id) })
	return out
}
