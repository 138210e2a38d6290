// Package api is the door of the control plane: what people, pipelines, proxies
// and other servers may ask, as gRPC and as REST. It owns authorization (one
// table), validation before anything is proposed, and the mapping of errors to
// codes. It refuses to know how things are stored, streamed or signed: it asks
// small interfaces of its own for that.
//
// A mutation is validated here, on the leader, against the newest proposed state, one
// at a time, without waiting for those before it to be agreed on; the state machine
// checks that they were, and that nothing else came in between, and the applier
// tries again if not. Other servers forward such calls.
package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/controlplane/view"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// maxApplyBytes bounds an apply, maxCallBytes every other call.
const (
	maxApplyBytes = 64 << 20
	maxCallBytes  = 1 << 20
)

// Log is what was agreed, and the way to agree on more.
type Log interface {
	// State is the newest state that this server has applied.
	State() *state.State
	// Propose commits an entry. Its errors are ErrNoLeader and ErrUnknown; the
	// answer of the state machine is in the result.
	Propose(context.Context, *logv1.Entry) (state.Result, error)
	// Submit hands an entry to the log and does not wait for its outcome. Those of
	// one caller are taken in the order of its calls. Its errors are ErrNoLeader
	// and ErrTooLarge: the entry has no effect.
	Submit(context.Context, *logv1.Entry) (Submitted, error)
	// Barrier returns when State is at least as new as any answer given before
	// the call; ErrNoLeader where this server cannot know.
	Barrier(context.Context) error
	// Watch calls f with the newest state whenever it changed, until ctx ends
	// or f fails.
	Watch(ctx context.Context, f func(*state.State, state.Changes) error) error
	IsLeader() bool
	// Full says whether the disk of this server has no room for what adds.
	Full() bool
	// HeardLeader is when this server last heard a leader; now on the leader.
	HeardLeader() time.Time
}

// Submitted is an entry that the log was given. Any number of goroutines may wait
// for its outcome.
type Submitted interface {
	// Wait returns what Propose does.
	Wait(context.Context) (state.Result, error)
	// Done is closed when the outcome is known: what the entry has changed is in
	// the State that is read then.
	Done() <-chan struct{}
}

// Cluster is the other servers.
type Cluster interface {
	// LeaderConn is a connection to the leader's cluster port; ErrNoLeader
	// when there is none to ask. The Cluster owns it.
	LeaderConn() (grpc.ClientConnInterface, error)
	Members() []*ztv1.Member
	// Report is where this server stands.
	Report() *ztv1.GetReportResponse
	// DiskFull is whether the disk here has no room for what adds to the state;
	// Proxies.Watch calls after each change of it.
	DiskFull() bool
	// What follows only the leader can do. Add makes a server a member without a
	// vote, or changes the address of one, and leaves the vote that it has.
	Add(ctx context.Context, id, address string) error
	Promote(ctx context.Context, id string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// Transfer hands leadership to a voter.
	Transfer(ctx context.Context, id string) error
	// Heard notes the newest format of entries that a member says it reads. Lowest is
	// that of the member that reads least, and Readable a *state.FormatError if one
	// does not read what a feature needs.
	Heard(id string, format uint32)
	Lowest() uint32
	Readable(state.Feature) error
}

// Proxies is every connected proxy, here and on the other servers.
type Proxies interface {
	// Of is the proxy of an instance as the server that holds its newest stream has
	// it, and the revision of that server; nil: no server that can be reached holds it.
	// It is not to be changed.
	Of(instance string) (h *ztv1.HeldProxy, revision uint64)
	// Unreachable are the ids of the servers that do not answer.
	Unreachable() []string
	// Cuts are how many open connections of a caller the proxy of an instance has cut
	// on a port, as reported after a time, and when the last one of them ended.
	Cuts(instance, caller, port string, since time.Time) (connections uint32, last time.Time)
	// Changed is closed when the answers of Of may have changed since the call.
	Changed() <-chan struct{}
	// Tell calls f with what this server holds, and after each change again, until ctx
	// ends or f fails; with deltas, with what has changed.
	Tell(ctx context.Context, deltas bool, f func(*ztv1.WatchProxiesResponse) error) error
	// Confirm asks the agent of an instance what its Envoy works by, again and again,
	// until ctx ends, or allowed, ask or answer fails.
	Confirm(ctx context.Context, instance string, a Agent) error
}

// Agent is an agent that is asked.
type Agent interface {
	// Allowed is nil as long as it speaks for its instance.
	Allowed() error
	// Ask and Answer return when ctx ends, with its cause; the call is to end then.
	Ask(context.Context, *ztv1.ConfirmResponse) error
	Answer(context.Context) (*ztv1.ConfirmRequest, error)
}

// Differences is what proxies have reported of requests whose verdict shadow
// grants, or a proposed spec, would change.
type Differences interface {
	// Local is what the proxies connected to this server have reported; dropped
	// counts what was not kept, for want of room.
	Local() (differences []*ztv1.ShadowDifference, dropped uint64)
	// All is that of every server, alike ones added up, most frequent first;
	// unreachable are ids of servers that did not answer.
	All(context.Context) (differences []*ztv1.ShadowDifference, dropped uint64, unreachable []string)
}

// Audit is the audit log on this server's disk, and its issuance journal.
type Audit interface {
	// ReadAudit calls f with the records from a sequence number on, oldest first.
	ReadAudit(from uint64, f func(*state.Audit) error) error
	// ReadAuditBack calls f with those before one (0: all), newest first, until f
	// returns false.
	ReadAuditBack(before uint64, f func(*state.Audit) bool) error
	// WatchAudit is ReadAudit, and goes on with new records until ctx ends.
	WatchAudit(ctx context.Context, from uint64, f func(*state.Audit) error) error
	// Kept is the last record that was let go of, and what should be here and is not.
	Kept() (letGo uint64, missing []*ztv1.AuditRange)
	// Journal calls line with the lines of the issuance journal, and before that begin
	// with how many were let go of and the hash of the last.
	Journal(begin func(letGo uint64, hash string) error, line func([]byte) error) error
	// JournalRefused is why this server signs nothing; nil: it does.
	JournalRefused() error
}

// Refusals is the record of refused calls on this server's disk.
type Refusals interface {
	// Refused counts one. It never waits for the disk.
	Refused(who, method, from string, code codes.Code, reason string)
	// ReadRefusals calls line with each line that is kept, oldest first, and before
	// that begin with how many lines were before them, and the hash of the last.
	ReadRefusals(begin func(lines uint64, hash string) error, line func([]byte) error) error
}

// Keys are the key-encryption keys of the servers. They are named by their ids.
type Keys interface {
	// Current is the id of the key that seals the root key of a state.
	Current(*state.State) string
	// Local is what this server has; with reload, its source is asked first.
	Local(ctx context.Context, reload bool) *ztv1.ServerKeys
	// Servers is Local of every server, sorted by id; asked now.
	Servers(ctx context.Context, reload bool) []*ztv1.ServerKeys
	// Make makes a key and puts it into the key file of this server.
	Make(context.Context) (id string, err error)
	// Take puts a key into it, and Forget takes one out, unless something here is sealed
	// with it. Where keys are in no file, Forget does nothing. The text of their errors
	// is for an admin.
	Take(ctx context.Context, id string, key []byte) error
	Forget(ctx context.Context, id string) error
	// Hand has another server Take a key that is here, and ForgetAt any server Forget
	// one. They return what that server has then.
	Hand(ctx context.Context, server, id string) (*ztv1.ServerKeys, error)
	ForgetAt(ctx context.Context, server, id string) (*ztv1.ServerKeys, error)
	// Reseal seals the root key of a state with another key that is here. replaces is
	// the SHA-256 of what it is sealed in now.
	Reseal(st *state.State, id string) (sealed, replaces []byte, err error)
}

// Issuer signs. A CSR gives its key and nothing else.
type Issuer interface {
	TrustDomain() string
	Roots() [][]byte
	Node(csr []byte, instance string) (chain [][]byte, notAfter time.Time, err error)
	Workload(csr []byte, namespace, name string, ttl time.Duration) (chain [][]byte, notAfter time.Time, err error)
	Admin(csr []byte, name string) (chain [][]byte, notAfter time.Time, err error)
	Intermediate(csr []byte, server string) (certificate []byte, err error)
	// KeyHash is the SHA-256 of the CSR's SPKI, after its signature was checked.
	KeyHash(csr []byte) ([]byte, error)
	// KeyFor is for a joining server only, which has the keys of these ids. key is the
	// cluster's, where it has none; secret. ErrOtherKey: it may not join so.
	KeyFor(have []string) (id string, key []byte, err error)
	// NewToken returns the token as shown once, its id and the hash to store. The same
	// seed gives the same token, unless it is "".
	NewToken(seed string) (token, id string, secretHash []byte, err error)
	// ParseToken returns what a token says; an error for every malformed one.
	ParseToken(token string) (id string, secretHash []byte, err error)
}

// Config is what a Server needs. All fields without a stated default are
// required.
type Config struct {
	ServerID    string
	Version     string
	Log         Log
	Cluster     Cluster
	Proxies     Proxies
	Differences Differences
	Issuer      Issuer
	Backup      Backup
	Keys        Keys
	Audit       Audit
	Refusals    Refusals
	Views       *view.Cache
	// Identify reads the principal out of a finished handshake. A connection
	// without a client certificate is nobody, without an error.
	Identify func(tls.ConnectionState) (Principal, error)
	// Passthrough are streaming methods that other services on the same port
	// judge themselves.
	Passthrough map[string]bool
	Logger      *slog.Logger
	Metrics     prometheus.Registerer
	Now         func() time.Time
	// Deadline of a unary call; an apply has 3 s more for each MiB of files. Default 30 s.
	Deadline time.Duration
	// Handshake is how long a connection may stay silent before it has said who
	// it is. Default 10 s.
	Handshake time.Duration
}

// Server implements the three services.
type Server struct {
	ztv1.UnimplementedAdminServiceServer
	ztv1.UnimplementedNodeServiceServer
	ztv1.UnimplementedPeerServiceServer

	cfg     Config
	applier *applier
	// membership makes one of each look at the members and change of them.
	membership sync.Mutex
	limits     *limits
	refusals   *rate.Limiter // of log lines about refused calls
	barriers   barriers      // before a token is refused
	metrics    metrics
}

type metrics struct {
	calls   *prometheus.CounterVec // by code, of failed calls
	tokens  prometheus.Counter     // refused join tokens
	applies prometheus.Counter
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.Deadline == 0 {
		cfg.Deadline = 30 * time.Second
	}
	if cfg.Handshake == 0 {
		cfg.Handshake = 10 * time.Second
	}
	s := &Server{
		cfg:      cfg,
		applier:  newApplier(),
		refusals: rate.NewLimiter(1, 20),
		limits:   newLimits(cfg.Now),
		metrics: metrics{
			calls: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "zt_api_failed_calls_total", Help: "Calls answered with an error, by gRPC code.",
			}, []string{"code"}),
			tokens: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "zt_api_refused_tokens_total", Help: "Join tokens that were wrong, expired, used or bound to another workload.",
			}),
			applies: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "zt_api_applies_total", Help: "Applies, blocks and unblocks that made a revision.",
			}),
		},
	}
	cfg.Metrics.MustRegister(s.metrics.calls, s.metrics.tokens, s.metrics.applies)
	return s
}

// propose commits one operation on behalf of the caller and unites the two
// kinds of refusal: not agreed, and agreed on but refused by the state.
func (s *Server) propose(ctx context.Context, e *logv1.Entry) (state.Result, error) {
	s.sign(ctx, e)
	r, err := s.cfg.Log.Propose(ctx, e)
	if err != nil {
		return r, err
	}
	return r, r.Err
}

// sign notes in an entry who asks for it, from where and by which method.
func (s *Server) sign(ctx context.Context, e *logv1.Entry) {
	c := callOf(ctx)
	e.Who = c.principal.String()
	if sequence, _ := s.cfg.Log.State().AuditHead(); sequence == 0 && s.cfg.Cluster.Readable(state.AuditChain) != nil {
		return // a member of an older version would not record it
	}
	e.From, e.Method = c.address, c.method
	if c.principal.Role != RoleNobody {
		e.SpiffeId = s.spiffeID(c.principal)
	}
	e.Format = state.FormatOf(e)
}

func (s *Server) spiffeID(p Principal) string {
	return "spiffe://control." + s.cfg.Issuer.TrustDomain() + "/" + p.String()
}
