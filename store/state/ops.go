package state

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// adminRole is the role that somebody must always have.
const adminRole = "admin"

// applyPutToken takes the occasion to drop the tokens that have expired. It does
// not ask for the workload's document: a token may come before it.
func (s *State) applyPutToken(t *logv1.Token) Result {
	if t.GetId() == "" || len(t.GetSecretHash()) != sha256.Size || t.GetServer() == (t.GetWorkload() != "") || !laterThan(t.GetExpires(), s.when) {
		return Result{Err: fmt.Errorf("%w: token", ErrInvalid)}
	}
	tokens := s.tokens.Txn()
	for old := range values(s.tokens) {
		if s.expired(old) {
			tokens.Delete([]byte(old.GetId()))
		}
	}
	if _, taken := tokens.Insert([]byte(t.GetId()), t); taken {
		return Result{Err: ErrExists}
	}
	s.tokens = tokens.Commit()
	return Result{Changed: Changes{Tokens: true}}
}

func (s *State) applyDeleteToken(id string) Result {
	tokens, _, had := s.tokens.Delete([]byte(id))
	if !had {
		return Result{Err: ErrNotFound}
	}
	s.tokens = tokens
	return Result{Changed: Changes{Tokens: true}}
}

// applyRedeem uses a token up for one instance or one server.
func (s *State) applyRedeem(op *logv1.Redeem) Result {
	in, server := op.GetInstance(), op.GetServer()
	switch {
	case (in == nil) == (server == nil):
		return Result{Err: fmt.Errorf("%w: redeem for an instance or a server", ErrInvalid)}
	case in != nil && (in.GetId() == "" || in.GetWorkload() == "" || len(in.GetKeyHash()) == 0):
		return Result{Err: fmt.Errorf("%w: instance", ErrInvalid)}
	case server != nil && server.GetId() == "":
		return Result{Err: fmt.Errorf("%w: server", ErrInvalid)}
	}
	t, ok := s.Token(op.GetId())
	if !ok {
		if in != nil && s.enrolled(in) && s.enrolledBy(op) {
			return Result{Replayed: true}
		}
		return Result{Err: ErrTokenInvalid}
	}
	if !redeems(t, op) {
		return Result{Err: ErrTokenInvalid}
	}
	c := Changes{Tokens: true}
	if in != nil {
		if _, taken := s.Instance(in.GetId()); taken && !s.enrolled(in) {
			return Result{Err: ErrTokenInvalid}
		}
		if !s.workloadExists(in.GetWorkload()) {
			return Result{Err: fmt.Errorf("workload %s: %w", in.GetWorkload(), ErrNotFound)}
		}
		in = proto.CloneOf(in)
		in.Enrolled, in.Withdrawn = timestamppb.New(s.when), false
		in.Redeemed = &logv1.Redeemed{Id: t.GetId(), SecretHash: t.GetSecretHash(), Expires: t.GetExpires()}
		s.putInstance(in)
		c.InstanceIDs = []string{in.GetId()}
	} else {
		if _, taken := s.Server(server.GetId()); taken {
			return Result{Err: ErrTokenInvalid}
		}
		s.servers, _, _ = s.servers.Insert([]byte(server.GetId()), server)
		c.Servers = true
	}
	s.tokens, _, _ = s.tokens.Delete([]byte(op.GetId()))
	return Result{Changed: c}
}

// redeems tells whether a live token may be used so. The secret's hash is
// compared in constant time.
func redeems(t *logv1.Token, op *logv1.Redeem) bool {
	same := subtle.ConstantTimeCompare(t.GetSecretHash(), op.GetSecretHash()) == 1
	if op.GetServer() != nil {
		return same && t.GetServer()
	}
	return same && !t.GetServer() && t.GetWorkload() == op.GetInstance().GetWorkload()
}

// enrolled tells whether the instance is there already, for the same workload
// and with the same key: an enrolment whose answer was lost is asked for again
// when its token is used up, and only the holder of that key can make use of
// the answer.
func (s *State) enrolled(in *logv1.Instance) bool {
	old, ok := s.Instance(in.GetId())
	return ok && old.GetWorkload() == in.GetWorkload() && bytes.Equal(old.GetKeyHash(), in.GetKeyHash())
}

// enrolledBy tells whether the instance enrolled by this very token, and the token
// would not have ended by now: who has no more than the key of an instance gets no
// certificate by a retry.
func (s *State) enrolledBy(op *logv1.Redeem) bool {
	old, ok := s.Instance(op.GetInstance().GetId())
	by := old.GetRedeemed()
	return ok && by.GetId() == op.GetId() &&
		subtle.ConstantTimeCompare(by.GetSecretHash(), op.GetSecretHash()) == 1 &&
		laterThan(by.GetExpires(), s.when)
}

func (s *State) workloadExists(workload string) bool {
	ns, name, _ := bytes.Cut([]byte(workload), []byte("/"))
	_, ok := s.Document(Key{Kind: workloadKind, Namespace: string(ns), Name: string(name)})
	return ok
}

func (s *State) putInstance(in *logv1.Instance) {
	s.instances, _, _ = s.instances.Insert([]byte(in.GetId()), in)
	s.members, _, _ = s.members.Insert(memberKey(in.GetWorkload(), in.GetId()), struct{}{})
}

func (s *State) removeInstance(id string) bool {
	instances, in, had := s.instances.Delete([]byte(id))
	if had {
		s.instances = instances
		s.members, _, _ = s.members.Delete(memberKey(in.GetWorkload(), id))
	}
	return had
}

// applyEndpoints withdraws first, then restores. Instances that are not there,
// or stand so already, are left out.
func (s *State) applyEndpoints(op *logv1.Endpoints) Result {
	var c Changes
	set := func(ids []string, withdrawn bool) {
		for _, id := range ids {
			in, ok := s.Instance(id)
			if !ok || in.GetWithdrawn() == withdrawn {
				continue
			}
			in = proto.CloneOf(in)
			in.Withdrawn = withdrawn
			s.putInstance(in)
			c.InstanceIDs = append(c.InstanceIDs, id)
		}
	}
	set(op.GetWithdraw(), true)
	set(op.GetRestore(), false)
	slices.Sort(c.InstanceIDs)
	c.InstanceIDs = slices.Compact(c.InstanceIDs)
	return Result{Changed: c}
}

func (s *State) applyPlace(op *logv1.Place) Result {
	in, ok := s.Instance(op.GetInstance())
	if !ok {
		return Result{Err: ErrNotFound}
	}
	if in.GetZone() == op.GetZone() && in.GetWeight() == op.GetWeight() {
		return Result{}
	}
	in = proto.CloneOf(in)
	in.Zone, in.Weight = op.GetZone(), op.GetWeight()
	s.putInstance(in)
	return Result{Changed: Changes{InstanceIDs: []string{in.GetId()}}}
}

func (s *State) applyDeregister(id string) Result {
	if !s.removeInstance(id) {
		return Result{Err: ErrNotFound}
	}
	return Result{Changed: Changes{InstanceIDs: []string{id}}}
}

func (s *State) applyPutAdmin(a *logv1.Admin) Result {
	if a.GetName() == "" || a.GetRole() == "" {
		return Result{Err: fmt.Errorf("%w: admin", ErrInvalid)}
	}
	if a.GetRole() != adminRole && s.lastAdmin(a.GetName()) {
		return Result{Err: ErrLastAdmin}
	}
	s.admins, _, _ = s.admins.Insert([]byte(a.GetName()), a)
	return Result{Changed: Changes{Admins: true}}
}

func (s *State) applyDeleteAdmin(name string) Result {
	admins, _, had := s.admins.Delete([]byte(name))
	switch {
	case !had:
		return Result{Err: ErrNotFound}
	case s.lastAdmin(name):
		return Result{Err: ErrLastAdmin}
	}
	s.admins = admins
	return Result{Changed: Changes{Admins: true}}
}

// lastAdmin tells whether nobody but name has the role admin.
func (s *State) lastAdmin(name string) bool {
	for a := range s.Admins() {
		if a.GetRole() == adminRole && a.GetName() != name {
			return false
		}
	}
	return true
}

func (s *State) applyPutServer(v *logv1.Server) Result {
	if v.GetId() == "" {
		return Result{Err: fmt.Errorf("%w: server", ErrInvalid)}
	}
	if old, ok := s.Server(v.GetId()); ok && proto.Equal(old, v) {
		return Result{}
	}
	s.servers, _, _ = s.servers.Insert([]byte(v.GetId()), v)
	return Result{Changed: Changes{Servers: true}}
}

func (s *State) applyDeleteServer(id string) Result {
	servers, _, had := s.servers.Delete([]byte(id))
	if !had {
		return Result{Err: ErrNotFound}
	}
	anchors, _, anchored := s.anchors.Delete([]byte(id))
	s.servers, s.anchors = servers, anchors
	return Result{Changed: Changes{Servers: true, Journals: anchored}}
}
