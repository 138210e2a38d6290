// Package envoy runs real Envoy processes for tests and for the demo. It owns
// finding the binary, one process from start to end with its files, its log and
// its admin socket, and nothing about what the Envoy is told: the bootstrap is
// given. It refuses to run without a binary: a missing Envoy is a failure.
//
// A Process may be used from several goroutines. Who starts one stops it.
package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest"
)

// ErrNotFound is returned when there is no Envoy to run.
var ErrNotFound = errors.New("no envoy: run make envoy, or set ZT_ENVOY to its path")

// Find returns the path of the Envoy to run: $ZT_ENVOY, or .tools/envoy/bin/envoy
// in the working directory (for a test, its package's) or any directory above.
func Find() (string, error) {
	if p := os.Getenv("ZT_ENVOY"); p != "" {
		if err := executable(p); err != nil {
			return "", fmt.Errorf("ZT_ENVOY: %w", err)
		}
		return p, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		p := filepath.Join(dir, ".tools", "envoy", "bin", "envoy")
		if executable(p) == nil {
			return p, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", ErrNotFound
		}
		dir = up
	}
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}

// Config is one process.
type Config struct {
	Binary    string    // Find's answer if empty
	Bootstrap []byte    // JSON
	Dir       string    // for the bootstrap file; exists, and is the caller's to remove
	Admin     string    // the admin Unix socket that the bootstrap names
	Args      []string  // further arguments
	LogLevel  string    // "warning" if empty
	Output    io.Writer // receives stdout and stderr beside Log; may be nil
	Stdout    io.Writer // receives stdout in the place of Log and Output; may be nil
}

// Process is a running Envoy.
type Process struct {
	*Admin
	process *zttest.Process

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// Start runs Envoy with one worker and without hot restart, so that any number
// of them can run beside each other. It does not wait until Envoy is ready. The
// process dies with its parent, however that ends.
func Start(c Config) (*Process, error) {
	if c.Binary == "" {
		var err error
		if c.Binary, err = Find(); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(c.Dir, "bootstrap.json")
	if err := os.WriteFile(file, c.Bootstrap, 0o600); err != nil {
		return nil, err
	}
	level := c.LogLevel
	if level == "" {
		level = "warning"
	}
	args := append([]string{
		"-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", level,
	}, c.Args...)
	p := &Process{Admin: NewAdmin(c.Admin)}
	var out io.Writer = logWriter{p}
	if c.Output != nil {
		out = io.MultiWriter(out, c.Output)
	}
	stdout := out
	if c.Stdout != nil {
		stdout = c.Stdout
	}
	var err error
	p.process, err = zttest.Start(zttest.Command{Name: "envoy", Path: c.Binary, Args: args, Stdout: stdout, Stderr: out})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Validate runs Envoy over a bootstrap without serving; the error holds what it
// says.
func Validate(ctx context.Context, bootstrapFile string) error {
	bin, err := Find()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, bin, "--mode", "validate", "-c", bootstrapFile, "--log-level", "warning").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// logWriter appends to the log of its process.
type logWriter struct{ p *Process }

func (w logWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.log.Write(b)
}

// Log is all that Envoy has written so far, its access log included.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// PID is the id of the process.
func (p *Process) PID() int { return p.process.PID() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.process.Exited() }

// Ready waits until Envoy serves: it is live, and its listeners are there. It
// returns an error, with the log, if the process ends or ctx does.
func (p *Process) Ready(ctx context.Context) error {
	return p.Await(ctx, func() bool {
		body, err := p.Get(ctx, "/ready")
		return err == nil && strings.HasPrefix(body, "LIVE")
	})
}

// Await asks done again and again until it says yes. It returns an error, with
// the log, if the process ends or ctx does.
func (p *Process) Await(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-p.Exited():
			return fmt.Errorf("envoy ended: %w\n%s", p.process.Err(), p.Log())
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", ctx.Err(), p.Log())
		case <-tick.C:
		}
	}
	return nil
}

// Stop ends the process, by force after the grace, and waits for it. It may be
// called more than once. It returns an error only if Envoy had ended by itself
// before, badly.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.Exited():
		return p.process.Err()
	default:
		p.process.Stop(grace)
		return nil
	}
}
