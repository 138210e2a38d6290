// Command demo shows ztmesh at work on this machine: three servers, five real
// Envoys and the applications beside them, real requests, a changed grant, a
// killed leader and connections that are cut. It exits with 1 if anything is not
// as expected.
//
// Everything runs as real processes of the real binaries, on loopback addresses
// of its own, in a temporary folder. It needs no root, and leaves nothing behind
// unless it fails: then the logs stay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
)

// config is how the demo is run.
type config struct {
	bin   string // folder of ztd, ztctl and ztagent
	envoy string
	keep  bool // leave it running until ctx ends
	out   io.Writer
	color bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once; the kernel then ends the others
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is the whole program; it returns the exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := config{out: stdout, color: isTerminal(stdout) && os.Getenv("NO_COLOR") == ""}
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.bin, "bin", "bin", "`folder` with ztd, ztctl and ztagent (make build)")
	f.StringVar(&c.envoy, "envoy", "", "`path` of the Envoy (default $ZT_ENVOY, or .tools/envoy/bin/envoy: make envoy)")
	f.BoolVar(&c.keep, "keep", os.Getenv("KEEP") != "", "leave everything running until Ctrl-C, and say what to try (or KEEP=1)")
	f.Usage = func() {
		fmt.Fprint(stderr, `demo runs a ztmesh control plane of three servers and five real Envoys on this
machine, sends requests through them and shows what is allowed, what is denied,
and why. It takes well under a minute and ends with 0 if all was as expected.

  make demo              builds what is needed and runs it
  make demo KEEP=1       leaves it running, to try things out
  go run ./deploy/demo   with ./bin and the Envoy of make build envoy

`)
		f.PrintDefaults()
	}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "demo: unknown argument %q\n", f.Arg(0))
		return 2
	}
	if err := c.complete(); err != nil {
		fmt.Fprintf(stderr, "demo: %v\n", err)
		return 1
	}
	err := run(ctx, c)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "demo: interrupted")
		return 130
	}
	fmt.Fprintf(stderr, "demo: %v\n", err)
	return 1
}

// complete finds the programs.
func (c *config) complete() (err error) {
	if c.bin, err = filepath.Abs(c.bin); err != nil {
		return err
	}
	for _, name := range []string{"ztd", "ztctl", "ztagent"} {
		if _, err := os.Stat(filepath.Join(c.bin, name)); err != nil {
			return fmt.Errorf("%w; run make build, or name their folder with --bin", err)
		}
	}
	if c.envoy == "" {
		if c.envoy, err = envoy.Find(); err != nil {
			return err
		}
	}
	c.envoy, err = filepath.Abs(c.envoy)
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
