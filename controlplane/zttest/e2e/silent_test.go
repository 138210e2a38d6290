package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// face is an address of a server that can fall silent: as of a process that is stopped,
// the kernel still takes connections, and nothing is read or answered any more.
type face struct {
	address     string
	called, has atomic.Int64 // connections that came, and that are open

	mu     sync.Mutex    // guards silent
	silent chan struct{} // closed when it speaks again; nil: it speaks
}

// newFace calls server from the address of an instance.
func newFace(t *testing.T, server, from string) *face {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	f := &face{address: l.Addr().String()}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.called.Add(1)
			all.Go(func() { f.carry(t.Context(), dialer, c, server) })
		}
	})
	t.Cleanup(func() { l.Close(); f.speak(); all.Wait() })
	return f
}

func (f *face) carry(ctx context.Context, dialer net.Dialer, c net.Conn, server string) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	f.goesOn()
	up, err := dialer.Dial("tcp", server)
	if err != nil {
		return
	}
	defer up.Close()
	f.has.Add(1)
	defer f.has.Add(-1)
	back := make(chan struct{})
	go func() {
		defer close(back)
		f.copy(c, up)
	}()
	f.copy(up, c)
	c.Close()
	up.Close()
	<-back
}

func (f *face) copy(to io.WriteCloser, from io.Reader) {
	defer to.Close()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		f.goesOn()
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// goesOn returns when the face is not silent.
func (f *face) goesOn() {
	f.mu.Lock()
	silent := f.silent
	f.mu.Unlock()
	if silent != nil {
		<-silent
	}
}

func (f *face) fallSilent() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = make(chan struct{})
}

func (f *face) speak() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent != nil {
		close(f.silent)
		f.silent = nil
	}
}

// TestSilentServer: the server that an Envoy is connected to stops, without a word. The
// Envoy finds out by its pings and goes to another, without calling the silent one again,
// however long that would let it wait; also across zones. Its start is held up by each
// silent server once.
func TestSilentServer(t *testing.T) {
	m := mesh.New(t, mesh.Config{})
	m.Apply(fmt.Sprintf(shop, m.NewApp()))
	for _, near := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d near", near), func(t *testing.T) {
			in := m.Enrol("shop/web")
			var faces []*face
			var addresses []string
			for range 3 {
				f := newFace(t, m.Servers[0].Addresses().Node, in.Address)
				faces, addresses = append(faces, f), append(addresses, f.address)
			}
			in.AskAt(near, addresses...).Start().Acked()
			for range 2 {
				var held *face
				m.Until("it is connected to one of them", func() bool {
					held = nil
					for _, f := range faces {
						if f.has.Load() > 0 {
							held = f
						}
					}
					return held != nil
				})
				called, since := held.called.Load(), m.Proxy(in.ID).ConnectedSince.AsTime()
				held.fallSilent()
				began := time.Now()
				m.Until("it is connected to another", func() bool {
					p := m.Proxy(in.ID)
					return p.Connected && p.ConnectedSince.AsTime().After(since)
				})
				t.Logf("connected to another after %v", time.Since(began).Round(time.Millisecond))
				if again := held.called.Load() - called; again > 0 {
					t.Errorf("the silent server was called %d times", again)
				}
				held.speak()
				m.Until("the old connection is gone", func() bool { return held.has.Load() == 0 })
			}
			check(t, in.Stop(mesh.Patience))

			for _, f := range faces[:2] {
				f.called.Store(0)
				f.fallSilent()
			}
			began := time.Now()
			in.Start().Acked()
			t.Logf("started beside two silent servers within %v, which were called %d and %d times",
				time.Since(began).Round(time.Millisecond), faces[0].called.Load(), faces[1].called.Load())
			for _, f := range faces[:2] {
				f.speak()
			}
		})
	}
}
