package envoy

import "syscall"

// parentDeath has the kernel kill the process when the thread that started it
// ends, so that a test binary that is killed leaves nothing behind.
func parentDeath() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
