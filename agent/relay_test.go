package agent_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// relay forwards TCP connections to a server, from an address of its own. With
// cut, it passes a server's handshake and closes everything, for good, when the
// first long answer comes: the server has done what it was asked, and the client
// never hears of it. cut is then closed.
func relay(t *testing.T, server string, cut chan struct{}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var wg sync.WaitGroup
	var once sync.Once
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer client.Close()
				up, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				wg.Go(func() {
					defer up.Close()
					_, _ = io.Copy(up, client)
				})
				defer up.Close()
				if cut == nil {
					_, _ = io.Copy(client, up)
				} else if beforeAnswer(client, up) {
					once.Do(func() { l.Close(); close(cut) })
				}
			})
		}
	})
	return l.Addr().String()
}

// beforeAnswer copies TLS records until the second long encrypted one: the first
// is the server's certificates, in the handshake; the second, those that it issued.
func beforeAnswer(to io.Writer, from io.Reader) bool {
	const encrypted, long = 23, 1000
	for seen := 0; ; {
		header := make([]byte, 5)
		if _, err := io.ReadFull(from, header); err != nil {
			return false
		}
		body := make([]byte, binary.BigEndian.Uint16(header[3:]))
		if _, err := io.ReadFull(from, body); err != nil {
			return false
		}
		if header[0] == encrypted && len(body) > long {
			if seen++; seen == 2 {
				return true
			}
		}
		if _, err := to.Write(append(header, body...)); err != nil {
			return false
		}
	}
}
