//go:build system

package netsplit_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// client is the number of the end of the network at which the tests are.
const client = 254

func ip(n int) string  { return fmt.Sprintf("10.99.0.%d", n) }
func mac(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }

// nobody is a hardware address that no end has.
const nobody = "02:00:00:00:ff:ff"

// network is a bridge with the ends 1 to n, each in a namespace of its own, and the
// client.
type network struct {
	t testing.TB
	n int
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func newNetwork(t testing.TB, n int) *network {
	t.Helper()
	w := &network{t, n}
	w.ip("link", "set", "lo", "up")
	w.ip("link", "add", "br0", "address", mac(client), "type", "bridge")
	w.ip("addr", "add", ip(client)+"/24", "dev", "br0")
	w.ip("link", "set", "br0", "up")
	for i := 1; i <= n; i++ {
		w.ip("netns", "add", space(i))
		w.ip("link", "add", fmt.Sprintf("v%d", i), "type", "veth", "peer", "name", "eth0", "address", mac(i), "netns", space(i))
		w.ip("link", "set", fmt.Sprintf("v%d", i), "master", "br0", "up")
		w.ip("-n", space(i), "addr", "add", ip(i)+"/24", "dev", "eth0")
		w.ip("-n", space(i), "link", "set", "eth0", "up")
		w.ip("-n", space(i), "link", "set", "lo", "up")
	}
	w.heal()
	return w
}

func (w *network) ip(args ...string) {
	w.t.Helper()
	run(w.t, "ip", args...)
}

func space(n int) string { return fmt.Sprintf("s%d", n) }

// ends are all ends, the client last.
func (w *network) ends() (all []int) {
	for i := 1; i <= w.n; i++ {
		all = append(all, i)
	}
	return append(all, client)
}

// cut drops what one end sends to others.
func (w *network) cut(from int, to ...int) {
	w.t.Helper()
	for _, e := range to {
		w.neighbour(from, e, nobody)
	}
}

// part cuts one end and others off from each other.
func (w *network) part(one int, from ...int) {
	w.t.Helper()
	w.cut(one, from...)
	for _, e := range from {
		w.cut(e, one)
	}
}

// heal mends all.
func (w *network) heal() {
	w.t.Helper()
	for _, from := range w.ends() {
		for _, to := range w.ends() {
			if from != to {
				w.neighbour(from, to, mac(to))
			}
		}
	}
}

func (w *network) neighbour(at, of int, address string) {
	w.t.Helper()
	args := []string{"neigh", "replace", ip(of), "lladdr", address, "nud", "permanent", "dev"}
	if at == client {
		w.ip(append(args, "br0")...)
	} else {
		w.ip(append([]string{"-n", space(at)}, append(args, "eth0")...)...)
	}
}

// dialIn connects from within the namespace of an end, to its own loopback.
func dialIn(n int) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		// A namespace is that of a thread, and a socket stays in the one that it was
		// made in. The thread ends with its goroutine, which does not unlock it.
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			var f *os.File
			if f, err = os.Open("/run/netns/" + space(n)); err != nil {
				return
			}
			defer f.Close()
			if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return
			}
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		}()
		<-done
		return conn, err
	}
}
