//go:build !linux

package zttest

import "syscall"

// processAttributes: only Linux can tie a process to its parent.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
