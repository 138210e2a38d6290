// Command ztctl is how people and pipelines speak to a ztmesh control plane, and
// how they judge a spec without one.
//
// It owns the commands, their words, their exit codes and a person's contexts
// file. It decides nothing itself: what a spec means offline is asked of
// packages spec, policy and compile, everything else of a server.
//
// Each command is a constructor (newApply, newGet, ...) in the file of its name.
// They share one app, which is made here and holds every edge of the process:
// streams, clock, settings. Commands run in one goroutine; the context they get
// ends on the first Ctrl-C, and a second one kills.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now}
	a.color = isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""
	a.progress = isTerminal(os.Stderr)
	return a.main(ctx, os.Args[1:], os.Environ())
}

// The exit codes, which pipelines branch on.
const (
	exitOK          = 0
	exitError       = 1
	exitDenied      = 3 // a request is denied, or a test failed
	exitUnconfirmed = 4 // committed, but not ACKed by every proxy in time
	exitStale       = 5 // the base is stale: somebody else applied first
	exitUnknown     = 6 // the change may or may not take effect
)

// app is what every command needs of the process it runs in.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	color    bool     // stdout is a terminal that wants colour
	progress bool     // stderr is a terminal: a line may be drawn over
	args     []string // of the command line
	set      settings
	settle   func() error // fills set from flags and environment, once they are parsed
}

// exit ends the process with a code of its own. With a nil err everything has
// been said already.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// hinted adds to an error what its reader can do about it.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// orHint is withHint for an error that has no hint yet.
func orHint(err error, format string, args ...any) error {
	if err == nil || len(hintsOf(err)) > 0 {
		return err
	}
	return withHint(err, format, args...)
}

// main runs one command line and returns its exit code.
func (a *app) main(ctx context.Context, args, environ []string) int {
	a.args = args
	root := a.root(environ)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	err = orHint(err, "see %s --help", cmd.CommandPath())
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = &exit{exitCode(err), errors.New("interrupted")}
	}
	a.fail(err)
	return exitCode(err)
}

func exitCode(err error) int {
	var e *exit
	if errors.As(err, &e) {
		return e.code
	}
	return exitError
}

// root builds the whole command tree.
func (a *app) root(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "ztctl",
		Short: "Say who may do what, and see that every proxy enforces it",
		Long: `ztctl speaks to a ztmesh control plane: it applies specs, shows what every
proxy has taken over, and answers whether a request is allowed. What needs no
server (init, validate, lint, test -f, can -f) works offline.`,
		Example: `  ztctl init shop && ztctl validate -f shop
  ztctl context import ztd.admin.yaml
  ztctl apply -f shop
  ztctl can shop/web "GET orders /orders/7"
  ztctl block shop/web --reason "INC-42" --for 1h
  ztctl status`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          showHelp,
	}
	a.bindSettings(root, environ)
	root.AddGroup(
		&cobra.Group{ID: groupSpec, Title: "Spec:"},
		&cobra.Group{ID: groupFleet, Title: "Proxies and servers:"},
		&cobra.Group{ID: groupAccess, Title: "Access:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupSpec, a.newInit(), a.newValidate(), a.newLint(), a.newTest(), a.newCan(), a.newApply(), a.newShadow(),
		a.newBlock(), a.newUnblock(), a.newGet(), a.newHistory(), a.newReceipt(), a.newRollback(), a.newLog())
	add(groupFleet, a.newStatus(), a.newBootstrap(), a.newDeregister(), a.newMembers(), a.newBackup(), a.newKey())
	add(groupAccess, a.newToken(), a.newAdmin(), a.newContext())
	root.AddCommand(a.newVersion(), exitCodesTopic(), environmentTopic())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(err, "see %s --help", cmd.CommandPath())
	})
	return root
}

// knownCommand refuses what is not a subcommand, and names what it may have been.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return withHint(err, "did you mean %s?", strings.Join(near, " or "))
	}
	return withHint(err, "see %s --help", cmd.CommandPath())
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

const (
	groupSpec   = "spec"
	groupFleet  = "fleet"
	groupAccess = "access"
)

// exitCodesTopic is `ztctl help exit-codes`.
func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `The exit codes of every command:

  0  it is done
  1  an error: nothing was changed
  3  the request is denied (can), or a test failed (test, validate)
  4  committed, but not confirmed by all proxies in time (apply, block, unblock);
     the proxies that are late take it over when they can
  5  stale base: somebody else changed the namespace first; nothing was changed
  6  the outcome is not known: no server has answered in time whether the change
     takes effect. The hint is the command that tells; it changes nothing twice`,
	}
}

// environmentTopic is `ztctl help environment`.
func environmentTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "environment",
		Short: "The environment variables that ztctl reads",
		Long: `A flag wins over its variable.

  ZTCTL_CONFIG           the contexts file (--config)
  ZTCTL_CONTEXT          the context to use (--context)
  ZTCTL_NAMESPACE        the namespace of bare names (--namespace)
  ZTCTL_OUTPUT           table, json or yaml (--output)
  ZTCTL_REQUEST_TIMEOUT  the deadline of a call (--request-timeout)
  NO_COLOR               set to anything: no colour

Any other ZTCTL_ variable is an error: a misspelt one must not send a spec to
the wrong cluster.`,
	}
}
