package api

import (
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// What one server takes of nodes. An instance renews twice an hour; each renewal costs a
// signature and a line of the journal.
const (
	nodeRate     = 1 // calls in a second, after the first nodeBurst
	nodeBurst    = 20
	maxEnrolling = 64     // enrolments under way at the same time
	maxNodes     = 50_000 // instances of which calls are remembered
)

// limits are how often nodes may call, so that none of them, and no crowd of those that
// enrol, takes the server from the others.
type limits struct {
	now func() time.Time

	mu        sync.Mutex // guards the following
	nodes     map[string]*rate.Limiter
	enrolling int
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, nodes: map[string]*rate.Limiter{}}
}

// enter admits a call, or refuses it with a hint when to ask again. The caller calls
// the returned function when the call is over.
func (l *limits) enter(c call) (leave func(), err error) {
	if c.forwarded {
		return func() {}, nil // the server that was asked has looked
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.method == ztv1.NodeService_Enrol_FullMethodName {
		if l.enrolling >= maxEnrolling {
			return nil, askLater("too many instances enrol at once", time.Second)
		}
		l.enrolling++
		return func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.enrolling--
		}, nil
	}
	if c.principal.Role != RoleNode {
		return func() {}, nil
	}
	now := l.now()
	calls := l.nodes[c.principal.Name]
	if calls == nil {
		if len(l.nodes) >= maxNodes {
			l.forget(now)
		}
		calls = rate.NewLimiter(nodeRate, nodeBurst)
		l.nodes[c.principal.Name] = calls
	}
	if !calls.AllowN(now, 1) {
		return nil, askLater("this instance calls too often", 5*time.Second)
	}
	return func() {}, nil
}

// forget drops those that have not called for a while. mu is held.
func (l *limits) forget(now time.Time) {
	for name, calls := range l.nodes {
		if calls.TokensAt(now) >= nodeBurst {
			delete(l.nodes, name)
		}
	}
}

// askLater is a refusal that says when to ask again: at another moment than all others.
func askLater(why string, after time.Duration) error {
	after += rand.N(2 * after)
	return &refusal{
		code: codes.ResourceExhausted, message: why + "; nothing was changed: ask again later",
		details: []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})},
	}
}
