package api

import (
	"context"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"buf.build/go/protovalidate"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

// Metadata of forwarded calls: who called, and from which address. Believed
// only on servers made by Internal, where every caller is a server of this
// cluster or this process.
const (
	metaPrincipal = "zt-principal"
	metaAddress   = "zt-address"
)

// call is what the door knows of one call.
type call struct {
	principal Principal
	address   string       // the IP address that the call came from
	admin     *logv1.Admin // what the log says of an admin; nil for others
	forwarded bool
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// may refuses unless the caller may change this namespace.
func (c call) may(namespace string) error {
	if c.admin.GetRole() == "admin" {
		return nil
	}
	for _, ns := range c.admin.GetNamespaces() {
		if ns == namespace && c.admin.GetRole() == "editor" {
			return nil
		}
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
	role, name, _ := strings.Cut(named[0], "/")
	c := call{principal: Principal{Role: Role(role), Name: name}, forwarded: true}
	if role == "nobody" {
		c.principal = Principal{}
	}
	if a := md.Get(metaAddress); len(a) == 1 {
		c.address = a[0]
	}
	return c, nil
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
		if m.right == rightAdmin && admin.GetRole() != "admin" ||
			m.right == rightEditor && admin.GetRole() == "viewer" {
			return c, m, refuse(codes.PermissionDenied, "%s is %s; this needs more", c.principal, admin.GetRole())
		}
	}
	return c, m, nil
}

type identify func(context.Context) (call, error)

// unary is the door of every unary call: who is it, may it, is the request well
// formed, and does the leader have to answer.
func (s *Server) unary(who identify) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		resp, err := s.admit(ctx, who, req, info.FullMethod, handler)
		if err != nil {
			return nil, s.answer(info.FullMethod, err)
		}
		return resp, nil
	}
}

func (s *Server) admit(ctx context.Context, who identify, req any, fullMethod string, handler grpc.UnaryHandler) (any, error) {
	c, err := who(ctx)
	if err != nil {
		return nil, err
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
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Deadline)
	defer cancel()
	if forward {
		return s.forward(ctx, c, fullMethod, req.(proto.Message))
	}
	return handler(context.WithValue(ctx, callKey{}, judged), req)
}

// stream is the door of every streaming call. Streams are answered by the
// server that was asked.
func (s *Server) stream(who identify) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if s.cfg.Passthrough[info.FullMethod] {
			return handler(srv, ss) // judged by its own service: Envoy's discovery
		}
		c, err := who(ss.Context())
		if err == nil {
			c, _, err = s.authorize(c, info.FullMethod)
		}
		if err == nil {
			err = handler(srv, &callStream{ss, context.WithValue(ss.Context(), callKey{}, c)})
		}
		if err != nil {
			return s.answer(info.FullMethod, err)
		}
		return nil
	}
}

type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (c *callStream) Context() context.Context { return c.ctx }

// answer turns an error into what the caller may know, counts it, and logs what
// must stay inside.
func (s *Server) answer(fullMethod string, err error) error {
	st, inside := toStatus(err)
	s.metrics.calls.WithLabelValues(st.Code().String()).Inc()
	if inside {
		s.cfg.Logger.Error("call failed", "method", fullMethod, "error", err)
	}
	switch st.Code() {
	case codes.Unauthenticated, codes.PermissionDenied:
		if s.refusals.Allow() {
			s.cfg.Logger.Warn("call refused", "method", fullMethod, "reason", st.Message())
		}
	}
	return st.Err()
}

func wantsStale(req any) bool {
	r, ok := req.(interface{ GetStale() bool })
	return ok && r.GetStale()
}

// forward asks the leader to answer, on behalf of the caller.
func (s *Server) forward(ctx context.Context, c call, fullMethod string, req proto.Message) (proto.Message, error) {
	conn, err := s.cfg.Cluster.LeaderConn()
	if err != nil {
		return nil, err
	}
	reply, err := newReply(fullMethod)
	if err != nil {
		return nil, err
	}
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(metaPrincipal, c.principal.String(), metaAddress, c.address))
	if err := conn.Invoke(ctx, fullMethod, req, reply, grpc.MaxCallSendMsgSize(maxApplyBytes), grpc.MaxCallRecvMsgSize(maxApplyBytes)); err != nil {
		return nil, err
	}
	return reply, nil
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
