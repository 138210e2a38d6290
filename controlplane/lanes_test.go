package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ztmesh/ztmesh/identity"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// port is a listener whose handshakes run in lanes.
type port struct {
	*lanes
	t       *testing.T
	address string
}

func newPort(t *testing.T) *port {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p := &port{t: t, address: l.Addr().String(), lanes: newLanes(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}, prometheus.NewRegistry())}
	p.patience = 20 * time.Second // however busy the machine is
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer raw.Close()
				if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Error(err)
				}
				c, _, err := p.ServerHandshake(raw)
				if err == nil {
					_, _ = io.Copy(c, c)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
		if len(p.all)+len(p.begun)+len(p.renewals) != 0 {
			t.Error("a turn was not given back")
		}
	})
	return p
}

// dial says hello to the port and hears itself.
func (p *port) dial(name string) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", p.address, &tls.Config{
		InsecureSkipVerify: true, ServerName: name, NextProtos: []string{"h2"},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// TestLanes: many handshakes at once all come through, and leave nothing behind.
func TestLanes(t *testing.T) {
	p := newPort(t)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := p.dial("any"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestSilentPeersTakeNoTurn: however many stop in the middle of their handshake.
func TestSilentPeersTakeNoTurn(t *testing.T) {
	p := newPort(t)
	for range 50 {
		raw, err := net.Dial("tcp", p.address)
		check(t, err)
		t.Cleanup(func() { raw.Close() })
		// Says hello, and then reads no further than the first byte of the answer.
		go func() {
			_ = tls.Client(&deaf{Conn: raw}, &tls.Config{InsecureSkipVerify: true, ServerName: "any", NextProtos: []string{"h2"}}).Handshake()
		}()
	}
	check(t, p.dial("any"))
}

// deaf writes and does not read.
type deaf struct{ net.Conn }

func (deaf) Read([]byte) (int, error) { return 0, errors.New("deaf") }

// TestRenewalsHaveTheirLane: while the processors are taken, other handshakes wait for
// a while and are closed; a renewal goes by.
func TestRenewalsHaveTheirLane(t *testing.T) {
	p := newPort(t)
	for range cap(p.all) {
		p.all <- struct{}{}
	}
	refused := make(chan error, 1)
	go func() { refused <- p.dial("any") }()
	check(t, p.dial(identity.RenewalServerName))
	if err := <-refused; err == nil {
		t.Error("a handshake without a turn came through")
	}
	for range cap(p.all) {
		<-p.all
	}
	check(t, p.dial("any"))
}
