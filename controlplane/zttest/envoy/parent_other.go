//go:build !linux

package envoy

import "syscall"

// parentDeath: only Linux can tie a process to its parent.
func parentDeath() *syscall.SysProcAttr { return nil }
