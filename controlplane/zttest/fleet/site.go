// Package fleet runs servers of the control plane as processes, from the real
// binaries, for the demo and for the suites that kill them: a [Site] is where they
// run, a [Server] is one of them over all of its starts, and a [Credential] is how an
// administrator reaches them.
//
// It judges nothing. A Server is used by one goroutine at a time.
package fleet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Site is where processes run.
type Site struct {
	Bin string   // folder with the programs
	Dir string   // working directory of all; their logs are below it, in "log"
	Env []string // the whole environment
}

// Environment is this process's, without what would configure the programs.
func Environment() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ZTD_") && !strings.HasPrefix(kv, "ZTCTL_") && !strings.HasPrefix(kv, "ZTAGENT_") {
			out = append(out, kv)
		}
	}
	return out
}

// Program is the path of one of the programs; what is a path stays, and so does what
// is of the system.
func (s *Site) Program(name string) string {
	if strings.HasPrefix(name, "zt") {
		return filepath.Join(s.Bin, name)
	}
	return name
}

// Log is the file with what a process says.
func (s *Site) Log(name string) string { return filepath.Join(s.Dir, "log", name+".log") }

// Command runs one of the programs to its end and returns what it says on stdout. What
// it says on stderr is a part of the error, if there is one.
func (s *Site) Command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.Program(name), args...)
	cmd.Dir, cmd.Env = s.Dir, s.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is the caller's to handle
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
