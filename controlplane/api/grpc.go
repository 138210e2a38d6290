package api

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Envoy pings its control plane every other second; grpc-go's default policy
// would answer with GOAWAY too_many_pings.
var enforcement = keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}

// Admin makes a gRPC server of the admin port, for messages of at most maxBytes.
func (s *Server) Admin(maxBytes int) *grpc.Server {
	g := s.server(s.external, maxBytes)
	ztv1.RegisterAdminServiceServer(g, s)
	return g
}

// Node makes the gRPC server of the node port; the caller adds the discovery
// service to it. Its connections are many, what one reads is small, and so is most of
// what it writes: a thousand that write at once each hold a buffer.
func (s *Server) Node(creds credentials.TransportCredentials) *grpc.Server {
	g := s.server(s.external, maxCallBytes, grpc.Creds(creds), grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(8<<10))
	ztv1.RegisterNodeServiceServer(g, s)
	return g
}

// Internal makes the gRPC server for forwarded calls: of other servers (creds
// has checked that the caller is one) or, without creds, of this process.
func (s *Server) Internal(opts ...grpc.ServerOption) *grpc.Server {
	g := s.server(s.internal, maxApplyBytes, opts...)
	ztv1.RegisterAdminServiceServer(g, s)
	ztv1.RegisterNodeServiceServer(g, s)
	ztv1.RegisterPeerServiceServer(g, s)
	return g
}

// Strangers makes the gRPC server for those who show a server's certificate and are not
// of the cluster, as far as this one knows: it answers nothing but that. creds has
// checked the certificate.
func (s *Server) Strangers(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(stream)
			return s.answer(stream.Context(), s.external, method, s.turnAway(stream.Context()))
		}),
		grpc.MaxRecvMsgSize(maxCallBytes),
		grpc.ConnectionTimeout(s.cfg.Handshake),
		grpc.MaxConcurrentStreams(4),
		grpc.MaxHeaderListSize(framing),
		grpc.KeepaliveEnforcementPolicy(enforcement),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: s.cfg.Handshake, Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)...)
}

func (s *Server) server(who identify, maxBytes int, opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.UnaryInterceptor(s.unary(who)),
		grpc.StreamInterceptor(s.stream(who)),
		grpc.MaxRecvMsgSize(maxBytes),
		grpc.ConnectionTimeout(s.cfg.Handshake),
		grpc.MaxConcurrentStreams(250),
		grpc.MaxHeaderListSize(framing),
		grpc.KeepaliveEnforcementPolicy(enforcement),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
	)...)
}
