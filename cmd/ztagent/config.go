package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// config is the configuration of the process: a YAML file, ZTAGENT_* in the
// environment and flags, each over the one before.
type config struct {
	DataDir          string        `mapstructure:"data-dir"`
	Workload         string        `mapstructure:"workload"`
	Servers          []string      `mapstructure:"server"`
	TokenFile        string        `mapstructure:"token-file"`
	Address          string        `mapstructure:"address"`
	EgressAddress    string        `mapstructure:"egress-address"`
	Zone             string        `mapstructure:"zone"`
	Weight           uint32        `mapstructure:"weight"`
	PublicRoots      string        `mapstructure:"public-roots"`
	Envoy            string        `mapstructure:"envoy"`
	NoEnvoy          bool          `mapstructure:"no-envoy"`
	EnvoyConcurrency int           `mapstructure:"envoy-concurrency"`
	EnvoyLogLevel    string        `mapstructure:"envoy-log-level"`
	EnvoyGrace       time.Duration `mapstructure:"envoy-grace"`
	DeregisterOnExit bool          `mapstructure:"deregister-on-exit"`
	LogLevel         string        `mapstructure:"log-level"`
}

const envPrefix = "ZTAGENT_"

// keys declares every key as a flag, with its default.
func keys() *pflag.FlagSet {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.String("data-dir", "/var/lib/ztagent", "`FOLDER` with this instance's state; one for each instance")
	f.String("workload", "", "`NAMESPACE/NAME` that the token was made for")
	f.StringSlice("server", nil, "node port of a server, `HOST:PORT`; repeatable, or several by comma: they are tried in turn")
	f.String("token-file", "", "`FILE` with the token; read when one is needed")
	f.String("address", "", "IP `ADDRESS` that the Envoy listens on for its peers (default: the one this host calls from)")
	f.String("egress-address", "", "loopback `ADDRESS` that it listens on for its application (default 127.0.0.1)")
	f.String("zone", "", "where this host is, such as a datacentre: peers in the same `ZONE` call it first, and it calls them (default: as before)")
	f.Uint32("weight", 0, "share of the calls among the workload's instances, 1 to 1000 (default: as before, and at first 100)")
	f.String("public-roots", "", "PEM `FILE` of the CAs by which the Envoy knows servers outside the mesh (default: the host's)")
	f.String("envoy", "envoy", "`PATH` of the Envoy to run")
	f.Bool("no-envoy", false, "run none: only serve certificates, and write the bootstrap for an Envoy that others run")
	f.Int("envoy-concurrency", 0, "worker threads of the Envoy (default: one for each CPU)")
	f.String("envoy-log-level", "warning", "trace, debug, info, warning, error, critical or off")
	f.Duration("envoy-grace", 10*time.Second, "time that the Envoy has to end before it is killed")
	f.Bool("deregister-on-exit", false, "give the instance up at the end: the next start needs a new token")
	f.String("log-level", "info", "debug, info, warn or error")
	return f
}

// withConfig gives a command the flags of these keys, and --config.
func withConfig(cmd *cobra.Command, names ...string) {
	all := keys()
	for _, name := range names {
		cmd.Flags().AddFlag(all.Lookup(name))
	}
	cmd.Flags().String("config", "", "YAML `FILE` with flags as keys")
}

// loadConfig decodes the configuration exactly: what is not known is an error.
// All commands share one file and one environment, so keys without a flag on cmd
// are known, too.
func loadConfig(cmd *cobra.Command, environ []string) (config, error) {
	v := viper.New()
	var names []string
	var errs []error
	keys().VisitAll(func(f *pflag.Flag) {
		names = append(names, f.Name)
		if own := cmd.Flags().Lookup(f.Name); own != nil {
			f = own
		}
		errs = append(errs, v.BindPFlag(f.Name, f), v.BindEnv(f.Name, envName(f.Name)))
	})
	if err := errors.Join(errs...); err != nil {
		return config{}, err
	}
	file, err := cmd.Flags().GetString("config")
	if err != nil {
		return config{}, err
	}
	if file != "" {
		v.SetConfigFile(file)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return config{}, fmt.Errorf("configuration: %w", err)
		}
	}
	var c config
	if err := v.UnmarshalExact(&c); err != nil {
		return config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, unknownEnv(environ, names)
}

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// unknownEnv refuses misspelt variables.
func unknownEnv(environ, names []string) error {
	var errs []error
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		known := slices.ContainsFunc(names, func(k string) bool { return envName(k) == name })
		if strings.HasPrefix(name, envPrefix) && !known {
			errs = append(errs, fmt.Errorf("configuration: unknown variable %s", name))
		}
	}
	return errors.Join(errs...)
}
