package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
)

// files are the spec that the demo applies. Addresses in it begin with exampleBlock.
//
//go:embed spec
var files embed.FS

const exampleBlock = "127.0.0."

const (
	trustDomain = "demo.example"
	// patience bounds each wait; what is waited for takes a second or two.
	patience = time.Minute
	// grace is what a process has to end by itself.
	grace = 5 * time.Second
)

// demo is one run. It is used by one goroutine.
type demo struct {
	config
	*screen
	fleet.Site // its Dir holds everything; "spec" in it is what is applied
	block      zttest.Block
	servers    []*fleet.Server
	proxies    []*proxy
	apps       []*zttest.App
	counts
}

// counts are for the summary.
type counts struct {
	rows     int           // of all tables
	sent     int           // requests beside the steps
	failover time.Duration // from the kill to the next commit
	cut      time.Duration // from the commit to the end of a connection; the slowest
	failed   []string      // what was not as expected, for people
}

// run is the whole demo. Whatever happens, no process outlives it.
func run(ctx context.Context, c config) (err error) {
	d := &demo{config: c, screen: &screen{w: c.out, color: c.color, began: time.Now()}, Site: fleet.Site{Bin: c.bin, Env: fleet.Environment()}}
	if d.Dir, err = os.MkdirTemp("", "ztdemo-"); err != nil {
		return err
	}
	defer func() {
		d.stop()
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, os.RemoveAll(d.Dir))
			return
		}
		err = fmt.Errorf("%w%s\nthe logs are in %s", err, tailOf(err), filepath.Join(d.Dir, "log"))
	}()
	if err := d.prepare(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		d.startServers, d.applySpec, d.startProxies, d.judge, d.underTraffic, d.revoke,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := d.summary(); err != nil || !c.keep {
		return err
	}
	return d.keepRunning(ctx)
}

// tailOf is the end of the log that an error is about.
func tailOf(err error) string {
	var f *zttest.Failure
	if !errors.As(err, &f) {
		return ""
	}
	return fmt.Sprintf("\n--- end of %s\n%s\n---", f.Log, zttest.Tail(f.Log, 20))
}

// prepare chooses the addresses and writes the spec for them.
func (d *demo) prepare() (err error) {
	if d.block, err = zttest.NewBlock(); err != nil {
		return err
	}
	d.Env = append(d.Env, "ZTCTL_CONFIG="+filepath.Join(d.Dir, "ztctl.yaml"))
	for _, name := range []string{"log", "spec"} {
		if err := os.Mkdir(filepath.Join(d.Dir, name), 0o700); err != nil {
			return err
		}
	}
	names, err := fs.Glob(files, "spec/*.yaml")
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		b = bytes.ReplaceAll(b, []byte(exampleBlock), []byte(d.block))
		if err := os.WriteFile(filepath.Join(d.Dir, name), b, 0o600); err != nil {
			return err
		}
	}
	fmt.Fprintf(d.w, "%s three servers, five real Envoys, all on %s0/24\n", d.paint(bold, "ztmesh demo:"), d.block)
	return nil
}

// stop ends everything that runs: what calls first, what is called last.
func (d *demo) stop() {
	var wg sync.WaitGroup
	for _, p := range d.proxies {
		wg.Go(func() { p.Stop(grace) })
	}
	wg.Wait()
	for _, s := range d.servers {
		if s.Process != nil {
			wg.Go(func() { s.Stop(grace) })
		}
	}
	wg.Wait()
	for _, a := range d.apps {
		a.Close()
	}
}

// show runs a command and prints both the command and its output.
func (d *demo) show(ctx context.Context, name string, args ...string) error {
	d.prompt(name + " " + quoted(args))
	out, err := d.Command(ctx, name, args...)
	d.output(out)
	return err
}

// refused runs a command that must not be done, and prints why it was not.
func (d *demo) refused(ctx context.Context, name string, args ...string) (bool, error) {
	d.prompt(name + " " + quoted(args))
	out, err := d.Command(ctx, name, args...)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return false, err
	}
	d.output(out)
	if err == nil {
		return false, nil
	}
	_, reason, _ := strings.Cut(err.Error(), "\n")
	d.output(reason)
	return true, nil
}

// quoted is how one would type arguments.
func quoted(args []string) string {
	out := slices.Clone(args)
	for i, a := range out {
		if strings.ContainsAny(a, " *[]") {
			out[i] = "'" + a + "'"
		}
	}
	return strings.Join(out, " ")
}

// ask runs ztctl and decodes what it says.
func (d *demo) ask(ctx context.Context, into any, args ...string) error {
	out, err := d.Command(ctx, "ztctl", append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// apply applies the spec as it stands in the folder now, and waits for the receipt
// of all proxies.
func (d *demo) apply(ctx context.Context, message string) error {
	return d.show(ctx, "ztctl", "apply", "-f", "spec", "--timeout", patience.String(), "--message", message)
}

// edit changes one file of the spec, as one would in an editor.
func (d *demo) edit(file, old, text string) error {
	d.say("in spec/%s:  %s  becomes  %s", file, old, text)
	path := filepath.Join(d.Dir, "spec", file)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(old)) {
		return fmt.Errorf("spec/%s does not say %q", file, old)
	}
	return os.WriteFile(path, bytes.Replace(b, []byte(old), []byte(text), 1), 0o600)
}

// record prints a table and counts its lines.
func (d *demo) record(header string, lines []line) {
	d.table(header, lines)
	d.rows += len(lines)
	for _, l := range lines {
		if !l.ok {
			d.failed = append(d.failed, strings.Join(l.cells, " | ")+d.linesWith(l.id))
		}
	}
}

// linesWith is what the proxies have logged of a request.
func (d *demo) linesWith(id string) string {
	var b strings.Builder
	for _, p := range d.proxies {
		log, err := os.ReadFile(p.Log())
		if id == "" || err != nil {
			continue // there is nothing to add
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, id) {
				fmt.Fprintf(&b, "\n    %s: %s", filepath.Base(p.Log()), strings.TrimSpace(line))
			}
		}
	}
	return b.String()
}

// summary is the last line; it is an error if anything was not as expected.
func (d *demo) summary() error {
	fmt.Fprintln(d.w)
	if len(d.failed) > 0 {
		return fmt.Errorf("not as expected:\n  %s", strings.Join(d.failed, "\n  "))
	}
	fmt.Fprintf(d.w, "%s %d rows as expected, 0 of %d requests dropped, writes %.1f s after the kill, cut in %d ms; %.0f s\n",
		d.paint(green, "demo passed:"), d.rows, d.sent, d.failover.Seconds(), d.cut.Milliseconds(), time.Since(d.began).Seconds())
	return nil
}
