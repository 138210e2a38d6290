// Command ztagent stands beside an Envoy on a host or in a pod: it makes the
// keys, enrols, serves the certificates and keeps the Envoy running. Package
// agent does all of it; here are the commands, their configuration and the edges
// of the process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills
	p := &program{out: os.Stdout, err: os.Stderr, environ: os.Environ(), now: time.Now}
	return p.main(ctx, os.Args[1:])
}

// program is every edge of the process.
type program struct {
	out, err io.Writer
	environ  []string
	now      func() time.Time
}

// main runs one command line and returns its exit code: 0, or 1 for any error.
// Errors go to stderr, one line each, as "ztagent: <what is wrong>".
func (p *program) main(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	root.SetOut(p.out)
	root.SetErr(p.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.FieldsFuncSeq(err.Error(), func(r rune) bool { return r == '\n' }) {
		fmt.Fprintf(p.err, "ztagent: %s\n", line)
	}
	return 1
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ztagent",
		Short: "Give an Envoy its identity, and keep it running",
		Long: `ztagent enrols an instance of a workload with a one-use token, keeps its keys on
this host, hands certificates to the Envoy over a Unix socket, renews them, and
keeps the Envoy running.

Every flag of a command can also stand as a key in the YAML file that --config
names, and in the environment: --data-dir as ZTAGENT_DATA_DIR. A flag wins over
the environment, and that over the file. Unknown keys and variables are errors.
The exit code is 0, or 1 for any error.`,
		Example: `  ztagent run --workload shop/web --server ztd-1:7401,ztd-2:7401 \
      --token-file web.token --address 10.0.0.7
  ztagent status`,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(p.newRun(), p.newDeregister(), p.newStatus(), p.newVersion())
	return root
}

// logger writes JSON to stderr, beside the log of the Envoy.
func (p *program) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(p.err, &slog.HandlerOptions{Level: level}))
}

func (p *program) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of ztagent",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				return errors.New("this binary does not say how it was built")
			}
			_, err := fmt.Fprintf(p.out, "ztagent %s (%s)\n", info.Main.Version, info.GoVersion)
			return err
		},
	}
}
