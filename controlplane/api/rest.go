package api

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// applyPath is AdminService.Apply by REST.
const applyPath = "/v1alpha1/apply"

// framing is what a request's body may have beyond its message.
const framing = 64 << 10

// Handler serves the admin port: gRPC, and REST by translation into calls of
// this process, so that both pass the same door. Close it after its server.
//
// A body is read before the door can judge the call. So only an apply by whom
// the log knows may have a large one, and all must have come within the deadline.
type Handler struct {
	s       *Server
	grpc    *grpc.Server // answers gRPC
	large   *grpc.Server // answers applies
	inner   *grpc.Server // answers what REST was translated into
	conn    *grpc.ClientConn
	gateway *runtime.ServeMux
	done    chan struct{} // closed when inner has stopped
}

// NewHandler makes the Handler.
func (s *Server) NewHandler() (*Handler, error) {
	pipe := bufconn.Listen(1 << 20)
	h := &Handler{s: s, grpc: s.Admin(maxCallBytes), large: s.Admin(maxApplyBytes), inner: s.Internal(), done: make(chan struct{})}
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
	h.gateway = runtime.NewServeMux(
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }), // nobody names a principal from outside
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(s.restMetadata),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{EmitUnpopulated: true},
			UnmarshalOptions: protojson.UnmarshalOptions{}, // unknown fields are errors
		}),
	)
	if err := ztv1.RegisterAdminServiceHandler(context.Background(), h.gateway, h.conn); err != nil {
		return nil, fmt.Errorf("rest: %w", err)
	}
	return h, nil
}

// restPrincipal is who holds the certificate of the connection.
func (s *Server) restPrincipal(r *http.Request) Principal {
	if r.TLS != nil {
		if p, err := s.cfg.Identify(*r.TLS); err == nil {
			return p
		}
	}
	return Principal{}
}

// restMetadata says who called, from the certificate of the REST connection.
func (s *Server) restMetadata(_ context.Context, r *http.Request) metadata.MD {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return metadata.Pairs(metaPrincipal, s.restPrincipal(r).String(), metaAddress, host)
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	limitTime(w, r, h.s.cfg.Deadline)
	large := h.mayBeLarge(r)
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		server, limit := h.grpc, maxCallBytes
		if large {
			server, limit = h.large, maxApplyBytes
		}
		r.Body = http.MaxBytesReader(w, r.Body, int64(limit+framing))
		server.ServeHTTP(w, r)
		return
	}
	limit := maxCallBytes
	if large {
		limit = maxApplyBytes
	}
	r.Body = http.MaxBytesReader(w, r.Body, int64(limit*4/3+framing)) // base64 in JSON
	// A page of another site can have a browser send, with the certificate of its
	// user, what forms can send; JSON is not among that.
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method == http.MethodPost && (err != nil || media != "application/json") {
		_, marshaler := runtime.MarshalerForRequest(h.gateway, r)
		runtime.HTTPError(r.Context(), h.gateway, marshaler, w, r, &runtime.HTTPStatusError{
			HTTPStatus: http.StatusUnsupportedMediaType,
			Err:        status.Error(codes.InvalidArgument, "Content-Type must be application/json"),
		})
		return
	}
	h.gateway.ServeHTTP(w, r)
}

// mayBeLarge tells whether a request may be as large as an apply: it is one, and its
// caller may make one.
func (h *Handler) mayBeLarge(r *http.Request) bool {
	if r.URL.Path != applyPath && r.URL.Path != ztv1.AdminService_Apply_FullMethodName {
		return false
	}
	_, _, err := h.s.authorize(call{principal: h.s.restPrincipal(r)}, ztv1.AdminService_Apply_FullMethodName)
	return err == nil
}

// limitTime ends a body that has not come whole in time. What is answered may
// take longer.
func limitTime(w http.ResponseWriter, r *http.Request, limit time.Duration) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	rc := http.NewResponseController(w)
	if rc.SetReadDeadline(time.Now().Add(limit)) == nil {
		r.Body = &timedBody{r.Body, func() { _ = rc.SetReadDeadline(time.Time{}) }} // the connection is gone then
	}
}

type timedBody struct {
	io.ReadCloser
	whole func() // called when all of it was read
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.whole()
	}
	return n, err
}

// Close ends every call that is still open.
func (h *Handler) Close() {
	_ = h.conn.Close()
	h.grpc.Stop()
	h.large.Stop()
	h.inner.Stop()
	<-h.done
}
