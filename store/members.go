package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
)

// Member is one server of the Raft group.
type Member struct {
	ID      string
	Address string
	Voter   bool
	Leader  bool
}

// Members returns the group as this server knows it, which may be a change that
// is not committed yet. The order is that of joining.
func (s *Store) Members() []Member {
	_, leader := s.raft.LeaderWithID()
	servers := s.raft.GetConfiguration().Configuration().Servers
	members := make([]Member, 0, len(servers))
	for _, v := range servers {
		members = append(members, Member{
			ID: string(v.ID), Address: string(v.Address),
			Voter: v.Suffrage == raft.Voter, Leader: v.ID == leader,
		})
	}
	return members
}

func (s *Store) voters() int {
	n := 0
	for _, m := range s.Members() {
		if m.Voter {
			n++
		}
	}
	return n
}

func (s *Store) isMember() bool {
	return slices.ContainsFunc(s.Members(), func(m Member) bool { return m.ID == s.cfg.ID })
}

// configured is told by the fsm which configuration is committed now. One that
// lacks this server means removal, but only after one that had it: a server that
// joins sees all those of before its time.
func (s *Store) configured(c raft.Configuration) {
	member := slices.ContainsFunc(c.Servers, func(v raft.Server) bool { return v.ID == raft.ServerID(s.cfg.ID) })
	if was := s.member.Swap(member); was && !member {
		select {
		case s.removed <- struct{}{}:
		default:
		}
	}
}

// AddVoter makes a server a voting member, or changes the address of one. It does
// nothing if the server is a voter at that address already. It returns when the
// change is committed, with the errors of Propose.
func (s *Store) AddVoter(ctx context.Context, id, address string) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	for _, m := range s.Members() {
		if m.ID == id && m.Address == address && m.Voter {
			return s.Barrier(ctx)
		}
	}
	failpoint.Hit("store.member.add")
	f := s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, enqueueTimeout)
	if err := s.await(ctx, f); err != nil {
		return fmt.Errorf("add voter %s: %w", id, proposeError(err))
	}
	failpoint.Hit("store.member.added")
	return nil
}

// RemoveServer takes a server out of the group. It does nothing if it is not in
// it. A leader that removes itself steps down once that is committed, and its
// Wait returns ErrRemoved. It returns the errors of Propose.
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	failpoint.Hit("store.member.remove")
	f := s.raft.RemoveServer(raft.ServerID(id), 0, enqueueTimeout)
	if err := s.await(ctx, f); err != nil && !errors.Is(err, ErrRemoved) {
		return fmt.Errorf("remove server %s: %w", id, proposeError(err))
	}
	failpoint.Hit("store.member.removed")
	return nil
}
