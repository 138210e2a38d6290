package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// settings is the configuration of the process. It is decoded once, before a
// command runs: flags over ZTCTL_* over defaults. There is no file of settings;
// the contexts file holds credentials and has its own strict reader.
type settings struct {
	Config         string        `mapstructure:"config"` // the contexts file
	Context        string        `mapstructure:"context"`
	Namespace      string        `mapstructure:"namespace"`
	Output         string        `mapstructure:"output"`
	RequestTimeout time.Duration `mapstructure:"request-timeout"`
}

const envPrefix = "ZTCTL_"

// bindSettings gives the root its persistent flags and fills a.set from them
// before any command runs.
func (a *app) bindSettings(root *cobra.Command, environ []string) {
	f := root.PersistentFlags()
	f.String("config", "", "contexts file (default ~/.config/ztmesh/contexts.yaml)")
	f.String("context", "", "context to use (default: the current one)")
	f.StringP("namespace", "n", "", "namespace of names that are given without one")
	f.StringP("output", "o", "table", "table, json or yaml")
	f.Duration("request-timeout", 30*time.Second, "deadline of a call to the control plane")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.settle() }
	a.settle = func() error {
		v := viper.New()
		keys := []string{"config", "context", "namespace", "output", "request-timeout"}
		for _, key := range keys {
			if err := errors.Join(v.BindEnv(key, envName(key)), v.BindPFlag(key, f.Lookup(key))); err != nil {
				return err
			}
		}
		if err := v.UnmarshalExact(&a.set); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
		return errors.Join(unknownEnv(environ, keys), a.set.validate())
	}
	mustComplete(root, "output", "table", "json", "yaml")
}

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// unknownEnv refuses misspelt variables.
func unknownEnv(environ, keys []string) error {
	var errs []error
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		known := slices.ContainsFunc(keys, func(k string) bool { return envName(k) == name })
		if strings.HasPrefix(name, envPrefix) && !known {
			errs = append(errs, withHint(fmt.Errorf("unknown variable %s", name), "see ztctl help environment"))
		}
	}
	return errors.Join(errs...)
}

func (s settings) validate() error {
	var errs []error
	if !slices.Contains([]string{"table", "json", "yaml"}, s.Output) {
		errs = append(errs, withHint(fmt.Errorf("unknown output %q", s.Output), "-o takes table, json or yaml"))
	}
	if s.RequestTimeout <= 0 {
		errs = append(errs, fmt.Errorf("request timeout %s is not positive", s.RequestTimeout))
	}
	return errors.Join(errs...)
}

// contextsFile is where the contexts are.
func (s settings) contextsFile() (string, error) {
	if s.Config != "" {
		return s.Config, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", withHint(err, "name the contexts file with --config or %s", envName("config"))
	}
	return filepath.Join(dir, "ztmesh", "contexts.yaml"), nil
}

// mustComplete offers the values of a flag to the shell. A flag that does not
// exist is a mistake of this program.
func mustComplete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}
