package judge

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/xds"
)

// Proxy is one Envoy, which is one workload's after another. Its methods are for
// one goroutine at a time.
type Proxy struct {
	court   *Court
	id      string
	process *envoy.Process
	log     *accessLog
	address string
	release func() // of address; nil: it has none
}

// Proxy starts an Envoy, until the test ends.
func (c *Court) Proxy() *Proxy {
	c.t.Helper()
	p := &Proxy{court: c, id: mesh.NewID(), log: newAccessLog()}
	dir := mesh.ShortDir(c.t)
	nodeDir, roots := filepath.Join(dir, "node"), filepath.Join(dir, "roots.pem")
	c.check(os.Mkdir(nodeDir, 0o700))
	node, err := c.pki.node(p.id)
	c.check(err)
	root := identity.EncodePEM([]*x509.Certificate{c.pki.root.Certificate()})
	for name, r := range map[string]*xds.Resource{xds.NodeFile: node, xds.ControlBundleFile: xds.ControlBundle(c.pki.trustDomain, root)} {
		text, err := xds.File(r)
		c.check(err)
		c.check(os.WriteFile(filepath.Join(nodeDir, name), text, 0o600))
	}
	c.check(os.WriteFile(roots, []byte(c.pki.callers.pem), 0o600))
	boot, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: c.pki.trustDomain, Workload: "court/proxy", Servers: []string{c.server}, PublicRoots: roots,
		Instance:    xds.Instance{ID: p.id, Address: "127.0.0.1", Egress: "127.0.0.1", Secrets: xds.FromADS},
		AdminSocket: filepath.Join(dir, "admin"), NodeDir: nodeDir,
	})
	c.check(err)
	p.process, err = envoy.Start(envoy.Config{
		Bootstrap: boot, Dir: dir, Admin: filepath.Join(dir, "admin"), Stdout: p.log, LogLevel: "error",
		// What was given up is closed soon: nobody uses it.
		Args: []string{"--file-flush-interval-msec", "5", "--drain-time-s", "1", "--drain-strategy", "immediate"},
	})
	c.check(err)
	c.t.Cleanup(func() {
		if err := p.process.Stop(mesh.Patience); err != nil {
			c.t.Error(err)
		}
		if p.release != nil {
			p.release()
		}
		if c.t.Failed() {
			c.t.Logf("log of the Envoy %s:\n%s", p.id, p.process.Log())
		}
	})
	return p
}

// load gives the Envoy a workload's whole configuration, at an address that it has
// not had, and returns when all of it is in use.
func (p *Proxy) load(conf *xds.Config, trust map[string][]byte) error {
	if p.release != nil {
		p.release()
	}
	var err error
	if p.address, p.release, err = mesh.Claim(); err != nil {
		return err
	}
	r, err := xds.Build(conf, xds.Instance{ID: p.id, Address: p.address, Egress: p.address, Secrets: xds.FromADS})
	if err != nil {
		return err
	}
	if err := xds.Consistent(r); err != nil {
		return err
	}
	svid, err := p.court.pki.svid(conf.ID)
	if err != nil {
		return err
	}
	secrets := []*xds.Resource{svid, xds.Bundle(trust)}
	for _, in := range conf.Inbound {
		if in.ServerFirst {
			secrets = append(secrets, xds.Peers(conf, in.Name, trust))
		}
	}
	if err := p.court.tell(p.id, r, secrets); err != nil {
		return fmt.Errorf("%s: %w\n%s", conf.Workload, err, p.process.Log())
	}
	ports := []uint32{xds.EgressPort}
	for _, in := range conf.Inbound {
		ports = append(ports, in.Port)
	}
	for _, port := range ports {
		if err := p.listening(port); err != nil {
			return fmt.Errorf("%s: port %d: %w\n%s", conf.Workload, port, err, p.process.Log())
		}
	}
	return nil
}

// listening waits until the Envoy answers a handshake, be it with a refusal. It is
// then past all that it was told before: its one worker does one thing after
// another, and a handshake takes several turns.
func (p *Proxy) listening(port uint32) error {
	return await("a listener", func() (bool, error) {
		c, err := net.DialTimeout("tcp", p.at(port), mesh.Patience)
		if err != nil {
			return false, nil //nolint:nilerr // it is asked again
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(mesh.Patience)); err != nil {
			return false, err
		}
		config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // who serves is another test's subject
		if err := tls.Client(c, config).HandshakeContext(p.court.t.Context()); errors.Is(err, os.ErrDeadlineExceeded) {
			return false, err
		}
		return true, nil
	})
}

func (p *Proxy) at(port uint32) string { return net.JoinHostPort(p.address, fmt.Sprint(port)) }

// line is what is read of an entry of the access log.
type line struct {
	RequestID, Peer, Path, Matched, Caller, Flags, Details string
}

// accessLog is the entries that nobody has taken yet, by request and by peer.
type accessLog struct {
	mu    sync.Mutex // guards what follows
	rest  []byte     // of a line that is not whole
	lines map[string]line
}

func newAccessLog() *accessLog { return &accessLog{lines: map[string]line{}} }

// Write is for Envoy's standard output.
func (l *accessLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		text, after, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			l.rest = bytes.Clone(l.rest)
			return len(b), nil
		}
		var e line
		if json.Unmarshal(text, &e) == nil {
			l.lines[e.RequestID], l.lines[e.Peer] = e, e
		}
		l.rest = after
	}
}

// find is the entry of a request, or of a connection.
func (l *accessLog) find(key string) (line, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.lines[key]
	return e, ok
}

// forget drops all entries.
func (l *accessLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.lines)
}
