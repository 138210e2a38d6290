package controlplane_test

import (
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// slowly is an autopilot that promotes nobody within a test.
func slowly(cfg *controlplane.Config) {
	cfg.Autopilot.Stable = time.Hour
	cfg.Timing = store.Timing{} // that of production: others will join
}

// member is one server as the leader sees it; nil if it sees none.
func (c *cluster) member(of *mesh.Server) *ztv1.Member {
	c.t.Helper()
	resp := mesh.Settled(c.Mesh, "the members", func() (*ztv1.ListMembersResponse, error) {
		return c.Leader().Admin().ListMembers(c.ctx(), &ztv1.ListMembersRequest{})
	})
	for _, m := range resp.Members {
		if m.Id == of.ID() {
			return m
		}
	}
	return nil
}

func (c *cluster) untilMember(of *mesh.Server, what string, is func(*ztv1.Member) bool) {
	c.t.Helper()
	c.Until(what, func() bool { m := c.member(of); return m != nil && is(m) })
}

func upToDate(m *ztv1.Member) bool { return m.Reachable && m.Lag != nil && *m.Lag == 0 }

// TestMembersByHand: a server that has joined has no vote until it is given one; a
// replica never gets one by itself, and serves; and what would cost the majority is
// refused.
func TestMembersByHand(t *testing.T) {
	c := newCluster(t, 1, slowly)
	first := c.Servers[0]
	c.Submit(shop)
	second := c.Add(controlplane.JoinConfig{})
	c.untilMember(second, "it is up to date", upToDate)
	if m := c.member(second); m.Voter || m.Replica || m.Format == 0 || m.Version != controlplane.Version {
		t.Errorf("after it has joined: %v", m)
	}
	replica := c.Add(controlplane.JoinConfig{Replica: true})
	c.untilMember(replica, "the replica is up to date", upToDate)

	promote := func(s *mesh.Server) {
		t.Helper()
		mesh.Settled(c.Mesh, "a vote", func() (*ztv1.PromoteMemberResponse, error) {
			return c.Leader().Admin().PromoteMember(c.ctx(), &ztv1.PromoteMemberRequest{Id: s.ID()})
		})
	}
	promote(second)
	if m := c.member(second); !m.Voter {
		t.Errorf("after its promotion: %v", m)
	}

	// The replica forwards what it may not answer, and answers what it may.
	resp := mesh.Settled(c.Mesh, "an apply by a replica", func() (*ztv1.ApplyResponse, error) {
		return replica.Admin().Apply(c.ctx(), applyRequest(shop+workload("more", "one")))
	})
	read := mesh.Settled(c.Mesh, "a read by a replica", func() (*ztv1.ListDocumentsResponse, error) {
		return replica.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{})
	})
	if read.Revision != resp.Revision || read.Staleness != nil {
		t.Errorf("a read by a replica is of revision %d (%v), want %d", read.Revision, read.Staleness, resp.Revision)
	}
	c.Until("a stale read has it", func() bool {
		stale, err := replica.Admin().ListDocuments(c.ctx(), &ztv1.ListDocumentsRequest{Stale: true})
		c.check(err)
		if s := stale.Staleness; s.GetServer() != replica.ID() || s.Revision != stale.Revision || s.Age.AsDuration() > mesh.Patience {
			t.Fatalf("a stale read by a replica: %v", s)
		}
		return stale.Revision == resp.Revision
	})

	admin := func() ztv1.AdminServiceClient { return c.Leader().Admin() }
	refused := func(call func() error) {
		t.Helper()
		var err error
		c.Until("an answer", func() bool { err = call(); return !mesh.Unsettled(err) })
		c.refused(codes.FailedPrecondition, err)
	}
	refused(func() error {
		_, err := admin().TransferLeadership(c.ctx(), &ztv1.TransferLeadershipRequest{Id: replica.ID()})
		return err
	})
	mesh.Settled(c.Mesh, "another leader", func() (*ztv1.TransferLeadershipResponse, error) {
		return admin().TransferLeadership(c.ctx(), &ztv1.TransferLeadershipRequest{Id: second.ID()})
	})
	c.Until("the second leads", func() bool { return c.Leader() == second })
	refused(func() error {
		_, err := admin().DemoteMember(c.ctx(), &ztv1.DemoteMemberRequest{Id: second.ID()})
		return err
	})

	demote := func() {
		t.Helper()
		mesh.Settled(c.Mesh, "a vote less", func() (*ztv1.DemoteMemberResponse, error) {
			return admin().DemoteMember(c.ctx(), &ztv1.DemoteMemberRequest{Id: first.ID()})
		})
	}
	demote()
	if m := c.member(first); m.Voter || !m.Replica {
		t.Errorf("after its demotion: %v", m)
	}
	refused(func() error { // the last voter
		_, err := admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: second.ID(), Force: true})
		return err
	})
	promote(first)

	replica.Stop()
	c.untilMember(replica, "it is missed", func(m *ztv1.Member) bool { return !m.Reachable })
	refused(func() error {
		_, err := admin().PromoteMember(c.ctx(), &ztv1.PromoteMemberRequest{Id: replica.ID()})
		return err
	})
	key := mesh.NewID()
	for range 2 { // the second time, it is known what came of the first
		mesh.Settled(c.Mesh, "its end", func() (*ztv1.RemoveMemberResponse, error) {
			return admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: replica.ID(), IdempotencyKey: key})
		})
	}
	if m := c.member(replica); m != nil {
		t.Errorf("removed, and there: %v", m)
	}
}

// TestStableServersVote: a cluster grows to three voters by itself, and a graceful
// stop of the leader hands its lead over.
func TestStableServersVote(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, s := range c.Servers {
		if m := c.member(s); !m.Voter || m.Replica {
			t.Errorf("%v", m)
		}
	}
	leader := c.Leader()
	leader.Stop()
	c.Until("another one leads", func() bool { return c.Leader() != leader })
	if log := c.Log.String(); !strings.Contains(log, "starting leadership transfer") || strings.Contains(log, "leadership was not handed over") {
		t.Error("no leadership was handed over")
	}
	c.Submit(shop)
	var err error
	c.Until("an answer", func() bool {
		_, err = c.Leader().Admin().RemoveMember(c.ctx(), &ztv1.RemoveMemberRequest{Id: c.Leader().ID()})
		return !mesh.Unsettled(err)
	})
	if got := c.refused(codes.FailedPrecondition, err); !strings.Contains(got, "no majority") {
		t.Errorf("removing one of the two that are left: %s", got)
	}
}

// TestLeaderWithAWrongClock: a leader whose clock is set an hour ahead leads no more
// and signs nothing, until it is right again.
func TestLeaderWithAWrongClock(t *testing.T) {
	var ahead atomic.Int64
	var skewed atomic.Pointer[string] // the data directory of that server
	c := newCluster(t, 3, func(cfg *controlplane.Config) {
		dir := cfg.DataDir
		cfg.Now = func() time.Time {
			if at := skewed.Load(); at != nil && *at == dir {
				return time.Now().Add(time.Duration(ahead.Load()))
			}
			return time.Now()
		}
	})
	c.Submit(shop)
	_, pair := c.enrol("shop/web")
	wrong := c.Leader()
	skewed.Store(&wrong.Dir)
	ahead.Store(int64(time.Hour))
	c.Until("another one leads", func() bool { return c.Leader() != wrong })
	c.untilMember(wrong, "the skew is seen", func(m *ztv1.Member) bool {
		return (m.ClockSkew.AsDuration() - time.Hour).Abs() < time.Minute
	})
	c.Until("it says so itself", func() bool {
		skew := wrong.Metric("zt_controlplane_clock_skew_seconds")
		return skew < -3500 && skew > -3700
	})
	_, csr := c.NewRequest()
	renew := func() error {
		_, err := c.node(wrong, pair).Renew(c.ctx(), &ztv1.RenewRequest{NodeCsr: csr})
		return err
	}
	c.refused(codes.Unavailable, renew())
	c.Submit(shop + workload("more", "one")) // the others go on

	ahead.Store(0)
	c.Until("it signs again", func() bool { return renew() == nil })
	mesh.Settled(c.Mesh, "it leads again", func() (*ztv1.TransferLeadershipResponse, error) {
		return c.Leader().Admin().TransferLeadership(c.ctx(), &ztv1.TransferLeadershipRequest{Id: wrong.ID()})
	})
	c.Until("it leads again", func() bool { return c.Leader() == wrong })
	c.Submit(shop)
}

// TestOlderMembers: in a cluster of two versions, what the older one does not read is
// not proposed, and the refusal names it; everything else goes on. When the last one
// is upgraded, all of it may be used, and an older server does not join any more.
func TestOlderMembers(t *testing.T) {
	var upgraded sync.Map // data directories; the other servers pretend to be older
	c := &cluster{mesh.New(t, mesh.Config{TrustDomain: trustDomain, Format: 2, LogLevel: slog.LevelDebug, Tune: func(cfg *controlplane.Config) {
		cfg.Timing = store.Timing{}
		if _, is := upgraded.Load(cfg.DataDir); !is {
			cfg.Format = 2
		}
	}}), t}
	upgrade := func(s *mesh.Server) {
		s.Stop()
		upgraded.Store(s.Dir, true)
		s.Start()
		c.untilMember(s, "it says what it reads", func(m *ztv1.Member) bool { return m.Format == state.Format })
	}
	first, second := c.Servers[0], c.Add(controlplane.JoinConfig{Format: 2})
	c.Together()
	c.Submit(shop)
	upgrade(first)
	join := func(req *ztv1.EnrolServerRequest) error {
		_, req.IntermediateCsr = c.NewRequest()
		req.Token, req.Server = c.Token(""), mesh.NewID()
		_, err := c.node(first, nil).EnrolServer(c.ctx(), req)
		for ; mesh.Unsettled(err); _, err = c.node(first, nil).EnrolServer(c.ctx(), req) {
			req.Token = c.Token("")
		}
		return err
	}
	for what, err := range map[string]error{
		"a replica joins": join(&ztv1.EnrolServerRequest{Replica: true, Format: state.Format}),
		"one is demoted": func() error {
			_, err := c.Leader().Admin().DemoteMember(c.ctx(), &ztv1.DemoteMemberRequest{Id: c.Others(c.Leader())[0].ID()})
			return err
		}(),
	} {
		if got := c.refused(codes.FailedPrecondition, err); !strings.Contains(got, second.ID()) || !strings.Contains(got, controlplane.Version) {
			t.Errorf("%s: %s", what, got)
		}
	}
	c.Submit(shop + workload("more", "one"))
	if m := c.member(second); m.Format != 2 {
		t.Errorf("the older one: %v", m)
	}

	upgrade(second)
	c.Until("replicas may join", func() bool {
		return join(&ztv1.EnrolServerRequest{Replica: true, Format: state.Format}) == nil
	})
	err := join(&ztv1.EnrolServerRequest{Format: 2, Version: "0.0.9"})
	if got := c.refused(codes.FailedPrecondition, err); !strings.Contains(got, "0.0.9") || !strings.Contains(got, controlplane.Version) {
		t.Errorf("an older server joins: %s", got)
	}
}
