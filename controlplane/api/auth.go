package api

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"buf.build/go/protovalidate"

	"github.com/ztmesh/ztmesh/failpoint"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// Metadata of forwarded calls: who called, and from which address. Believed
// only on servers made by Internal, where every caller is a server of this
// cluster or this process.
const (
	metaPrincipal = "zt-principal"
	metaAddress   = "zt-address"
	// metaAnswered is the trailer by which the leader says that an error is its
	// own answer.
	metaAnswered = "zt-answered"
)

// call is what the door knows of one call.
type call struct {
	principal Principal
	address   string       // the IP address that the call came from
	method    string       // its full name
	admin     *logv1.Admin // what the log says of an admin; nil for others
	forwarded bool         // by another server of the cluster
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// may refuses unless the caller, an admin, may by this state change a namespace.
// Handlers ask it of the state that they act on: rights may have gone since the
// door looked.
func (s *Server) may(ctx context.Context, st *state.State, namespace string) error {
	c := callOf(ctx)
	a, ok := st.Admin(c.principal.Name)
	if ok && (a.Role == "admin" || a.Role == "editor" && slices.Contains(a.Namespaces, namespace)) {
		return nil
	}
	return refuse(codes.PermissionDenied, "%s may not change namespace %q; ask an admin for role editor of it", c.principal, namespace)
}

// external finds out who calls from the client certificate.
func (s *Server) external(ctx context.Context) (call, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return call{}, refuse(codes.Unauthenticated, "no connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return call{}, refuse(codes.Unauthenticated, "no TLS")
	}
	principal, err := s.cfg.Identify(info.State)
	if err != nil {
		return call{}, refuse(codes.Unauthenticated, "client certificate refused")
	}
	return call{principal: principal, address: hostOf(p.Addr)}, nil
}

// internal believes what another server, or this process, says of the caller.
// Without a principal the caller is that server itself.
func (s *Server) internal(ctx context.Context) (call, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	named := md.Get(metaPrincipal)
	if len(named) == 0 {
		return s.external(ctx)
	}
	c := call{principal: principalOf(named[0]), forwarded: ofCluster(ctx)}
	if a := md.Get(metaAddress); len(a) == 1 {
		c.address = a[0]
	}
	return c, nil
}

// ofCluster tells whether a call came over the cluster port, and not from this process.
func ofCluster(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	_, ok = p.AuthInfo.(credentials.TLSInfo)
	return ok
}

func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return ""
	}
	return host
}

// authorize judges a call by the table.
func (s *Server) authorize(c call, fullMethod string) (call, method, error) {
	m, known := methods[fullMethod]
	if !known {
		return c, m, refuse(codes.PermissionDenied, "unknown method")
	}
	if m.caller == RoleNobody {
		return c, m, nil
	}
	if c.principal.Role == RoleNobody {
		return c, m, refuse(codes.Unauthenticated, "a client certificate is required")
	}
	if c.principal.Role != m.caller {
		return c, m, refuse(codes.PermissionDenied, "%s may not call this", c.principal)
	}
	if m.caller == RoleAdmin {
		admin, ok := s.cfg.Log.State().Admin(c.principal.Name)
		if !ok {
			return c, m, refuse(codes.PermissionDenied, "%s has no role here", c.principal)
		}
		c.admin = admin
		if !m.right.of(admin.GetRole()) {
			return c, m, refuse(codes.PermissionDenied, "%s is %s; this needs more", c.principal, admin.GetRole())
		}
	}
	return c, m, nil
}

type identify func(context.Context) (call, error)

// unary is the door of every unary call: who is it, may it, is the request well
// formed, and does the leader have to answer.
func (s *Server) unary(who identify) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		err = guard(func() (err error) {
			resp, err = s.admit(ctx, who, req, info.FullMethod, handler)
			return err
		})
		if err != nil {
			return nil, s.answer(ctx, who, info.FullMethod, withKey(req, err))
		}
		return resp, nil
	}
}

// guard makes a panic of one call that call's error: what it worked on is
// immutable or its own, and the other callers are not to be cut off.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

func (s *Server) admit(ctx context.Context, who identify, req any, fullMethod string, handler grpc.UnaryHandler) (any, error) {
	c, err := who(ctx)
	if err != nil {
		return nil, err
	}
	if c.forwarded {
		// No error: there is no call that has sent its trailer already.
		_ = grpc.SetTrailer(ctx, metadata.Pairs(metaAnswered, "1"))
	}
	m, known := methods[fullMethod]
	forward := known && m.leader && !s.cfg.Log.IsLeader() && !wantsStale(req)
	if forward && c.forwarded {
		return nil, ErrNoLeader // leadership moved while the call was under way
	}
	// A follower's own state may lag behind: for what is forwarded it checks
	// the certificate only, and the leader judges the right.
	judged, _, err := s.authorize(c, fullMethod)
	if err != nil && !(forward && c.principal.Role == m.caller) {
		return nil, err
	}
	if msg, ok := req.(proto.Message); ok {
		if err := protovalidate.Validate(msg); err != nil {
			return nil, refuse(codes.InvalidArgument, "%s", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.deadline(req))
	defer cancel()
	judged.method = fullMethod
	leave, err := s.limits.enter(judged)
	if err != nil {
		return nil, err
	}
	defer leave()
	if forward {
		return s.forward(ctx, c, m, fullMethod, req.(proto.Message))
	}
	ctx = context.WithValue(ctx, callKey{}, judged)
	if m.record == recordedBefore {
		if err := s.recordAccess(ctx, req); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}

// forMiB is how much longer a call may take for each MiB of files.
const forMiB = 3 * time.Second

// deadline is how long a call may take.
func (s *Server) deadline(req any) time.Duration {
	size := 0
	if r, ok := req.(*ztv1.ApplyRequest); ok {
		for _, f := range r.GetFiles() {
			size += len(f.GetContent())
		}
	}
	return s.cfg.Deadline + time.Duration(size>>20)*forMiB
}

// stream is the door of every streaming call. Streams are answered by the
// server that was asked; the one exception is Backup.
func (s *Server) stream(who identify) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if s.cfg.Passthrough[info.FullMethod] {
			err := handler(srv, ss) // judged by its own service: Envoy's discovery
			s.noteRefusal(ss.Context(), who, info.FullMethod, err)
			return err
		}
		err := guard(func() error {
			c, err := who(ss.Context())
			if err != nil {
				return err
			}
			row := methods[info.FullMethod]
			forward := row.leader && !s.cfg.Log.IsLeader()
			if forward && c.forwarded {
				return ErrNoLeader
			}
			judged, m, err := s.authorize(c, info.FullMethod)
			if err != nil && !(forward && c.principal.Role == row.caller) {
				return err
			}
			if forward { // the leader judges the right
				return s.forwardBackup(c, ss)
			}
			judged.method = info.FullMethod
			leave, err := s.limits.enter(judged)
			if err != nil {
				return err
			}
			defer leave()
			ctx := context.WithValue(ss.Context(), callKey{}, judged)
			if m.record == recordedBefore {
				if err := s.recordAccess(ctx, nil); err != nil {
					return err
				}
			}
			return handler(srv, &callStream{ss, ctx, func() error {
				_, _, err := s.authorize(c, info.FullMethod)
				return err
			}})
		})
		if err != nil {
			return s.answer(ss.Context(), who, info.FullMethod, err)
		}
		return nil
	}
}

// callStream judges its caller again before each message: rights that were taken
// away end the streams that they had opened.
type callStream struct {
	grpc.ServerStream
	ctx   context.Context
	judge func() error
}

func (c *callStream) Context() context.Context { return c.ctx }

func (c *callStream) SendMsg(m any) error {
	if err := c.judge(); err != nil {
		return err
	}
	return c.ServerStream.SendMsg(m)
}

// answer turns an error into what the caller may know, counts it, puts it on record if
// it is a refusal, and logs what must stay inside.
func (s *Server) answer(ctx context.Context, who identify, fullMethod string, err error) error {
	s.noteRefusal(ctx, who, fullMethod, err)
	st, inside := toStatus(err)
	s.metrics.calls.WithLabelValues(st.Code().String()).Inc()
	if inside {
		s.cfg.Logger.Error("call failed", "method", fullMethod, "error", err)
	}
	return st.Err()
}

// noteRefusal puts on record that a call was refused, on the server that its caller
// spoke to: one that was forwarded is noted where it came in.
func (s *Server) noteRefusal(ctx context.Context, who identify, fullMethod string, err error) {
	if err == nil {
		return
	}
	st, _ := toStatus(err)
	if code := st.Code(); code != codes.Unauthenticated && code != codes.PermissionDenied && st.Message() != errRequest.Error() {
		return
	}
	if s.refusals.Allow() {
		s.cfg.Logger.Warn("call refused", "method", fullMethod, "reason", st.Message())
	}
	c, unknown := who(ctx)
	if c.forwarded {
		return
	}
	if p, ok := peer.FromContext(ctx); ok && unknown != nil {
		c.address = hostOf(p.Addr)
	}
	name := c.principal.String()
	if c.principal.Role != RoleNobody {
		name = s.spiffeID(c.principal)
	}
	s.cfg.Refusals.Refused(name, fullMethod, c.address, st.Code(), st.Message())
}

func wantsStale(req any) bool {
	r, ok := req.(interface{ GetStale() bool })
	return ok && r.GetStale()
}

// forward asks the leader to answer, on behalf of the caller. An error that is not
// the leader's own, but the connection's, stays inside; what the caller learns
// is whether the call may have taken effect.
func (s *Server) forward(ctx context.Context, c call, m method, fullMethod string, req proto.Message) (proto.Message, error) {
	conn, err := s.cfg.Cluster.LeaderConn()
	if err != nil {
		return nil, err
	}
	reply, err := newReply(fullMethod)
	if err != nil {
		return nil, err
	}
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(metaPrincipal, c.principal.String(), metaAddress, c.address))
	var (
		trailer metadata.MD
		leader  peer.Peer // without an address if the call was never sent
	)
	err = conn.Invoke(ctx, fullMethod, req, reply, grpc.Trailer(&trailer), grpc.Peer(&leader),
		grpc.MaxCallSendMsgSize(maxApplyBytes), grpc.MaxCallRecvMsgSize(maxApplyBytes))
	switch {
	case err == nil:
		failpoint.Hit("api.forward.answered")
		return reply, nil
	case len(trailer.Get(metaAnswered)) > 0:
		return nil, err
	case leader.Addr == nil, m.right == rightViewer:
		return nil, fmt.Errorf("%w: %w", ErrNoLeader, err)
	default:
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
}

func newReply(fullMethod string) (proto.Message, error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(fullMethod, "/"), "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, err
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.(protoreflect.MethodDescriptor).Output().FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}
