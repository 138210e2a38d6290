package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	firstRestart = 250 * time.Millisecond
	maxRestart   = 30 * time.Second
	// settled is how long an Envoy must have run for the next restart to be quick
	// again.
	settled = time.Minute
)

// supervisor keeps one Envoy running.
type supervisor struct {
	cfg       Envoy
	binary    string
	bootstrap string
	log       *slog.Logger
	now       func() time.Time
}

func newSupervisor(cfg Config, bootstrap string) (*supervisor, error) {
	binary, err := exec.LookPath(cfg.Envoy.Path)
	if err != nil {
		return nil, fmt.Errorf("envoy: %w", err)
	}
	return &supervisor{cfg: cfg.Envoy, binary: binary, bootstrap: bootstrap, log: cfg.Logger, now: cfg.Now}, nil
}

// run keeps an Envoy running until ctx ends, and returns once it has ended too.
func (s *supervisor) run(ctx context.Context) error {
	for wait := firstRestart; ; wait = min(2*wait, maxRestart) {
		started := s.now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.now().Sub(started) >= settled {
			wait = firstRestart
		}
		s.log.Error("envoy ended", "error", err, "restart_in", wait)
		if sleep(ctx, wait) != nil {
			return nil
		}
	}
}

// once runs one Envoy and returns how it ended. When ctx ends, it stops it: by
// force after the grace.
func (s *supervisor) once(ctx context.Context) error {
	cmd := exec.Command(s.binary, s.args()...)
	cmd.Stdout, cmd.Stderr = s.cfg.Output, s.cfg.Output
	cmd.SysProcAttr = processAttributes()
	cmd.WaitDelay = time.Second
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// On one thread: Pdeathsig is bound to the thread that starts the process,
		// and an unlocked one may end any time.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
		}
		ended <- err
	}()
	if err := <-started; err != nil {
		return err
	}
	s.log.Info("envoy started", "pid", cmd.Process.Pid)
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("exit status 0")
		}
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
	grace := time.NewTimer(s.cfg.Grace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
		s.log.Warn("envoy does not end, killing it", "pid", cmd.Process.Pid)
		_ = cmd.Process.Kill()
		<-ended
	}
	return nil
}

// args: without hot restart an Envoy shares no memory and no base id with
// others, so any number of them can run on a host. Its access log is written
// within a second, and not after ten: who asks why a call was refused asks now.
func (s *supervisor) args() []string {
	args := []string{
		"-c", s.bootstrap, "--disable-hot-restart", "--log-level", s.cfg.LogLevel,
		"--file-flush-interval-msec", "1000",
	}
	if s.cfg.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.cfg.Concurrency))
	}
	return args
}

// sleep waits for d or for the end of ctx, whose error it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// sleepAbout is sleep for d, up to half less by chance: so agents that have lost a server
// do not all call at once.
func sleepAbout(ctx context.Context, d time.Duration) error { return sleep(ctx, d/2+rand.N(d/2+1)) }
