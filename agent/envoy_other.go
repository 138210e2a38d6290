//go:build !linux

package agent

import "syscall"

// processAttributes put Envoy in a group of its own, so that a Ctrl-C reaches
// only the agent, which then stops it in order.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
