package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestAdmit(t *testing.T) {
	for _, tt := range []struct {
		uid, own uint32
		in       bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}} {
		if err := admit(tt.uid, tt.own); (err == nil) != tt.in {
			t.Errorf("user %d at an agent of user %d: %v", tt.uid, tt.own, err)
		}
	}
}

// The kernel says who is there, and a connection that is not of a Unix socket is
// refused.
func TestServerHandshake(t *testing.T) {
	for _, tt := range []struct {
		network, address string
		in               bool
	}{{"unix", filepath.Join(t.TempDir(), "s"), true}, {"tcp", "127.0.0.1:0", false}} {
		l, err := net.Listen(tt.network, tt.address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial(tt.network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if _, _, err := peerCredentials().ServerHandshake(server); (err == nil) != tt.in {
			t.Errorf("%s: %v", tt.network, err)
		}
		if uid, err := peerUID(server); tt.in && (err != nil || uid != uint32(os.Geteuid())) {
			t.Errorf("user %d, %v", uid, err)
		}
	}
}
