package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane"
)

// devTrustDomain is that of a cluster made by --dev.
const devTrustDomain = "mesh.example" // as in the spec that ztctl init writes

func command(stdout, stderr io.Writer) *cobra.Command {
	var dev bool
	root := &cobra.Command{
		Use:   "ztd",
		Short: "Server of the ztmesh control plane",
		Long: `ztd is a server of the ztmesh control plane. Three or five of them agree on one
zero-trust spec and stream what it means to a fleet of Envoys.

Every flag of ztd run is also a key of the file that --config names, and a variable
in the environment: --data-dir is ZTD_DATA_DIR. A flag wins over the environment, and
that over the file. All commands take the same file; unknown keys and variables are
errors. The exit code is 0, or 1 for any error.`,
		Example: `  # Everything in one process, with a new cluster in ./ztd-data:
  ztd --dev

  # The first server of a cluster, and a second one:
  ztd init --trust-domain shop.example --data-dir /var/lib/ztd && ztd run --data-dir /var/lib/ztd
  ztd join --server 10.0.0.1:7401 --token-file token --data-dir /var/lib/ztd && ztd run --data-dir /var/lib/ztd`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       controlplane.Version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dev {
				return cmd.Help()
			}
			return runDev(cmd, stdout, stderr)
		},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.Flags().BoolVar(&dev, "dev", false, "make a cluster of one server if there is none, listen on loopback, and serve")
	withConfig(root)
	root.AddCommand(initCommand(stdout, stderr), joinCommand(stdout, stderr), runCommand(stderr), reseedCommand(stdout, stderr),
		recoverCommand(stdout, stderr), restoreCommand(stdout, stderr), versionCommand(stdout))
	return root
}

func initCommand(stdout, stderr io.Writer) *cobra.Command {
	var trustDomain string
	cmd := &cobra.Command{
		Use:   "init --trust-domain DOMAIN",
		Short: "Make a new cluster with this server as its first",
		Long: `init makes the cluster's root and this server's identity in the data directory,
and the first admin's credential (mode 0600) beside it. What is secret in the data
directory is encrypted; the key for that comes from --kek, by default a file
beside the data directory that init makes. The trust domain is that of all
workloads and cannot be changed. Nothing listens yet: ztd run does.`,
		Example: "  ztd init --trust-domain shop.example --data-dir /var/lib/ztd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			path, err := initialise(cmd.Context(), c, trustDomain, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, `cluster for trust domain %s made in %s
admin credential: %s (mode 0600; keep it safe)
key-encryption key: %s (without it the data directory is worth nothing: back it up apart)
next: ztd run --data-dir %s
      ztctl context import %s
`, trustDomain, c.DataDir, path, c.kek(), c.DataDir, path)
			return nil
		},
	}
	cmd.Flags().StringVar(&trustDomain, "trust-domain", "", "SPIFFE trust `DOMAIN` of the workloads, such as shop.example (required)")
	_ = cmd.MarkFlagRequired("trust-domain")
	withConfig(cmd, "data-dir", "kek", "admin-file", "log-level")
	return cmd
}

func initialise(ctx context.Context, c config, trustDomain string, log *slog.Logger) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return controlplane.Init(ctx, controlplane.InitConfig{
		DataDir: c.DataDir, TrustDomain: trustDomain, KEK: c.KEK, AdminFile: c.AdminFile, Logger: log,
	})
}

func joinCommand(stdout, stderr io.Writer) *cobra.Command {
	var server, tokenFile string
	var replica, replace bool
	cmd := &cobra.Command{
		Use:   "join --server HOST:PORT --token-file FILE",
		Short: "Make this a further server of an existing cluster",
		Long: `join redeems a one-use server token (ztctl token create --server) at the node
port of any server of the cluster. The token pins the cluster's root, so that it
is shown to no other. Afterwards ztd run makes this server a member, which votes
once it has been up to date for a while (--stable-after of the leader). Where --kek
names a file that is not there yet, the cluster hands its key-encryption key over.

With --replica it never votes: it serves proxies and stale reads, and forwards the
rest. It adds capacity and costs the writers nothing.

With --replace the data directory may be a server's already: that one is moved aside,
and kept. So a server of before a restore or a recovery joins anew.`,
		Example: `  ztd join --server 10.0.0.1:7401 --token-file token --data-dir /var/lib/ztd
  ztd join --server 10.0.0.1:7401 --token-file token --data-dir /var/lib/ztd --replica`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			token, err := os.ReadFile(tokenFile)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			err = controlplane.Join(ctx, controlplane.JoinConfig{
				DataDir: c.DataDir, KEK: c.KEK, Server: server, Token: strings.TrimSpace(string(token)), Replica: replica,
				Replace: replace, Logger: log,
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "enrolled as a server in %s\nnext: ztd run --data-dir %s\n", c.DataDir, c.DataDir)
			return nil
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "node port of any server of the cluster, `HOST:PORT` (required)")
	cmd.Flags().BoolVar(&replica, "replica", false, "make it a read replica, which never votes")
	cmd.Flags().BoolVar(&replace, "replace", false, "move the data directory of a server of before aside")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "`FILE` with the server token (required)")
	_ = cmd.MarkFlagRequired("server")
	_ = cmd.MarkFlagRequired("token-file")
	withConfig(cmd, "data-dir", "kek", "log-level")
	return cmd
}

func runCommand(stderr io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve from the data directory until interrupted",
		Long: `run serves from a data directory that ztd init, join or restore has made, until it is
interrupted: then it hands its lead over and ends. It is ready when /readyz of
--local-listen says so.`,
		Example: "  ztd run --data-dir /var/lib/ztd --advertise 10.0.0.1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, log)
		},
	}
	withConfig(cmd)
	return cmd
}

// runDev is everything in one process: for a first look, and for tests.
func runDev(cmd *cobra.Command, stdout, stderr io.Writer) error {
	c, log, err := setUp(cmd, stderr)
	if err != nil {
		return err
	}
	for _, address := range []*string{&c.AdminListen, &c.NodeListen, &c.ClusterListen} {
		if strings.HasPrefix(*address, ":") { // any address: the default, unless somebody has named one
			*address = "127.0.0.1" + *address
		}
	}
	if f := cmd.Flag("election-timeout"); !f.Changed && c.ElectionTimeout.String() == f.DefValue {
		c.ElectionTimeout = 100 * time.Millisecond // one server waits for nobody
	}
	if _, err := os.Stat(filepath.Join(c.DataDir, "server.json")); errors.Is(err, os.ErrNotExist) {
		if _, err := initialise(cmd.Context(), c, devTrustDomain, log); err != nil {
			return err
		}
	}
	s, err := controlplane.New(c.server(log))
	if err != nil {
		return err
	}
	go func() {
		select {
		case <-s.Ready():
			fmt.Fprintf(stdout, "ready; try: ztctl --config %s status\n", c.adminFile())
		case <-cmd.Context().Done():
		}
	}()
	return s.Run(cmd.Context())
}

func versionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of ztd",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, controlplane.Version)
			return err
		},
	}
}
