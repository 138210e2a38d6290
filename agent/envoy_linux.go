package agent

import "syscall"

// processAttributes put Envoy in a group of its own, so that a Ctrl-C reaches
// only the agent, which then stops it in order; and have the kernel kill it when
// the thread that started it ends, so that it never outlives a killed agent: the
// next one would start a second Envoy on the same ports.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
