// Package policybench_test measures what judging costs the Envoys: against the
// number of grants, and against what one would write by hand. Only ratios count,
// of rounds that alternate: the machine may be shared. docs/benchmarks.md has what
// they were.
package policybench_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/ztmesh/ztmesh/controlplane/decisions"
	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
	"github.com/ztmesh/ztmesh/xds/serve"
)

const trustDomain = "shop.example"

// bed is what the Envoys run on: certificates, a server of ADS and ALS as the
// control plane has them, and an application.
type bed struct {
	b         *testing.B
	root      *identity.Root
	authority *identity.Authority
	fleet     *serve.Fleet
	server    string // where the fleet is served
	app       string
	revision  uint64
	endpoints map[string]*xds.Assignment
}

func newBed(b *testing.B) *bed {
	b.Helper()
	d := &bed{b: b, fleet: serve.New(serve.Config{Authorize: instance, Server: "bench", Retain: true}), endpoints: map[string]*xds.Assignment{}}
	d.fleet.SetEndpoints(nil)
	s := identity.Signing{Now: time.Now, Log: func(identity.Issuance) error { return nil }}
	var err error
	d.root, err = identity.NewRoot(trustDomain, s)
	d.check(err)
	key, err := identity.NewKey()
	d.check(err)
	cert, err := d.root.SignIntermediate(key.Public(), "bench")
	d.check(err)
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert})
	d.check(err)
	d.authority, err = identity.NewAuthority(d.root.Certificate(), pair, "bench", s)
	d.check(err)
	d.app = newApp(b)
	d.serve()
	return d
}

func (d *bed) check(err error) {
	d.b.Helper()
	if err != nil {
		d.b.Fatal(err)
	}
}

func (d *bed) roots() []*x509.Certificate { return []*x509.Certificate{d.root.Certificate()} }

// serve is the node port of a control plane.
func (d *bed) serve() {
	d.b.Helper()
	server, err := d.authority.MakeServer()
	d.check(err)
	config, err := identity.ServerConfig(identity.Trust{
		TrustDomain: trustDomain, Now: time.Now, Roots: d.roots,
		Certificate: func() (*tls.Certificate, error) { return server.TLS(), nil },
	})
	d.check(err)
	config.NextProtos = []string{"h2"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	d.check(err)
	srv := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	d.fleet.Register(srv)
	decisions.New(decisions.Config{
		Identify: func(ctx context.Context) (decisions.Reporter, error) {
			id, err := instance(ctx)
			return decisions.Reporter{Instance: id}, err
		},
		Called:  func(string, uint32, string) (service, port string, ok bool) { return "", "", false },
		Logger:  slog.New(slog.DiscardHandler),
		Metrics: prometheus.NewRegistry(),
		Now:     time.Now,
	}).Register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	d.b.Cleanup(func() {
		d.fleet.Close()
		srv.Stop()
		<-done
	})
	d.server = l.Addr().String()
}

// instance is the rule of the product: …/node/INSTANCE in the certificate.
func instance(ctx context.Context) (string, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", errors.New("no identity")
	}
	uri, err := identity.URI(info.State.PeerCertificates[0])
	return path.Base(uri), err
}

// certificate is that of a workload.
func (d *bed) certificate(id string) *identity.KeyPair {
	d.b.Helper()
	pair, err := d.authority.MakeSVID(id, time.Hour)
	d.check(err)
	return pair
}

// proxy is one Envoy.
type proxy struct {
	process *envoy.Process
	address string
	told    *xds.Resources
}

// proxy starts an Envoy with a workload's configuration and returns when it uses
// all of it. change, if not nil, changes what it is told.
func (d *bed) proxy(conf *xds.Config, change func(*xds.Resources)) *proxy {
	d.b.Helper()
	address, release, err := mesh.Claim()
	d.check(err)
	d.b.Cleanup(release)
	in := xds.Instance{ID: mesh.NewID(), Address: address, Egress: address, Secrets: xds.FromADS}
	p := &proxy{process: d.start(conf.Workload, in), address: address}

	r, err := xds.Build(conf, in)
	d.check(err)
	if change != nil {
		change(r)
	}
	p.told = r
	for _, port := range conf.Inbound {
		cluster := xds.ClusterName(conf.Workload, port.Name)
		d.endpoints[cluster] = xds.Assign(cluster, []xds.Endpoint{{Address: address, Port: port.Port}})
	}
	d.fleet.SetEndpoints(d.endpoints)
	svid := d.certificate(conf.ID)
	key, err := svid.Key.PEM()
	d.check(err)
	d.fleet.SetSecrets(in.ID, []*xds.Resource{
		xds.SVID(identity.EncodePEM(svid.Chain), key.Reveal()),
		xds.Bundle(map[string][]byte{trustDomain: identity.EncodePEM(d.roots())}),
	})
	d.fleet.SetGates(in.ID, xds.Gates(nil))
	d.revision++
	d.fleet.Set(d.revision, map[string]*xds.Resources{in.ID: r})
	d.acked(p, in.ID)
	return p
}

// start starts an Envoy that knows only where to ask.
func (d *bed) start(workload string, in xds.Instance) *envoy.Process {
	d.b.Helper()
	dir := mesh.ShortDir(d.b)
	nodeDir := filepath.Join(dir, "node")
	d.check(os.Mkdir(nodeDir, 0o700))
	key, err := identity.NewKey()
	d.check(err)
	chain, err := d.root.IssueNode(key.Public(), in.ID)
	d.check(err)
	secret, err := key.PEM()
	d.check(err)
	for name, r := range map[string]*xds.Resource{
		xds.NodeFile:          xds.Node(identity.EncodePEM(chain), secret.Reveal()),
		xds.ControlBundleFile: xds.ControlBundle(trustDomain, identity.EncodePEM(d.roots())),
	} {
		text, err := xds.File(r)
		d.check(err)
		d.check(os.WriteFile(filepath.Join(nodeDir, name), text, 0o600))
	}
	admin := filepath.Join(dir, "admin")
	boot, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: trustDomain, Workload: workload, Instance: in,
		Servers: []string{d.server}, AdminSocket: admin, NodeDir: nodeDir,
	})
	d.check(err)
	// Nobody reads the access log, so that reading it does not count.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	d.check(err)
	process, err := envoy.Start(envoy.Config{Bootstrap: boot, Dir: dir, Admin: admin, Stdout: null})
	d.check(errors.Join(err, null.Close()))
	d.b.Cleanup(func() {
		if err := process.Stop(mesh.Patience); err != nil {
			d.b.Error(err)
		}
	})
	return process
}

// acked waits until an instance has ACKed the last revision, and serves.
func (d *bed) acked(p *proxy, id string) {
	d.b.Helper()
	ctx, cancel := context.WithTimeout(d.b.Context(), mesh.Patience)
	defer cancel()
	d.check(p.process.Await(ctx, func() bool {
		for _, s := range d.fleet.Status() {
			if s.Instance == id {
				if len(s.Nacks) > 0 {
					d.b.Fatalf("NACK: %+v", s.Nacks)
				}
				return s.AckedRevision >= d.revision
			}
		}
		return false
	}))
	d.check(p.process.Ready(ctx))
}

// cpu is what an Envoy has used, all threads, user and system, to the nanosecond:
// the ticks of /proc would be a hundredth of a second.
func (d *bed) cpu(p *proxy) time.Duration {
	d.b.Helper()
	const sched = 2 // CPUCLOCK_SCHED of Linux's clocks of processes
	var ts unix.Timespec
	d.check(unix.ClockGettime(int32(^p.process.PID()<<3|sched), &ts)) //nolint:gosec // a PID has 22 bits
	return time.Duration(ts.Nano())
}

// newApp is an application that answers every request of HTTP/1.1 with the same few bytes.
func newApp(b *testing.B) (target string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	b.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 16<<10)
	for {
		// A request has no body and nobody pipelines, so one ends where a read does.
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		for n < 4 || string(buf[n-4:n]) != "\r\n\r\n" {
			more, err := c.Read(buf[n:])
			if err != nil {
				return
			}
			n += more
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"); err != nil {
			return
		}
	}
}
