package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/failpoint"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// deregisterTimeout bounds the goodbye of DeregisterOnExit.
const deregisterTimeout = 10 * time.Second

// Agent is one instance's agent.
type Agent struct {
	cfg Config
	dir dir
	log *slog.Logger
	now func() time.Time

	// holding is what the instance has now; nil until Run has loaded or enrolled it.
	holding atomic.Pointer[holding]
	// changing is held while holding is replaced, with the calls that this takes:
	// one renewal at a time, and files, secrets and memory change in one order.
	changing sync.Mutex
	secrets  *secrets
	envoy    *admin
}

// New makes an agent that does nothing until Run.
func New(cfg Config) (*Agent, error) {
	if cfg.DataDir != "" {
		abs, err := filepath.Abs(cfg.DataDir)
		if err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
		cfg.DataDir = abs
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Agent{cfg: cfg, dir: dir(cfg.DataDir), log: cfg.Logger, now: cfg.Now, envoy: newAdmin(dir(cfg.DataDir).admin())}, nil
}

// Run enrols if this is the first start, then serves the secrets, runs the Envoy
// and renews until ctx ends, which is no error. While no server can be reached
// it goes on with what it has; only the first start waits for one. It is called
// once. When it returns, the Envoy has ended.
func (a *Agent) Run(ctx context.Context) error {
	var envoy *supervisor
	if a.cfg.Envoy.Path != "" {
		var err error
		if envoy, err = newSupervisor(a.cfg, a.dir.bootstrap()); err != nil {
			return err
		}
	}
	if err := a.dir.create(); err != nil {
		return err
	}
	lock, err := a.dir.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := a.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := a.serve(ctx, envoy); err != nil {
		return err
	}
	if a.cfg.DeregisterOnExit {
		return a.dir.forget()
	}
	return nil
}

// serve is Run once the instance is known.
func (a *Agent) serve(ctx context.Context, envoy *supervisor) error {
	h := a.holding.Load()
	if err := a.writeBootstrap(h); err != nil {
		return err
	}
	a.secrets = newSecrets(h.Instance, a.log, a.now)
	if err := a.secrets.publish(h); err != nil {
		return err
	}
	listener, err := listenUnix(a.dir.sds())
	if err != nil {
		return err
	}
	a.log.Info("serving", "instance", h.Instance, "workload", h.Workload, "address", h.Address,
		"egress_address", h.EgressAddress, "svid_not_after", h.svid.NotAfter(), "node_not_after", h.node.NotAfter())

	// The Envoy, and the secrets that it may still ask for, outlive the goodbye: its
	// peers stop calling before it ends.
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, gctx := errgroup.WithContext(ctx)
	connected := newConnections(&connections{
		workload: h.Workload, closed: a.envoy.closedGates, cut: cutConnection, log: a.log, now: a.now,
	})
	g.Go(func() error { return a.secrets.serve(last, listener, connected) })
	g.Go(func() error { return untilDone(last, connected.run) })
	if envoy != nil {
		g.Go(func() error { return envoy.run(last) })
	}
	for _, r := range []*identity.Renewer{a.renewer("svid", h.svid, a.renewSVID), a.renewer("node", h.node, a.renewNode)} {
		g.Go(func() error { return untilDone(gctx, r.Run) })
	}
	g.Go(func() error { return untilDone(gctx, a.keepPlace) })
	g.Go(func() error { return a.confirm(gctx) })
	g.Go(func() error {
		return untilDone(gctx, func(ctx context.Context) error { return connected.tell(ctx, a.tellEnded) })
	})
	g.Go(func() error {
		defer end()
		<-gctx.Done()
		if ctx.Err() != nil && a.cfg.DeregisterOnExit {
			return a.goodbye(last)
		}
		return nil
	})
	return g.Wait()
}

// untilDone runs a task whose end is no error once ctx has ended.
func untilDone(ctx context.Context, run func(context.Context) error) error {
	if err := run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// open brings holding up: from the directory, or by enrolling.
func (a *Agent) open(ctx context.Context) error {
	h, err := a.dir.load()
	if errors.Is(err, ErrNotEnrolled) {
		return a.first(ctx)
	}
	if err != nil {
		return err
	}
	if err := a.same(h); err != nil {
		return err
	}
	if a.now().Before(h.node.NotAfter()) {
		a.holding.Store(h)
		return nil
	}
	return a.again(ctx, h)
}

// same joins what the configuration says otherwise than what was enrolled.
func (a *Agent) same(h *holding) error {
	var errs []error
	for _, f := range []struct{ name, want, have string }{
		{"workload", a.cfg.Workload, h.Workload},
		{"address", canonicalIP(a.cfg.Address), h.Address},
		{"egress address", canonicalIP(a.cfg.EgressAddress), h.EgressAddress},
	} {
		if f.want != "" && f.want != f.have {
			errs = append(errs, fmt.Errorf("%s: enrolled with %s %s, not %s: deregister first, or take another data directory",
				a.dir, f.name, f.have, f.want))
		}
	}
	return errors.Join(errs...)
}

// servers are those that the control plane named last, then the configured ones.
func (a *Agent) servers(h *holding) []string {
	out := slices.Clone(h.Servers)
	for _, s := range a.cfg.Servers {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// writeBootstrap writes what the Envoy starts with. A running one keeps the list
// of servers that it was started with.
func (a *Agent) writeBootstrap(h *holding) error {
	raw, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: h.TrustDomain,
		Workload:    h.Workload,
		Instance:    xds.Instance{ID: h.Instance, Address: h.Address, Egress: h.EgressAddress, Secrets: xds.FromAgent},
		Servers:     h.sorted(),
		Near:        h.Near,
		AdminSocket: a.dir.admin(),
		AgentSocket: a.dir.sds(),
		BindAddress: h.BindAddress,
		PublicRoots: a.cfg.PublicRoots,
	})
	if err != nil {
		return err
	}
	return identity.WriteFile(a.dir.bootstrap(), raw)
}

// goodbye deregisters the instance.
func (a *Agent) goodbye(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, deregisterTimeout)
	defer cancel()
	a.changing.Lock()
	defer a.changing.Unlock()
	h := a.holding.Load()
	c, err := a.caller(h)
	if err != nil {
		return err
	}
	if err := c.each(ctx, a.servers(h), func(ctx context.Context, node ztv1.NodeServiceClient) error {
		_, err := node.Deregister(ctx, &ztv1.DeregisterRequest{})
		return err
	}); err != nil && status.Code(err) != codes.NotFound { // somebody else has done it
		return fmt.Errorf("deregister: %w", err)
	}
	failpoint.Hit("agent.deregister.agreed")
	a.log.Info("deregistered", "instance", h.Instance, "workload", h.Workload)
	return nil
}

// Deregister gives up the instance of cfg.DataDir and forgets it. It returns
// ErrRunning while an agent runs there, and ErrNotEnrolled if there is none.
func Deregister(ctx context.Context, cfg Config) error {
	a, err := New(cfg)
	if err != nil {
		return err
	}
	h, err := a.dir.load()
	if err != nil {
		return err
	}
	lock, err := a.dir.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	a.holding.Store(h)
	if err := a.goodbye(ctx); err != nil {
		return err
	}
	return a.dir.forget()
}
