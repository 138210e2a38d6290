package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// order is one line to a child.
type order struct {
	Do string `json:"do"`
	// connect: the fleet file, and which of its instances are the child's.
	Fleet    string `json:"fleet,omitempty"`
	From, To int    `json:",omitempty"`
	// connect: where to; with TLS unless Plain.
	Server string `json:"server,omitempty"`
	Plain  bool   `json:"plain,omitempty"`
	Floor  bool   `json:"floor,omitempty"`
	// await, push: these instances. endpoint: a workload, and its callers.
	IDs []string `json:"ids,omitempty"`
	// push: the size of what is sent.
	Bytes int `json:"bytes,omitempty"`
	// change: documents to be merged in, by a server that is not the control plane.
	Spec string `json:"spec,omitempty"`
	// How long it may take.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// answer is one line of a child: the answer to one order, or the first one, which
// says that it is ready.
type answer struct {
	Error string `json:"error,omitempty"`
	// A server: where it listens.
	Admin, Node, Plain, Local string `json:",omitempty"`
	// connect: when each instance had everything. push: when each had ACKed.
	At map[string]time.Time `json:"at,omitempty"`
	// count, await: what each instance was told since the last mark.
	Told map[string]counters `json:"told,omitempty"`
	// change: when it was begun to be acted on.
	Began time.Time `json:"began,omitzero"`
}

// obey reads orders and answers each until the input ends or ctx is done.
func obey(ctx context.Context, in io.Reader, out io.Writer, do func(context.Context, order) (answer, error)) error {
	lines, to := bufio.NewReader(in), json.NewEncoder(out)
	for ctx.Err() == nil {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			return err
		}
		if o.Timeout == 0 {
			o.Timeout = defaultTimeout
		}
		timed, cancel := context.WithTimeout(ctx, o.Timeout)
		a, err := do(timed, o)
		cancel()
		if err != nil {
			a.Error = err.Error()
		}
		if err := to.Encode(a); err != nil {
			return err
		}
	}
	return nil
}

const defaultTimeout = 2 * time.Minute

// child is a process of this program.
type child struct {
	what    string
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	errs    bytes.Buffer
}

// start runs this program with other arguments and reads its first answer.
func start(ctx context.Context, args ...string) (*child, answer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, answer{}, err
	}
	c := &child{what: strings.Join(args[:1], " "), command: exec.CommandContext(ctx, self, args...)}
	c.command.Stderr = &c.errs
	c.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the parent, who ends them in order
	if c.in, err = c.command.StdinPipe(); err != nil {
		return nil, answer{}, err
	}
	out, err := c.command.StdoutPipe()
	if err != nil {
		return nil, answer{}, err
	}
	c.out = bufio.NewReaderSize(out, 1<<20)
	if err := c.command.Start(); err != nil {
		return nil, answer{}, err
	}
	first, err := c.read()
	if err != nil {
		return nil, answer{}, errors.Join(err, c.stop())
	}
	return c, first, nil
}

func (c *child) tell(o order) error {
	line, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = c.in.Write(append(line, '\n'))
	return err
}

func (c *child) read() (answer, error) {
	var a answer
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("%s ended: %w\n%s", c.what, err, c.errs.String())
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("%s: %w", c.what, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", c.what, a.Error)
	}
	return a, nil
}

// ask is tell and read.
func (c *child) ask(o order) (answer, error) {
	if err := c.tell(o); err != nil {
		return answer{}, err
	}
	return c.read()
}

// stop ends the child by closing its input, and waits.
func (c *child) stop() error {
	_ = c.in.Close() // it may have ended already
	kill := time.AfterFunc(20*time.Second, func() { _ = c.command.Process.Kill() })
	defer kill.Stop()
	var ended *exec.ExitError
	err := c.command.Wait()
	if errors.As(err, &ended) {
		return fmt.Errorf("%s: %w\n%s", c.what, err, c.errs.String())
	}
	return err
}

// usage is what a process has used so far.
type usage struct {
	cpu time.Duration
	rss int64 // bytes, now
}

func (c *child) usage() (usage, error) {
	id := c.command.Process.Pid
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", id))
	if err != nil {
		return usage{}, err
	}
	var size, resident int64 // pages
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return usage{}, fmt.Errorf("/proc/%d/statm: %w", id, err)
	}
	// The clock of a process, clock_getcpuclockid(3): nanoseconds, where /proc/PID/stat
	// counts hundredths of a second.
	const cpuClock = 2
	var cpu unix.Timespec
	if err := unix.ClockGettime(int32(^id<<3|cpuClock), &cpu); err != nil {
		return usage{}, fmt.Errorf("CPU clock of %d: %w", id, err)
	}
	return usage{cpu: time.Duration(cpu.Nano()), rss: resident * int64(os.Getpagesize())}, nil
}
