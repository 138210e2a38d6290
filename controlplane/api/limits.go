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

	// maxEnrollingFrom is how many of them may be from one address: who knows no token
	// keeps nobody else waiting.
	maxEnrollingFrom = 32

	// How often an instance may move, after the first placeBurst times: each is an entry
	// of the log, and a record that takes the place of an older one, and is told to all
	// callers.
	placeEvery = 30 * time.Second
	placeBurst = 10
)

// limits are how often nodes may call, so that none of them, and no crowd of those that
// enrol, takes the server from the others.
type limits struct {
	now func() time.Time

	mu        sync.Mutex // guards the following
	nodes     map[string]*rate.Limiter
	places    map[string]*rate.Limiter
	enrolling int
	from      map[string]int // of these, by address
}

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, nodes: map[string]*rate.Limiter{}, places: map[string]*rate.Limiter{}, from: map[string]int{}}
}

// enter admits a call, or refuses it with a hint when to ask again. The caller calls
// the returned function when the call is over.
func (l *limits) enter(c call) (leave func(), err error) {
	if c.forwarded {
		return func() {}, nil // the server that was asked has looked
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.method == ztv1.NodeService_Enrol_FullMethodName || c.method == ztv1.NodeService_EnrolServer_FullMethodName {
		return l.enrol(c.address)
	}
	if c.principal.Role != RoleNode {
		return func() {}, nil
	}
	if !l.allow(l.nodes, c.principal.Name, nodeRate, nodeBurst) {
		return nil, askLater("this instance calls too often", 5*time.Second)
	}
	return func() {}, nil
}

// enrol is enter of who has no certificate yet. mu is held.
func (l *limits) enrol(address string) (leave func(), err error) {
	if l.enrolling >= maxEnrolling || l.from[address] >= maxEnrollingFrom {
		return nil, askLater("too many instances enrol at once", time.Second)
	}
	l.enrolling++
	l.from[address]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.enrolling--
		if l.from[address]--; l.from[address] == 0 {
			delete(l.from, address)
		}
	}, nil
}

// place admits a move of an instance, on the leader alone: forwarded or not.
func (l *limits) place(instance string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.allow(l.places, instance, rate.Every(placeEvery), placeBurst) {
		return askLater("this instance moves too often", placeEvery/2)
	}
	return nil
}

// allow counts what an instance does, and tells whether it is not too much. mu is held.
func (l *limits) allow(counted map[string]*rate.Limiter, instance string, most rate.Limit, burst int) bool {
	now := l.now()
	calls := counted[instance]
	if calls == nil {
		if len(counted) >= maxNodes { // those that have done nothing for a while are dropped
			for name, c := range counted {
				if c.TokensAt(now) >= float64(burst) {
					delete(counted, name)
				}
			}
		}
		calls = rate.NewLimiter(most, burst)
		counted[instance] = calls
	}
	return calls.AllowN(now, 1)
}

// askLater is a refusal that says when to ask again: at another moment than all others.
func askLater(why string, after time.Duration) error {
	after += rand.N(2 * after)
	return &refusal{
		code: codes.ResourceExhausted, message: why + "; nothing was changed: ask again later",
		details: []protoadapt.MessageV1{protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})},
	}
}
