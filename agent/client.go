package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// tryTimeout bounds one call to one server: an enrolment goes through Raft, also
// while a leader is being elected.
const tryTimeout = 10 * time.Second

// refusal is an answer that asking again, here or elsewhere, does not change.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// caller calls the node port of one server after another.
type caller struct {
	from string // IP address to call from; empty: any
	tls  *tls.Config
}

// each makes a call to the servers in turn until one answers. The error is a
// *refusal if one refused, or if none of them is of our cluster.
func (c caller) each(ctx context.Context, servers []string, call func(context.Context, ztv1.NodeServiceClient) error) error {
	var errs []error
	strangers := 0
	for _, server := range servers {
		stranger, err := c.one(ctx, server, call)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", server, err)
		if final(status.Code(err)) {
			return &refusal{err}
		}
		errs = append(errs, err)
		if stranger {
			strangers++
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(errs...); err == nil || strangers < len(errs) {
		return err
	}
	return &refusal{errors.Join(errs...)}
}

// one makes a call to one server, over a connection of its own: calls are an
// hour apart. stranger says that it could not prove to be of our cluster, in
// which case nothing was sent to it.
func (c caller) one(ctx context.Context, server string, call func(context.Context, ztv1.NodeServiceClient) error) (stranger bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	return c.call(ctx, server, call)
}

// call is one, for as long as it takes.
func (c caller) call(ctx context.Context, server string, call func(context.Context, ztv1.NodeServiceClient) error) (stranger bool, err error) {
	return c.dial(ctx, server, func(ctx context.Context, conn grpc.ClientConnInterface) error {
		return call(ctx, ztv1.NewNodeServiceClient(conn))
	})
}

// dial is call of another service.
func (c caller) dial(ctx context.Context, server string, call func(context.Context, grpc.ClientConnInterface) error) (stranger bool, err error) {
	distrust := make(chan error, 1)
	config := c.tls.Clone()
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		if err != nil {
			select {
			case distrust <- err:
			default:
			}
		}
		return err
	}
	dialer := &net.Dialer{}
	if c.from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.from)}
	}
	conn, err := grpc.NewClient("passthrough:///"+server,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }),
	)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	err = call(ctx, conn)
	select {
	case why := <-distrust:
		if err != nil {
			return true, why
		}
	default:
	}
	return false, err
}

// asked is how long a server that is busy has asked to wait; at most a minute.
func asked(err error) time.Duration {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return 0
	}
	for _, d := range s.GRPCStatus().Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return min(r.GetRetryDelay().AsDuration(), time.Minute)
		}
	}
	return 0
}

// final says whether a code is a server's last word.
func final(c codes.Code) bool {
	switch c {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated,
		codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented:
		return true
	}
	return false
}
