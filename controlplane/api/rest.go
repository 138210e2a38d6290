package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Handler serves the admin port: gRPC, and REST by translation into calls of
// this process, so that both pass the same door. Close it after its server.
type Handler struct {
	grpc    *grpc.Server // answers gRPC
	inner   *grpc.Server // answers what REST was translated into
	conn    *grpc.ClientConn
	gateway http.Handler
	done    chan struct{} // closed when inner has stopped
}

// NewHandler makes the Handler.
func (s *Server) NewHandler() (*Handler, error) {
	pipe := bufconn.Listen(1 << 20)
	h := &Handler{grpc: s.Admin(), inner: s.Internal(), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		_ = h.inner.Serve(pipe) // ends by Stop
	}()
	var err error
	h.conn, err = grpc.NewClient("passthrough:///admin",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a pipe within this process
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxApplyBytes), grpc.MaxCallSendMsgSize(maxApplyBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("rest: %w", err)
	}
	mux := runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // nobody names a principal from outside
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(s.restMetadata),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{EmitUnpopulated: true},
			UnmarshalOptions: protojson.UnmarshalOptions{}, // unknown fields are errors
		}),
	)
	if err := ztv1.RegisterAdminServiceHandler(context.Background(), mux, h.conn); err != nil {
		return nil, fmt.Errorf("rest: %w", err)
	}
	h.gateway = mux
	return h, nil
}

// restMetadata says who called, from the certificate of the REST connection.
func (s *Server) restMetadata(_ context.Context, r *http.Request) metadata.MD {
	principal := Principal{}
	if r.TLS != nil {
		if p, err := s.cfg.Identify(*r.TLS); err == nil {
			principal = p
		}
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return metadata.Pairs(metaPrincipal, principal.String(), metaAddress, host)
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		h.grpc.ServeHTTP(w, r)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxApplyBytes*4/3+maxCallBytes) // base64 in JSON
	h.gateway.ServeHTTP(w, r)
}

// Close ends every call that is still open.
func (h *Handler) Close() {
	_ = h.conn.Close()
	h.grpc.Stop()
	h.inner.Stop()
	<-h.done
}
