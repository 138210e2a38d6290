package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/store"
)

// config is the process's configuration: a YAML file, ZTD_* in the environment
// (ZTD_DATA_DIR for data-dir) and flags, each over the one before.
type config struct {
	DataDir         string        `mapstructure:"data-dir"`
	KEK             string        `mapstructure:"kek"`
	AdminFile       string        `mapstructure:"admin-file"`
	AdminListen     string        `mapstructure:"admin-listen"`
	NodeListen      string        `mapstructure:"node-listen"`
	ClusterListen   string        `mapstructure:"cluster-listen"`
	LocalListen     string        `mapstructure:"local-listen"`
	Advertise       string        `mapstructure:"advertise"`
	Zone            string        `mapstructure:"zone"`
	ElectionTimeout time.Duration `mapstructure:"election-timeout"`
	StableAfter     time.Duration `mapstructure:"stable-after"`
	DeadAfter       time.Duration `mapstructure:"dead-after"`
	MinVoters       int           `mapstructure:"min-voters"`

	SnapshotEntries  uint64        `mapstructure:"snapshot-entries"`
	SnapshotInterval time.Duration `mapstructure:"snapshot-interval"`
	TrailingEntries  uint64        `mapstructure:"trailing-entries"`

	// DiskReserve is in MiB.
	DiskReserve uint64 `mapstructure:"disk-reserve"`
	// Reseed lets run put a new member in the place of one whose log is lost.
	Reseed bool `mapstructure:"reseed"`

	LogLevel string `mapstructure:"log-level"`
}

// keys declares every key as a flag, with its default.
func keys() *pflag.FlagSet {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	d := controlplane.Default()
	f.String("data-dir", "ztd-data", "`FOLDER` with this server's state")
	f.String("kek", "", "`SOURCE` of the key-encryption key: file:PATH, env:NAME or command:PROGRAM ARGUMENT... (default file:<data-dir>.kek)")
	f.String("admin-file", "", "`FILE` of the first admin's credential (default <data-dir>.admin.yaml)")
	f.String("admin-listen", d.AdminListen, "`ADDRESS` where administrators connect (gRPC and REST)")
	f.String("node-listen", d.NodeListen, "`ADDRESS` where proxies and agents connect")
	f.String("cluster-listen", d.ClusterListen, "`ADDRESS` where the other servers connect")
	f.String("local-listen", d.LocalListen, "`ADDRESS` of metrics, health and pprof; loopback only")
	f.String("zone", "", "where this server runs, such as a datacentre: proxies in the same `ZONE` prefer it (default: not said)")
	f.String("advertise", "", "`HOST` by which others reach this server (default: that of each listen address, or this machine's first address)")
	f.Duration("election-timeout", time.Second, "silence of the leader after which another one is elected")
	f.Uint64("snapshot-entries", 4096, "entries since the last snapshot of the log after which there is a new one")
	f.Duration("snapshot-interval", 30*time.Second, "how often that is looked at, to twice as often")
	f.Uint64("trailing-entries", 2048, "entries that stay in the log after a snapshot, for servers that are a little behind")
	f.Uint64("disk-reserve", 64, "`MIB` to keep back for the day that the disk is full; while less than as much again is free, changes are refused")
	f.Bool("reseed", false, "when this server's log is lost or damaged, put a new member in its place (ztd reseed) and go on")
	f.Duration("stable-after", 10*time.Second, "how long a server that has joined is to be up to date before it votes")
	f.Duration("dead-after", 24*time.Hour, "silence after which a server is removed, if the cluster is safe without it; negative: never")
	f.Int("min-voters", 3, "nobody is removed for silence if fewer voters would be left")
	f.String("log-level", "info", "debug, info, warn or error")
	return f
}

// withConfig gives a command the flags of these keys, or of all, and --config.
func withConfig(cmd *cobra.Command, names ...string) {
	keys().VisitAll(func(f *pflag.Flag) {
		if len(names) == 0 || slices.Contains(names, f.Name) {
			cmd.Flags().AddFlag(f)
		}
	})
	cmd.Flags().String("config", "", "YAML `FILE` with flags as keys")
}

// loadConfig decodes the configuration exactly: a key that is not known is an
// error. All commands share one file and one environment, so keys without a flag on
// the command are known, too.
func loadConfig(own *pflag.FlagSet) (config, error) {
	var c config
	v := viper.New()
	v.SetEnvPrefix("ztd")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	known := keys()
	var errs []error
	known.VisitAll(func(flag *pflag.Flag) {
		if f := own.Lookup(flag.Name); f != nil {
			flag = f
		}
		errs = append(errs, v.BindPFlag(flag.Name, flag))
	})
	file, err := own.GetString("config")
	if err := errors.Join(append(errs, err)...); err != nil {
		return c, err
	}
	if file != "" {
		v.SetConfigFile(file)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return c, fmt.Errorf("configuration: %w", err)
		}
	}
	var unknown []string
	for _, key := range v.AllKeys() {
		if known.Lookup(key) == nil {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return c, fmt.Errorf("configuration: %s: unknown keys: %s", file, strings.Join(unknown, ", "))
	}
	if err := errors.Join(v.UnmarshalExact(&c), unknownVariables(os.Environ())); err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// unknownVariables names each ZTD_* that is not a key.
func unknownVariables(environ []string) error {
	known := keys()
	var errs []error
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		key, ours := strings.CutPrefix(name, "ZTD_")
		if ours && known.Lookup(strings.ReplaceAll(strings.ToLower(key), "_", "-")) == nil {
			errs = append(errs, fmt.Errorf("environment variable %s is not known", name))
		}
	}
	return errors.Join(errs...)
}

// setUp is what each command begins with.
func setUp(cmd *cobra.Command, stderr io.Writer) (config, *slog.Logger, error) {
	c, err := loadConfig(cmd.Flags())
	if err != nil {
		return c, nil, err
	}
	log, err := c.logger(stderr)
	return c, log, err
}

func (c config) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("log-level %q is not debug, info, warn or error", c.LogLevel)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})), nil
}

// server is the configuration of the library.
func (c config) server(log *slog.Logger) controlplane.Config {
	s := controlplane.Default()
	s.DataDir, s.Logger, s.Advertise, s.Zone = c.DataDir, log, c.Advertise, c.Zone
	s.KEK, s.AdminFile = c.KEK, c.AdminFile
	s.DiskReserve = c.DiskReserve << 20
	s.AdminListen, s.NodeListen, s.ClusterListen, s.LocalListen = c.AdminListen, c.NodeListen, c.ClusterListen, c.LocalListen
	s.Timing = store.Timing{
		Heartbeat: c.ElectionTimeout, Election: c.ElectionTimeout, Lease: c.ElectionTimeout / 2,
		SnapshotEntries: c.SnapshotEntries, SnapshotInterval: c.SnapshotInterval, TrailingEntries: c.TrailingEntries,
	}
	s.Autopilot = controlplane.Autopilot{Stable: c.StableAfter, DeadAfter: c.DeadAfter, MinVoters: c.MinVoters}
	return s
}

// kek is the source of the key-encryption key.
func (c config) kek() string {
	if c.KEK != "" {
		return c.KEK
	}
	return controlplane.DefaultKEK(c.DataDir)
}

// adminFile is where the first admin's credential is.
func (c config) adminFile() string {
	if c.AdminFile != "" {
		return c.AdminFile
	}
	return controlplane.DefaultAdminFile(c.DataDir)
}
