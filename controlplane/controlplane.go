// Package controlplane is the whole control plane as a library: [Init] makes a
// cluster, [Join] a further server of it, and [New] with [Server.Run] serves. It
// is the composition root: the one place where what was agreed (store), what
// proxies are told (xds, xds/serve) and who is who (identity) meet, and the one
// reconcile loop that leads from one to the other.
//
// Several servers may run in one process; nothing is global.
package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store"
	"github.com/ztmesh/ztmesh/store/state"
)

// Version is that of this program; set by the linker.
var Version = "0.1.0-dev"

// Config is how a server runs. Default gives a usable one, save the DataDir.
type Config struct {
	// DataDir was made by Init or Join.
	DataDir string
	// KEK is the source of the key-encryption key, as identity.KeySource reads it.
	// Default: DefaultKEK.
	KEK string
	// AdminFile is the credential that Init made: as long as it is there, the admin
	// ports of the cluster are kept up to date in it. Default: DefaultAdminFile.
	AdminFile string
	// Where to listen, host:port; port 0 is any free one, kept over restarts.
	AdminListen, NodeListen, ClusterListen string
	// LocalListen is for metrics, health and pprof: loopback only.
	LocalListen string
	// PlaintextNodes is a further node port, without TLS, on which a proxy is believed
	// to be the instance that it names in the header PlaintextInstance: to measure
	// what TLS costs. Loopback only; default none, and no command of ztd sets it.
	PlaintextNodes string
	// Advertise is the host that others reach this server by. Default: the host
	// of each address above, or this machine's first address where that is none.
	Advertise string
	// Zone is where this server runs, a DNS label: proxies in the same zone prefer it.
	// Default: not said, and it is as near as any other.
	Zone string
	// Handshake is how long a connection may stay silent before it has said who it
	// is. Default 10 s.
	Handshake time.Duration
	// DiskReserve is how many bytes to keep back for the day that the disk is full,
	// see store.Config. 0: none.
	DiskReserve uint64
	// Timing, Liveness, Autopilot and Resolution may be left empty.
	Timing     store.Timing
	Liveness   Liveness
	Autopilot  Autopilot
	Resolution Resolution
	// Format is the newest format of log entries that this server reads; default
	// state.Format. Only tests pretend to be of an older version.
	Format uint32
	// AnchorEvery is how often the issuance journal is anchored in the log, if it has
	// moved. Default 1 min.
	AnchorEvery time.Duration
	// KeyCheck is how often this server looks whether what it has on disk is sealed by
	// the cluster's key-encryption key, beside the moments when that is replaced.
	// Default 5 s.
	KeyCheck time.Duration
	// Audit says how much of the audit log is kept; it may be left empty.
	Audit store.Audit
	// Issuance says how much of the issuance journal is kept, and RefusalBytes how much
	// of the record of refused calls (default 64 MiB). Both may be left empty.
	Issuance     Issuance
	RefusalBytes int64
	Logger       *slog.Logger
	Now          func() time.Time
}

// Default is the configuration of a server on its own machine.
func Default() Config {
	return Config{
		AdminListen: ":7400", NodeListen: ":7401", ClusterListen: ":7402", LocalListen: "127.0.0.1:7403",
		Logger: slog.New(slog.DiscardHandler), Now: time.Now,
	}
}

// Validate joins everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data directory is missing"))
	}
	for _, a := range []struct{ name, address string }{
		{"admin", c.AdminListen}, {"node", c.NodeListen}, {"cluster", c.ClusterListen}, {"local", c.LocalListen},
	} {
		if _, err := net.ResolveTCPAddr("tcp", a.address); err != nil {
			errs = append(errs, fmt.Errorf("%s listen address %q: %w", a.name, a.address, err))
		}
	}
	for _, a := range []struct{ name, address string }{{"local", c.LocalListen}, {"plaintext", c.PlaintextNodes}} {
		if host, _, err := net.SplitHostPort(a.address); err == nil && !isLoopback(host) {
			errs = append(errs, fmt.Errorf("%s listen address %q must be loopback: it has no authentication", a.name, a.address))
		}
	}
	if !identity.IsZone(c.Zone) {
		errs = append(errs, fmt.Errorf("zone %q is not a DNS label", c.Zone))
	}
	if c.Logger == nil || c.Now == nil {
		errs = append(errs, errors.New("logger or clock is missing"))
	}
	return errors.Join(errs...)
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Server is one server of a cluster. New makes it, Run runs it once.
type Server struct {
	cfg   Config
	dir   dataDir
	who   serverFile
	id    string
	td    string
	peers []string // cluster ports to be found by, until the log names them
	roots []*x509.Certificate
	epoch string
	keys  *keyring
	data  *identity.DataKeys
	// intermediate is what the folder had at the start; later ones are the authority's.
	intermediate *identity.KeyPair
	authority    *identity.Authority
	saving       sync.Mutex // held while the intermediate is written and replaced
	journal      *identity.Journal
	refusals     *refusals.Log
	accepted     chan struct{}    // a cut of the issuance journal was accepted; holds one
	current      identity.Current // what this server shows
	metrics      *prometheus.Registry
	clock        clock
	agreedOn     atomic.Pointer[store.Store] // nil until it is open
	ready        chan struct{}               // closed when it serves
	addresses    Addresses                   // set before ready is closed
}

// New reads the data directory, which it needs the key-encryption key for. The error
// says what is wrong with it, with the key or with the configuration; nothing was
// written then, and no port was opened.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.AdminFile == "" {
		cfg.AdminFile = DefaultAdminFile(cfg.DataDir)
	}
	if cfg.Handshake == 0 {
		cfg.Handshake = 10 * time.Second
	}
	if cfg.KeyCheck == 0 {
		cfg.KeyCheck = 5 * time.Second
	}
	d := dataDir(cfg.DataDir)
	if err := errors.Join(d.checkReseed(), d.checkRecover()); err != nil {
		return nil, err
	}
	who, err := d.load()
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, dir: d, who: who, id: who.ID, td: who.TrustDomain, epoch: who.Epoch, peers: who.Peers,
		metrics: prometheus.NewRegistry(), ready: make(chan struct{}), accepted: make(chan struct{}, 1),
	}
	if s.roots, err = d.loadRoots(); err != nil {
		return nil, err
	}
	return s, s.unseal()
}

// unseal opens what the key-encryption key seals. It writes nothing.
func (s *Server) unseal() (err error) {
	if s.keys, err = openKeyring(context.Background(), s.cfg.KEK, s.dir); err != nil {
		return fmt.Errorf("this server stays sealed: %w", err)
	}
	if s.data, err = identity.OpenDataKeys(s.dir.dataKeys(), s.td, s.id, s.keys.get()); err != nil {
		return fmt.Errorf("this server stays sealed: %w (keys are from %s)", err, s.keys.source)
	}
	s.keys.needs = s.needs
	s.intermediate, err = identity.LoadSealedKeyPair(s.dir.intermediate(), s.data)
	return err
}

// ID is this server's, 32 hex digits.
func (s *Server) ID() string { return s.id }

// Ready is closed when every port is open, the state is served, and what the first leader that
// was heard said to be agreed on is applied. What is served before that is never older than
// what this server has served before.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addresses are where this server listens, once it is ready.
func (s *Server) Addresses() Addresses { return s.addresses }

// trust is what this server knows and shows on every TLS connection.
func (s *Server) trust() identity.Trust {
	return identity.Trust{
		TrustDomain: s.td, Epoch: s.epoch, Roots: func() []*x509.Certificate { return s.roots },
		Certificate: s.current.Certificate, Now: s.cfg.Now,
	}
}

// openIdentity makes this server's certificate.
func (s *Server) openIdentity() error {
	journal, err := identity.OpenJournalIn(s.dir.journal(), s.cfg.Issuance.SegmentBytes)
	if err != nil {
		return err
	}
	s.journal = journal
	pair := s.intermediate
	if !s.cfg.Now().Before(pair.NotAfter()) {
		ended := pair.NotAfter()
		if pair, err = s.lateIntermediate(); err != nil {
			return fmt.Errorf("this server was down for longer than its intermediate lives (until %v): %w", ended, err)
		}
	}
	if s.authority, err = identity.NewAuthority(s.roots[0], pair, s.id, s.signing()); err != nil {
		return err
	}
	own, err := s.authority.MakeServer()
	if err != nil {
		return fmt.Errorf("this server's certificate: %w", err)
	}
	s.current.Set(own)
	return nil
}

// lateIntermediate signs a new intermediate before the log can be read: without
// one no server would talk to another, and a cluster that was down for a week
// would be down for ever.
func (s *Server) lateIntermediate() (*identity.KeyPair, error) {
	root, err := s.rootBesideLog()
	if err != nil {
		return nil, err
	}
	pair, err := s.signIntermediate(root)
	if err != nil {
		return nil, err
	}
	return pair, pair.SaveSealed(s.dir.intermediate(), s.data)
}

// rootBesideLog opens the root key as keepSealedRoot has kept it.
func (s *Server) rootBesideLog() (*identity.Root, error) {
	sealed, err := os.ReadFile(s.dir.sealedRoot())
	if err != nil {
		return nil, err
	}
	return identity.OpenRoot(s.roots[0], sealed, s.keys.get(), s.signing())
}

func (s *Server) signIntermediate(root *identity.Root) (*identity.KeyPair, error) {
	return newIntermediate(func(key identity.PrivateKey) (*x509.Certificate, error) {
		return root.SignIntermediate(key.Public(), s.id)
	})
}

// keepSealedRoot keeps beside the log what lateIntermediate needs: the root key
// as the log holds it, sealed.
func (s *Server) keepSealedRoot(ctx context.Context, agreedOn *store.Store) error {
	return agreedOn.Watch(ctx, func(st *state.State, changed state.Changes) error {
		if !changed.Trust || !st.Initialized() {
			return nil
		}
		if _, epoch := st.Epoch(); epoch != s.epoch {
			return fmt.Errorf("this server is of epoch %s of the cluster, and the log is of %s: it must join anew", s.epoch, epoch)
		}
		return identity.WriteFile(s.dir.sealedRoot(), st.SealedRootKey())
	})
}

func (s *Server) signing() identity.Signing {
	return identity.Signing{Now: s.cfg.Now, Log: s.journal.Append}
}

// renewer keeps the intermediate, and with it this server's certificate, fresh.
func (s *Server) renewer(i *issuer) *identity.Renewer {
	leaf := s.authority.Intermediate().Leaf()
	return &identity.Renewer{
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Now: s.cfg.Now,
		Renew: func(context.Context) (notBefore, notAfter time.Time, err error) {
			if err := s.clock.check(); err != nil {
				return notBefore, notAfter, err
			}
			root, err := i.root()
			if err != nil {
				return notBefore, notAfter, err
			}
			pair, err := s.signIntermediate(root)
			if err != nil {
				return notBefore, notAfter, err
			}
			if err := s.saveIntermediate(pair); err != nil {
				return notBefore, notAfter, err
			}
			own, err := s.authority.MakeServer()
			if err != nil {
				return notBefore, notAfter, err
			}
			s.current.Set(own)
			return pair.Leaf().NotBefore, pair.Leaf().NotAfter, nil
		},
		Report: func(r identity.Renewal) {
			if r.Err != nil {
				s.cfg.Logger.Error("intermediate not renewed", "notAfter", r.NotAfter, "expired", r.Expired, "next", r.Next, "error", r.Err)
				return
			}
			s.cfg.Logger.Info("intermediate renewed", "notAfter", r.NotAfter)
		},
	}
}

// advertised is the address by which others reach a listener.
func (s *Server) advertised(l net.Listener) (string, error) {
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", err
	}
	if s.cfg.Advertise != "" {
		return net.JoinHostPort(s.cfg.Advertise, port), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
		return l.Addr().String(), nil
	}
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range ifaces {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return net.JoinHostPort(n.IP.String(), port), nil
		}
	}
	return net.JoinHostPort("127.0.0.1", port), nil
}
