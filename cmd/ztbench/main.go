// Command ztbench measures what a fleet costs: it simulates any number of Envoys
// towards a server of the control plane, changes the spec, and tells how long the
// last proxy waits, what was sent in vain, and what it takes of processor and
// memory.
//
// A run is several processes, so that what each of them costs can be told apart: the
// server that is measured, the proxies (at most 9,000 to a process, for want of
// files), and the one that people call, which gives the orders. Orders and answers
// are lines of JSON on the standard streams of the children; see child.go.
//
// Beside the control plane, the same workload is served by two others in the same
// run, since absolute times say little on a shared machine: a bare gRPC server that
// only sends as many bytes to the same streams (the floor), and go-control-plane's
// SnapshotCache.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	err := root(os.Stdin, os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ztbench: %v\n", err)
		os.Exit(1)
	}
}

func root(in io.Reader, out, errs io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ztbench",
		Short: "Measure what a fleet of Envoys costs the control plane",
		Long: `ztbench simulates a fleet of Envoys on this machine, changes the spec, and tells
how long the last proxy waits for it and what it costs. All traffic stays on
loopback.`,
		Example: `  ztbench run --workload 100x10
  ztbench run --workload 250x20 --plaintext --rounds 5
  ztbench run --workload 1000x1 --only cold,reconnect -o json`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.SetOut(out)
	cmd.SetErr(errs)
	cmd.AddCommand(runCommand(out, errs), serverCommand(in, out), proxiesCommand(in, out))
	return cmd
}

func runCommand(out, errs io.Writer) *cobra.Command {
	b := &bench{}
	var load, format string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a workload and print what it cost",
		Long: `run starts a cluster of one server, simulates the proxies of a workload, and makes
each kind of change --rounds times. It prints, for each, how long the last proxy has
waited and what it cost in bytes and CPU; then the same of what it is measured against,
and the figures that have goals. The exit code is 0, or 1 for any error; a goal that is
missed is none.`,
		Example: `  ztbench run --workload 100x10
  ztbench run --workload 1000x1 --only cold,reconnect --against none -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if b.load, err = parseWorkload(load); err != nil {
				return err
			}
			if format != "table" && format != "json" {
				return fmt.Errorf("output %q is neither table nor json", format)
			}
			if err := b.validate(); err != nil {
				return err
			}
			b.progress = func(text string, args ...any) { fmt.Fprintf(errs, "ztbench: "+text+"\n", args...) }
			r, err := b.run(cmd.Context())
			if err != nil {
				return errors.Join(err, cmd.Context().Err())
			}
			if format == "json" {
				return r.json(out)
			}
			return errors.Join(r.table(out), r.figures(b.load, out))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&load, "workload", "w", "100x10", "services x proxies of each; every service has five callers and calls five")
	f.IntVar(&b.rounds, "rounds", 10, "how often each change is made")
	f.BoolVar(&b.plain, "plaintext", false, "without TLS between proxies and server, for comparison")
	f.StringSliceVar(&b.only, "only", nil, "only these of: "+joined(experiments))
	f.StringSliceVar(&b.against, "against", []string{kindFloor, kindSnapshot}, "what to measure beside it: floor, snapshot, or none")
	f.DurationVar(&b.timeout, "timeout", defaultTimeout, "for each step")
	f.StringVarP(&format, "output", "o", "table", "table or json")
	return cmd
}
