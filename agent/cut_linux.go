package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cutConnection has the kernel end a tcp connection of this host, as `ss -K` does. Needs
// CAP_NET_ADMIN.
func cutConnection(local, peer netip.AddrPort) error {
	err := netlink.SocketDestroy(net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(peer))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return errGone
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", errNotPermitted, err)
	}
	return fmt.Errorf("cut %s from %s: %w", peer, local, err)
}
