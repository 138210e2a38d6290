//go:build system

package crash_test

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
)

// TestArm: what the environment arms is what happens, and what it cannot arm ends the
// process at once: a cycle that waits for nothing would pass.
func TestArm(t *testing.T) {
	c := fleet.NewTest(t, patience, []string{"ztd"})
	for n, tt := range []struct {
		arm, says string
		code      int // -1: SIGKILL
	}{
		{arm: "", code: 0},
		{arm: "api.apply.planned", code: 0}, // init does not come there
		{arm: "controlplane.init.keys", says: "failpoint controlplane.init.keys", code: -1},
		{arm: "controlplane.init.keys=exit", says: "failpoint controlplane.init.keys", code: 86},
		{arm: "controlplane.init.keys:2=exit", code: 0}, // it comes there once
		{arm: "identity.file.written:2=exit", says: "failpoint identity.file.written", code: 86},
		{arm: "no.such.point", says: `there is no failpoint "no.such.point"`, code: 2},
		{arm: "controlplane.init.keys:0", says: "the count is not a number from 1", code: 2},
		{arm: "controlplane.init.keys:x=kill", says: "the count is not a number from 1", code: 2},
		{arm: "controlplane.init.keys=dance", says: "the action is not", code: 2},
	} {
		cmd := exec.CommandContext(t.Context(), c.Program("ztd"), "init", "--trust-domain", trustDomain, "--data-dir", fmt.Sprintf("d%d", n))
		cmd.Dir, cmd.Env = c.Dir, append(c.Env[:len(c.Env):len(c.Env)], "ZT_FAILPOINT="+tt.arm)
		out, err := cmd.CombinedOutput()
		ended := cmd.ProcessState.Sys().(syscall.WaitStatus)
		killed := ended.Signaled() && ended.Signal() == syscall.SIGKILL
		if killed != (tt.code == -1) || !killed && ended.ExitStatus() != tt.code || !strings.Contains(string(out), tt.says) {
			t.Errorf("armed by %q: %v: %s", tt.arm, err, out)
		}
	}
}
