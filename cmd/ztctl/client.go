package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// client is the admin API of one cluster, over all of its servers.
type client struct {
	ztv1.AdminServiceClient
	*servers
	context identity.Context
}

// connect opens the context in use. Nothing is dialled before the first call.
func (a *app) connect() (*client, error) {
	x, err := a.currentContext()
	if err != nil {
		return nil, err
	}
	config, err := a.contextTLS(x)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", x.Name, err)
	}
	s, err := dialServers(x.Servers, "", config, repeatable)
	if err != nil {
		return nil, err
	}
	return &client{ztv1.NewAdminServiceClient(s), s, x}, nil
}

// currentContext is the context of --context, or the current one.
func (a *app) currentContext() (identity.Context, error) {
	path, all, err := a.contexts()
	if err != nil {
		return identity.Context{}, err
	}
	x, ok := all.Find(a.set.Context)
	switch {
	case ok:
		return x, nil
	case a.set.Context != "":
		return x, withHint(fmt.Errorf("no context %q in %s", a.set.Context, path), "see ztctl context list")
	case len(all.Contexts) > 0:
		return x, withHint(fmt.Errorf("no context of %s is in use", path), "run ztctl context use NAME")
	}
	return x, withHint(errors.New("no context"), "run ztctl context import FILE; ztd init writes FILE beside its data directory")
}

// contexts reads the contexts file; one that is missing is empty.
func (a *app) contexts() (path string, all *identity.Contexts, err error) {
	if path, err = a.set.contextsFile(); err != nil {
		return "", nil, err
	}
	all, err = identity.LoadContexts(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, &identity.Contexts{}, nil
	case errors.Is(err, identity.ErrContextsMode):
		return path, nil, withHint(err, "run chmod 600 %s; if others had access to it, ask for a new credential", path)
	}
	return path, all, err
}

func (a *app) contextTLS(x identity.Context) (*tls.Config, error) {
	roots, err := identity.ParsePEM([]byte(x.Roots))
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	pair, err := identity.ParseKeyPair([]byte(string(x.Key) + x.Certificate))
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if end := pair.NotAfter(); !a.now().Before(end) {
		return nil, withHint(fmt.Errorf("the certificate has ended on %s", end.Format(time.DateOnly)),
			"ask an admin for a new one (ztctl admin add), then ztctl context import FILE")
	}
	return a.clientTLS(x.TrustDomain, roots, pair)
}

func (a *app) clientTLS(trustDomain string, roots []*x509.Certificate, pair *identity.KeyPair) (*tls.Config, error) {
	return identity.ClientConfig(identity.Trust{
		TrustDomain: trustDomain,
		Roots:       func() []*x509.Certificate { return roots },
		Certificate: func() (*tls.Certificate, error) { return pair.TLS(), nil },
		Now:         a.now,
	})
}

// deadline bounds one call.
func (a *app) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.set.RequestTimeout)
}

// call makes one call with its deadline, and explains its error.
func call[Req, Resp any](ctx context.Context, a *app, method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (Resp, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	resp, err := method(ctx, req)
	return resp, a.explain(err)
}

// repeatable tells whether a call may be made twice: reads, what has an idempotency
// key, and what says the same when it is said again, which is all of the admin API.
func repeatable(string) bool { return true }

// servers is a grpc.ClientConnInterface over several servers. A call goes to the
// first one; when that cannot be reached, or answers a repeatable call with
// UNAVAILABLE (it has no leader, or went away), to the next, each at most once.
// It is used by one goroutine.
type servers struct {
	addresses  []string
	conns      []*grpc.ClientConn
	first      int // the one to ask first
	repeatable func(method string) bool
}

// connectTimeout is how long a silent address may hold up the next server.
const connectTimeout = 5 * time.Second

const maxMessage = 64<<20 + 1<<20

// dialServers makes the connections; none is opened before the first call. With
// a from address, they come from there.
func dialServers(addresses []string, from string, config *tls.Config, repeatable func(string) bool) (*servers, error) {
	dialer := &net.Dialer{}
	if from != "" {
		ip, err := netip.ParseAddr(from)
		if err != nil {
			return nil, fmt.Errorf("address %q is not an IP address", from)
		}
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
	}
	s := &servers{addresses: addresses, repeatable: repeatable}
	for _, addr := range addresses {
		conn, err := grpc.NewClient("passthrough:///"+addr,
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }),
			grpc.WithTransportCredentials(credentials.NewTLS(config)),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: connectTimeout}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("server %s: %w", addr, err), s.Close())
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

// Close ends all connections.
func (s *servers) Close() error {
	var errs []error
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// next makes another server the first to be asked.
func (s *servers) next() { s.first = (s.first + 1) % len(s.conns) }

// unreachable is the error of a call that was sent to no server.
type unreachable struct{ errs []error }

func (u *unreachable) Error() string {
	lines := make([]string, len(u.errs))
	for i, err := range u.errs {
		lines[i] = err.Error()
	}
	return "no server can be reached: " + strings.Join(lines, "; ")
}

// GRPCStatus makes it UNAVAILABLE.
func (u *unreachable) GRPCStatus() *status.Status { return status.New(codes.Unavailable, u.Error()) }

// Invoke makes a unary call.
func (s *servers) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	away := &unreachable{}
	var last error
	for range s.conns {
		var p peer.Peer // gets an address only if the call was given to a connection
		err := s.conns[s.first].Invoke(ctx, method, args, reply, append(slices.Clone(opts), grpc.Peer(&p))...)
		if status.Code(err) == codes.DeadlineExceeded {
			s.next() // for the next call: this one does not answer
		}
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
		if p.Addr != nil {
			if !s.repeatable(method) {
				return err
			}
			last = err
		} else {
			away.errs = append(away.errs, s.named(err))
		}
		s.next()
	}
	if last != nil {
		return last
	}
	return away
}

// NewStream opens a stream. All streams are reads.
func (s *servers) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	away := &unreachable{}
	for range s.conns {
		stream, err := s.conns[s.first].NewStream(ctx, desc, method, opts...)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return stream, err
		}
		away.errs = append(away.errs, s.named(err))
		s.next()
	}
	return nil, away
}

// named says which server an error is about, without gRPC's own wrapping.
func (s *servers) named(err error) error {
	text := status.Convert(err).Message()
	for _, noise := range []string{"connection error: desc = ", "last connection error: ", "error while dialing: ", "transport: "} {
		text = strings.ReplaceAll(text, noise, "")
	}
	return fmt.Errorf("%s: %s", s.addresses[s.first], strings.Trim(text, `"`))
}

// explain turns a call's error into one for people: its problems are printed,
// its code becomes an exit code, and it gets a hint.
func (a *app) explain(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	text := errors.New(st.Message())
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *ztv1.Problems:
			a.list(problemsOf(d.Problems))
			text = withHint(text, fixProblems)
		case *ztv1.StaleBase:
			return staleBase(d)
		}
	}
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return withHint(text, "--request-timeout allows %s for a call", a.set.RequestTimeout)
	case codes.Unavailable:
		return withHint(text, "see that the servers of the context run (ztctl context list), and that a majority of them is up")
	case codes.Unauthenticated, codes.PermissionDenied:
		return withHint(text, "ztctl version shows who you are to the server")
	}
	return text
}

func problemsOf(ps []*ztv1.Problem) spec.Problems {
	var out spec.Problems
	for _, p := range ps {
		out = append(out, spec.Problem{
			Code: p.Code, File: p.File, Line: int(p.Line), Column: int(p.Column),
			Path: p.Path, Message: p.Message, Hint: p.Hint,
		})
	}
	return out
}

func staleBase(d *ztv1.StaleBase) error {
	var now []string
	for _, ns := range slices.Sorted(maps.Keys(d.Current)) {
		now = append(now, fmt.Sprintf("namespace %s is at revision %d now", ns, d.Current[ns]))
	}
	return &exit{exitStale, withHint(
		fmt.Errorf("stale base: somebody else applied first: %s", strings.Join(now, ", ")),
		"nothing was changed; see ztctl history for what came in between, then apply again")}
}
