package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/agent"
)

func (p *program) newRun() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Enrol if need be, and serve until a signal comes",
		Long: `run enrols this instance on its first start, with a one-use token that ztctl token
create makes. It keeps what it has in --data-dir: later starts need no token, and
no server either as long as the certificates last. If those have ended, put a new
token into --token-file; a running agent looks there by itself.

The control plane registers the address that this host calls from; --address
makes the agent and the Envoy call from that one.

The Envoy is started again whenever it ends, and ends with the agent. With
--no-envoy, start one by other means, as the same user:
  envoy -c DATA-DIR/bootstrap.json`,
		Example: `  ztagent run --workload shop/web --server ztd-1:7401,ztd-2:7401 \
      --token-file web.token --address 10.0.0.7
  ztagent run --config /etc/ztagent.yaml --no-envoy`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd, p.environ)
			if err != nil {
				return err
			}
			settings, err := p.agent(c)
			if err != nil {
				return err
			}
			a, err := agent.New(settings)
			if err != nil {
				return err
			}
			return a.Run(cmd.Context())
		},
	}
	withConfig(cmd, "data-dir", "workload", "server", "token-file", "address", "egress-address", "zone", "weight", "public-roots",
		"envoy", "no-envoy", "envoy-concurrency", "envoy-log-level", "envoy-grace", "deregister-on-exit", "log-level")
	return cmd
}

func (p *program) newDeregister() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "deregister",
		Short: "Give this instance up, and forget its keys",
		Long: `deregister tells the control plane that this instance is gone, and removes what
--data-dir holds of it. Stop the agent first. The next run needs a new token.`,
		Example: `  ztagent deregister`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd, p.environ)
			if err != nil {
				return err
			}
			settings, err := p.agent(c)
			if err != nil {
				return err
			}
			return agent.Deregister(cmd.Context(), settings)
		},
	}
	withConfig(cmd, "data-dir", "server", "log-level")
	return cmd
}

// agent is the configuration of the library.
func (p *program) agent(c config) (agent.Config, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return agent.Config{}, fmt.Errorf("log level %q is none of debug, info, warn, error", c.LogLevel)
	}
	envoy := agent.Envoy{
		Path: c.Envoy, Concurrency: c.EnvoyConcurrency, LogLevel: c.EnvoyLogLevel,
		Output: p.err, Grace: c.EnvoyGrace,
	}
	if c.NoEnvoy {
		envoy.Path = ""
	} else if c.Envoy == "" {
		return agent.Config{}, fmt.Errorf("envoy is empty: name one, or say --no-envoy")
	}
	return agent.Config{
		DataDir: c.DataDir, Workload: c.Workload, Servers: c.Servers, TokenFile: c.TokenFile,
		Address: c.Address, EgressAddress: c.EgressAddress, PublicRoots: c.PublicRoots,
		Zone: c.Zone, Weight: c.Weight,
		Envoy: envoy, DeregisterOnExit: c.DeregisterOnExit,
		Logger: p.logger(level), Now: p.now,
	}, nil
}
