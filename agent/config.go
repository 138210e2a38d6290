package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

// Config is what one agent needs. Of an instance that is enrolled already, only
// DataDir is required.
type Config struct {
	// DataDir is the state directory; it is made if it is missing. Sockets stand in
	// it, so its absolute path has at most 90 bytes.
	DataDir string

	// What to enrol as. On later starts each may be empty; one that differs from
	// what was enrolled is an error, except Servers, which are tried after those
	// that the control plane named last.
	Workload      string   // "shop/web"
	Servers       []string // node ports, host:port, tried in this order
	TokenFile     string   // holds a token for Workload; read only when one is needed
	Address       string   // IP address where the Envoy listens for peers; empty: the one that servers see
	EgressAddress string   // loopback address where it listens for the workload; empty: 127.0.0.1

	// Where the instance runs, a DNS label, and its share of the calls against 100, at
	// most 1000. Both may change from one start to the next; empty and 0 keep what is.
	Zone   string
	Weight uint32

	// PublicRoots is the PEM file of CAs by which the Envoy knows servers outside the
	// mesh; default: that of the host (identity.PublicRoots).
	PublicRoots string

	Envoy Envoy
	// DeregisterOnExit gives the instance up when Run's context ends: the next
	// start needs a new token.
	DeregisterOnExit bool

	Logger *slog.Logger     // default: discards
	Now    func() time.Time // default: time.Now
}

// Envoy is how the proxy is run.
type Envoy struct {
	Path        string        // a file, or a name to find on PATH; empty: none is run, only served
	Concurrency int           // worker threads; 0: one for each CPU
	LogLevel    string        // Envoy's own; default "warning"
	Output      io.Writer     // receives its log and access log; nil: nobody. An *os.File is handed over as it is
	Grace       time.Duration // between SIGTERM and SIGKILL; default 10 s
}

// maxDataDir leaves room in the 108 bytes of a Unix socket's path.
const maxDataDir = 90

// Validate joins everything that is wrong, whether or not it will be needed.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.DataDir != "", "data directory is missing")
	check(len(c.DataDir) <= maxDataDir, "data directory %s: too long for the sockets in it, at most %d bytes", c.DataDir, maxDataDir)
	check(c.Workload == "" || isRef(c.Workload), "workload %q is not namespace/name", c.Workload)
	for _, s := range c.Servers {
		check(isHostPort(s), "server %q is not host:port", s)
	}
	if c.Address != "" {
		a, err := netip.ParseAddr(c.Address)
		check(err == nil && a.Zone() == "" && !a.IsUnspecified(), "address %q is not the IP address of a host", c.Address)
	}
	if c.EgressAddress != "" {
		a, err := netip.ParseAddr(c.EgressAddress)
		check(err == nil && a.Zone() == "" && a.IsLoopback(), "egress address %q is not a loopback IP address", c.EgressAddress)
	}
	check(identity.IsZone(c.Zone), "zone %q is not a DNS label", c.Zone)
	check(c.Weight <= identity.MaxWeight, "weight %d is above %d", c.Weight, identity.MaxWeight)
	check(c.PublicRoots == "" || filepath.IsAbs(c.PublicRoots), "public roots %q are not an absolute path", c.PublicRoots)
	check(c.Envoy.Concurrency >= 0, "envoy concurrency %d is negative", c.Envoy.Concurrency)
	check(c.Envoy.Grace >= 0, "envoy grace %s is negative", c.Envoy.Grace)
	levels := []string{"trace", "debug", "info", "warning", "error", "critical", "off"}
	check(c.Envoy.LogLevel == "" || slices.Contains(levels, c.Envoy.LogLevel),
		"envoy log level %q is none of %s", c.Envoy.LogLevel, strings.Join(levels, ", "))
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	c.PublicRoots = cmp.Or(c.PublicRoots, identity.PublicRoots())
	c.Envoy.LogLevel = cmp.Or(c.Envoy.LogLevel, "warning")
	c.Envoy.Grace = cmp.Or(c.Envoy.Grace, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// isRef: "namespace/name". The control plane knows the whole rule; this one is
// for a message that comes early.
func isRef(s string) bool {
	ns, name, ok := strings.Cut(s, "/")
	return ok && ns != "" && name != "" && !strings.Contains(name, "/")
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && host != "" && n > 0
}
