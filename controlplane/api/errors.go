package api

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// What a Log answers, beside the errors of package state.
var (
	// ErrNoLeader is returned when this server is not, or no longer, the leader
	// and nothing was proposed.
	ErrNoLeader = errors.New("no leader")
	// ErrUnknown is returned when a proposal may or may not take effect. Only a
	// retry with the same idempotency key tells.
	ErrUnknown = errors.New("outcome unknown")
	// ErrNotRecorded is returned when what was asked for could not be put on record;
	// nothing was done.
	ErrNotRecorded = errors.New("not recorded")
	// ErrFull is returned when the leader's disk has no room for what adds to the
	// state; nothing was proposed.
	ErrFull = errors.New("disk full")
	// ErrClock is returned while this server's clock is far from the others': it
	// proposes and signs nothing.
	ErrClock = errors.New("this server's clock is off")
	// ErrTooLarge is returned when an entry is larger than the log takes; nothing
	// was proposed.
	ErrTooLarge = errors.New("too large")
	// ErrOtherKey is returned when a joining server has not the key-encryption key
	// that it must bring. The text around it is meant for the caller.
	ErrOtherKey = errors.New("key-encryption key")
)

// refusal is an error whose text is meant for the caller.
type refusal struct {
	code    codes.Code
	message string
	details []protoadapt.MessageV1
}

func (r *refusal) Error() string { return r.message }

func refuse(code codes.Code, format string, args ...any) error {
	return &refusal{code: code, message: fmt.Sprintf(format, args...)}
}

// invalid carries every problem to the caller.
func invalid(problems spec.Problems) error {
	detail := &ztv1.Problems{Problems: problemsOf(problems)}
	n := "1 problem"
	if len(problems) != 1 {
		n = fmt.Sprintf("%d problems", len(problems))
	}
	return &refusal{
		code:    codes.InvalidArgument,
		message: n + "; nothing was applied",
		details: []protoadapt.MessageV1{protoadapt.MessageV1Of(detail)},
	}
}

func problemsOf(problems spec.Problems) (out []*ztv1.Problem) {
	for _, p := range problems {
		out = append(out, &ztv1.Problem{
			Code: p.Code, File: p.File, Line: uint32(p.Line), Column: uint32(p.Column),
			Path: p.Path, Message: p.Message, Hint: p.Hint,
		})
	}
	return out
}

// errRequest is what those hear whose request for a certificate is not what it must be:
// another's, changed, or for a key that is not used here.
var errRequest = refuse(codes.InvalidArgument, "certificate request refused")

// errTurnedAway is what a server hears that is not of the cluster.
var errTurnedAway = refuse(codes.PermissionDenied, "this server is not of the cluster any more; join again with a new token and a new data directory")

// TurnedAway tells whether an error is the cluster's answer to this server that it was
// removed.
func TurnedAway(err error) bool {
	return err != nil && status.Code(err) == codes.PermissionDenied && status.Convert(err).Message() == errTurnedAway.Error()
}

// toStatus is the one place that maps errors to codes. What is not mapped is
// Internal, and its text stays inside: the second value says whether to log it.
func toStatus(err error) (*status.Status, bool) {
	var r *refusal
	var stale *state.StaleBaseError
	var format *state.FormatError
	switch {
	case errors.As(err, &r):
		st := status.New(r.code, r.message)
		if len(r.details) > 0 {
			if with, derr := st.WithDetails(r.details...); derr == nil {
				st = with
			}
		}
		return st, false
	case errors.As(err, &stale):
		return detailed(codes.Aborted, "stale base: "+stale.Error(), &ztv1.StaleBase{Current: stale.Current}), false
	case errors.Is(err, ErrUnknown): // before what it was caused by
		detail := &ztv1.OutcomeUnknown{}
		if u := (*unknown)(nil); errors.As(err, &u) {
			detail.IdempotencyKey = u.key
		}
		return detailed(codes.DeadlineExceeded, "outcome unknown: the change may or may not take effect; ask again with the same idempotency key", detail), false
	case errors.Is(err, ErrNoLeader):
		return detailed(codes.Unavailable, "no leader: the cluster has no quorum now, or is electing; nothing was changed", &ztv1.NothingChanged{}), false
	case errors.Is(err, ErrClock):
		return detailed(codes.Unavailable, err.Error()+"; nothing was changed", &ztv1.NothingChanged{}), false
	case errors.As(err, &format):
		return status.New(codes.FailedPrecondition, format.Error()+"; upgrade it, or remove it (ztctl members); nothing was changed"), false
	case errors.Is(err, ErrNotRecorded):
		return detailed(codes.Unavailable, "the audit log of the leader cannot be written, so nothing was changed; its disk is full, or failing", &ztv1.NothingChanged{}), false
	case errors.Is(err, ErrFull):
		return status.New(codes.ResourceExhausted, "the disk of the leader is nearly full, and no other server can lead; nothing was changed: "+
			"make room in its data directory (ztctl members list shows which). Reads, removals, blocks and renewals go on"), false
	case errors.Is(err, ErrTooLarge):
		return status.New(codes.ResourceExhausted, "this is more than one revision can hold; apply it in parts"), false
	case errors.Is(err, ErrOtherKey):
		return status.New(codes.FailedPrecondition, err.Error()), false
	case errors.Is(err, state.ErrRootKeyReplaced):
		return status.New(codes.FailedPrecondition, "another rotation was faster; see ztctl key status"), false
	case errors.Is(err, state.ErrTokenInvalid):
		return status.New(codes.PermissionDenied, "token refused"), false
	case errors.Is(err, state.ErrKeyReused):
		return status.New(codes.AlreadyExists, "this idempotency key was used for another request"), false
	case errors.Is(err, state.ErrLastAdmin):
		return status.New(codes.FailedPrecondition, "this is the last admin with role admin; add another one first"), false
	case errors.Is(err, state.ErrNotFound):
		return status.New(codes.NotFound, "not found"), false
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, "deadline exceeded"), false
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "cancelled"), false
	}
	if st, ok := status.FromError(err); ok && err != nil {
		return st, false // already a status: a forwarded call's answer
	}
	return status.New(codes.Internal, "internal error; the server's log has it"), true
}

// detailed is a status with a detail for programs.
func detailed(code codes.Code, message string, detail proto.Message) *status.Status {
	st := status.New(code, message)
	if with, err := st.WithDetails(protoadapt.MessageV1Of(detail)); err == nil {
		return with
	}
	return st
}
