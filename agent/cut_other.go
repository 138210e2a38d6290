//go:build !linux

package agent

import "net/netip"

// cutConnection: only Linux can.
func cutConnection(_, _ netip.AddrPort) error { return errNotPermitted }
