package zttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a process to start.
type Command struct {
	Name string // for people: "ztd 1"
	Path string
	Args []string
	Env  []string // the whole environment; nil: this process's
	Dir  string   // working directory; empty: this process's
	Log  string   // file that receives stdout and stderr, appended
	// Stdout and Stderr receive them instead, where there is no Log. They may be the same.
	Stdout, Stderr io.Writer
}

// Process is a running command. Its methods may be called from several
// goroutines.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	exit      chan struct{} // closed when the process has been waited for
	err       error         // of Wait; set before exit is closed
}

// Start runs a command in a process group of its own, so that a Ctrl-C reaches
// only who started it and who then ends everything in order.
func Start(c Command) (*Process, error) {
	p := &Process{name: c.Name, log: c.Log, cmd: exec.Command(c.Path, c.Args...), exit: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir = c.Env, c.Dir
	p.cmd.Stdout, p.cmd.Stderr = c.Stdout, c.Stderr
	if c.Log != "" {
		// Appended: others of the group may open it again by the name /dev/stdout.
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		p.cmd.Stdout, p.cmd.Stderr = log, log
	}
	p.cmd.SysProcAttr = processAttributes()
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return p, nil
}

// run starts the process and waits for it, on one thread: the kernel ends the
// process with the thread that started it, and an unlocked one may end any time.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
		close(p.exit)
	}
}

// Name is that of the command.
func (p *Process) Name() string { return p.name }

// PID is the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is the file with its output.
func (p *Process) Log() string { return p.log }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exit }

// Err is how the process has ended; to be asked once it has exited.
func (p *Process) Err() error { return p.err }

// Kill ends the process and its group at once, as kill -9 does, and waits for it.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // it may have ended just now
	<-p.exit
}

// Stop asks the process to end, ends it by force after the grace, and waits for
// it. It may be called more than once.
func (p *Process) Stop(grace time.Duration) {
	select {
	case <-p.exit:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.exit:
	case <-t.C:
		p.Kill()
	}
}

// Await asks done again and again until it has no error. It gives up, with the
// last error, when the process or ctx ends.
func (p *Process) Await(ctx context.Context, what string, done func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		last := done(ctx)
		if last == nil {
			return nil
		}
		if ctx.Err() == nil || err == nil { // the end of ctx itself tells less
			err = last
		}
		select {
		case <-p.exit:
			return &Failure{p.name + " ended while waiting for " + what, p.log, errors.Join(p.err, err)}
		case <-ctx.Done():
			return &Failure{p.name + ": waited in vain for " + what, p.log, err}
		case <-tick.C:
		}
	}
}

// Failure is the error of something whose log tells more.
type Failure struct {
	What string
	Log  string // file
	Err  error
}

func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.What, f.Err) }
func (f *Failure) Unwrap() error { return f.Err }

// Tail is the last lines of a file, or why there are none.
func Tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
