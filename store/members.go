package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/store/state"
)

// ErrNoMember is returned when a server is asked to lead, or to change its vote, that
// is not of the group, or has no vote to lead with. Nothing was done.
var ErrNoMember = errors.New("not a member that can do this")

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

// Member returns one server of the group, as Members does.
func (s *Store) Member(id string) (Member, bool) {
	for _, m := range s.Members() {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
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
	_, is := s.Member(s.cfg.ID)
	return is
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

// Follower is what a leader last heard from another server.
type Follower struct {
	Heard     time.Time // when it answered; by the leader's clock
	LastIndex uint64    // of the last entry in its log then
}

// Followers returns, by id, what this server has heard as leader. It is as old as
// Heard says: also that of an earlier reign is kept.
func (s *Store) Followers() map[string]Follower {
	s.transport.confirmMu.Lock()
	defer s.transport.confirmMu.Unlock()
	out := make(map[string]Follower, len(s.transport.followers))
	for id, f := range s.transport.followers {
		out[string(id)] = f
	}
	return out
}

// LastEntry returns index and term of the last entry here, whether it is committed or
// not: of two servers, the one with the larger term, or in one term the larger index,
// has what the other has that was acknowledged. Where the newest snapshot reaches
// further than the log, the entry is that snapshot's last.
func (s *Store) LastEntry() (index, term uint64) {
	stats := s.raft.Stats()
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(stats[name], 10, 64) // raft prints numbers
		return n
	}
	index, term = number("last_log_index"), number("last_log_term")
	if at := number("last_snapshot_index"); at > index {
		return at, number("last_snapshot_term")
	}
	return index, term
}

// AddNonvoter makes a server a member that gets the log and has no vote, or changes
// the address of one; a voter stays one. It returns when the change is committed,
// with the errors of Propose.
func (s *Store) AddNonvoter(ctx context.Context, id, address string) error {
	err := s.reconfigure(ctx, id, "add "+id, func(m Member, is bool) raft.IndexFuture {
		if is && m.Address == address {
			return nil
		}
		failpoint.Hit("store.member.add")
		return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, enqueueTimeout)
	})
	if err == nil {
		failpoint.Hit("store.member.added")
	}
	return err
}

// AddVoter makes a server a voting member, or changes the address of one. It does
// nothing if the server is a voter at that address already. It returns when the
// change is committed, with the errors of Propose.
func (s *Store) AddVoter(ctx context.Context, id, address string) error {
	return s.reconfigure(ctx, id, "add voter "+id, func(m Member, is bool) raft.IndexFuture {
		if is && m.Address == address && m.Voter {
			return nil
		}
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, enqueueTimeout)
	})
}

// DemoteVoter takes the vote of a server, which stays a member. It does nothing if
// it has none. It returns the errors of Propose, and ErrNoMember.
func (s *Store) DemoteVoter(ctx context.Context, id string) error {
	if _, is := s.Member(id); !is {
		return fmt.Errorf("demote %s: %w", id, ErrNoMember)
	}
	return s.reconfigure(ctx, id, "demote "+id, func(m Member, is bool) raft.IndexFuture {
		if !is || !m.Voter {
			return nil
		}
		return s.raft.DemoteVoter(raft.ServerID(id), 0, enqueueTimeout)
	})
}

// RemoveServer takes a server out of the group. It does nothing if it is not in
// it. A leader that removes itself steps down once that is committed, and its
// Wait returns ErrRemoved. It returns the errors of Propose.
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	err := s.reconfigure(ctx, id, "remove server "+id, func(_ Member, is bool) raft.IndexFuture {
		if !is {
			return nil
		}
		failpoint.Hit("store.member.remove")
		return s.raft.RemoveServer(raft.ServerID(id), 0, enqueueTimeout)
	})
	if err != nil && !errors.Is(err, ErrRemoved) {
		return err
	}
	failpoint.Hit("store.member.removed")
	return nil
}

// reconfigure makes one change of members; change returns nil if there is none to
// make, and what was asked for before is committed then.
func (s *Store) reconfigure(ctx context.Context, id, what string, change func(m Member, is bool) raft.IndexFuture) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	m, is := s.Member(id)
	f := change(m, is)
	if f == nil {
		return s.Barrier(ctx)
	}
	if err := s.await(ctx, f); err != nil {
		return fmt.Errorf("%s: %w", what, proposeError(err))
	}
	return nil
}

// TransferLeadership hands leadership to the most up-to-date other voter.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	return s.transferred(ctx, s.raft.LeadershipTransfer())
}

// TransferLeadershipTo hands leadership to a voter; ErrNoMember if it is none. It does
// nothing if that is this server.
func (s *Store) TransferLeadershipTo(ctx context.Context, id string) error {
	if _, err := s.leading(ctx); err != nil {
		return err
	}
	m, is := s.Member(id)
	switch {
	case !is || !m.Voter:
		return fmt.Errorf("transfer leadership to %s: %w", id, ErrNoMember)
	case id == s.cfg.ID:
		return nil
	}
	return s.transferred(ctx, s.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(m.Address)))
}

func (s *Store) transferred(ctx context.Context, f raft.Future) error {
	if err := s.await(ctx, f); err != nil {
		return fmt.Errorf("transfer leadership: %w", readError(err))
	}
	return nil
}

// formats is what members have said they read, since this server started: it is
// newer than what their records say, and there before an entry could hold it.
type formats struct {
	mu sync.Mutex        // guards of
	of map[string]uint32 // replaced, never changed: every proposal looks at it
}

func (f *formats) all() map[string]uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of
}

// Heard tells the store the newest format that a member reads, as it has just said.
func (s *Store) Heard(id string, format uint32) {
	s.heard.mu.Lock()
	defer s.heard.mu.Unlock()
	if s.heard.of[id] == format {
		return
	}
	of := maps.Clone(s.heard.of)
	of[id] = format
	s.heard.of = of
}

// Format is the newest format that this server reads.
func (s *Store) Format() uint32 { return s.cfg.Format }

// readable returns a *state.FormatError if a member, this one among them, does not
// read a format.
func (s *Store) readable(format uint32) error {
	if err := s.State().Readable(format, s.heard.all()); err != nil {
		return err
	}
	if format > s.cfg.Format { // it has no record yet
		return &state.FormatError{Needs: format, Reads: s.cfg.Format, Server: s.cfg.ID}
	}
	return nil
}

// Lowest is the newest format that every member reads.
func (s *Store) Lowest() uint32 {
	lowest, _ := s.State().Lowest(s.heard.all())
	return min(lowest, s.cfg.Format)
}

// Readable returns a *state.FormatError unless every member reads what a feature
// needs: the feature may then be used.
func (s *Store) Readable(f state.Feature) error { return s.readable(f.Format()) }
