//go:build failpoints

package failpoint

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that arms a process from its start, as Arm does.
const Variable = "ZT_FAILPOINT"

// Exit is the exit code of the action exit.
const Exit = 86

// The actions.
const (
	Kill  = "kill"  // SIGKILL to this process: nothing is flushed, nothing is deferred
	Leave = "exit"  // os.Exit: likewise, with code Exit
	Pause = "pause" // SIGSTOP to this process: somebody must continue or kill it
)

// point is what is armed, and what was passed.
type point struct {
	mu     sync.Mutex // guards what follows
	read   bool       // the environment was
	name   string     // "" is none
	left   uint64     // hits until it acts
	action string
	passed map[string]uint64 // hits so far, by name
}

// armed is the one failpoint of this process. A failpoint has to be reachable from
// everywhere, and exists in no build that serves.
var armed point

// Hit says that the process is at a failpoint. If that is the one that is armed, and
// passed as often as was asked for, it acts, and says so on stderr first: "failpoint
// NAME".
func Hit(name string) {
	armed.mu.Lock()
	armed.readEnvironment()
	armed.passed[name]++
	due := armed.name == name
	if due {
		armed.left--
		due = armed.left == 0
	}
	action := armed.action
	if due {
		armed.name = ""
	}
	armed.mu.Unlock()
	if due {
		act(name, action)
	}
}

func act(name, action string) {
	fmt.Fprintf(os.Stderr, "failpoint %s\n", name)
	switch action {
	case Kill:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the kernel has done it
	case Leave:
		os.Exit(Exit)
	case Pause:
		// To this thread: what is sent to the process stops whichever thread has time,
		// and the others only then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	}
}

// readEnvironment arms what the environment says, once. Its caller holds mu.
func (p *point) readEnvironment() {
	if p.read {
		return
	}
	p.read, p.passed = true, make(map[string]uint64)
	if s, ok := os.LookupEnv(Variable); ok {
		if err := p.arm(s); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", Variable, err)
			os.Exit(2)
		}
	}
}

// Arm arms NAME[:COUNT][=ACTION]: at the COUNT-th hit from now (default the first) the
// process acts (default kill). An empty string disarms.
func Arm(s string) error {
	armed.mu.Lock()
	defer armed.mu.Unlock()
	armed.readEnvironment()
	return armed.arm(s)
}

func (p *point) arm(s string) error {
	if s == "" {
		p.name = ""
		return nil
	}
	rest, action, named := strings.Cut(s, "=")
	if !named {
		action = Kill
	}
	name, number, counted := strings.Cut(rest, ":")
	count := uint64(1)
	if counted {
		var err error
		if count, err = strconv.ParseUint(number, 10, 64); err != nil || count == 0 {
			return fmt.Errorf("%q: the count is not a number from 1", s)
		}
	}
	if !slices.Contains(names(), name) {
		return fmt.Errorf("there is no failpoint %q", name)
	}
	if !slices.Contains([]string{Kill, Leave, Pause}, action) {
		return fmt.Errorf("%q: the action is not %s, %s or %s", s, Kill, Leave, Pause)
	}
	p.name, p.left, p.action = name, count, action
	return nil
}

// Passed is how often each failpoint was hit so far.
func Passed() map[string]uint64 {
	armed.mu.Lock()
	defer armed.mu.Unlock()
	armed.readEnvironment()
	return maps.Clone(armed.passed)
}
