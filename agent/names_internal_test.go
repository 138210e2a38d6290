package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// TestServerNames: only renewals call by the name that has a lane of its own, so that they
// do not stand behind the agents of a fleet that comes back.
func TestServerNames(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names := make(chan string, 100)
	config := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- hello.ServerName
		return nil, errors.New("that is all")
	}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			_ = tls.Server(raw, config).Handshake()
			raw.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})

	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := identity.NewKeyPair(key, []*x509.Certificate{cert})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), now: time.Now}
	a.holding.Store(&holding{record: record{TrustDomain: "shop.example", Servers: []string{l.Addr().String()}}, node: pair, roots: []*x509.Certificate{cert}})
	for _, call := range []struct {
		what, name string
		do         func(context.Context) error
	}{
		{"confirm", xds.ServerName, func(ctx context.Context) error { _, err := a.confirmRound(ctx, ""); return err }},
		{"renew", identity.RenewalServerName, func(ctx context.Context) error {
			return a.renew(ctx, &ztv1.RenewRequest{}, key, key)
		}},
		{"tell", xds.ServerName, func(ctx context.Context) error { return a.tellEnded(ctx, nil) }},
	} {
		if err := call.do(t.Context()); err == nil {
			t.Errorf("%s: by whom?", call.what)
		}
		select {
		case name := <-names:
			if name != call.name {
				t.Errorf("%s calls %q, want %q", call.what, name, call.name)
			}
		default:
			t.Errorf("%s has called nobody", call.what)
		}
		for len(names) > 0 { // gRPC's second try
			<-names
		}
	}
}
