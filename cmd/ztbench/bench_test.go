package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestMain lets this binary stand in for ztbench where that starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "proxies") {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestRun: every experiment reaches those that it should and nobody else, on each
// kind of server, with TLS and without.
func TestRun(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plaintext=%t", plain), func(t *testing.T) {
			b := &bench{
				load: workload{services: 12, proxies: 2}, rounds: 2, plain: plain, timeout: defaultTimeout,
				only:     []string{cold, grant, endpoint, wide, reconnect},
				against:  []string{kindFloor, kindSnapshot},
				progress: func(text string, args ...any) { t.Logf(text, args...) },
			}
			r, err := b.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, kind := range []string{kindMesh, kindFloor, kindSnapshot} {
				for experiment, reached := range map[string]int{cold: 24, grant: 4, endpoint: 10, wide: 24} {
					row := r.find(kind, experiment)
					switch {
					case row == nil:
						t.Errorf("%s, %s: not measured", kind, experiment)
					case row.Reached != reached || row.Responses < reached || row.Wasted != 0 || row.Last == 0:
						t.Errorf("%s, %s: reached %d of %d with %d responses, %d wasted; the last after %s", kind, experiment, row.Reached, reached, row.Responses, row.Wasted, row.Last)
					}
				}
			}
			if row := r.find(kindMesh, reconnect); row == nil || row.Responses != 0 {
				t.Errorf("proxies that come back with all they hold are told something: %+v", row)
			}
			var out bytes.Buffer
			if err := r.table(&out); err != nil {
				t.Fatal(err)
			}
			if err := r.figures(b.load, &out); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(out.String(), "figure "); n < 6 {
				t.Errorf("%d figures:\n%s", n, out.String())
			}
			t.Log("\n" + out.String())
		})
	}
}

// TestParseWorkload: what is no workload is refused.
func TestParseWorkload(t *testing.T) {
	for text, want := range map[string]workload{"100x10": {100, 10}, "10x1": {10, 1}} {
		if got, err := parseWorkload(text); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "100", "9x1", "10x0", "-10x1", "10xx1", "ax1"} {
		if got, err := parseWorkload(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// TestFloorWaitsForStreams: a stream that is not there yet, or ends before its ACK, is one
// that comes again.
func TestFloorWaitsForStreams(t *testing.T) {
	f := newFloor()
	l, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, f)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	// come connects and returns when it was pushed to.
	come := func() (acknowledge func() error, leave context.CancelFunc) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		acknowledge = func() error { return s.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "1"}) }
		err = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a"}})
		_, first := s.Recv()
		err = errors.Join(err, first, acknowledge())
		_, pushed := s.Recv()
		if err := errors.Join(err, pushed); err != nil {
			t.Fatal(err)
		}
		return acknowledge, cancel
	}
	type result struct {
		answer
		error
	}
	pushed := make(chan result, 1)
	go func() {
		a, err := f.do(t.Context(), order{Do: "push", IDs: []string{"a"}})
		pushed <- result{a, err}
	}()
	_, leave := come()
	leave()
	acknowledge, leave := come()
	defer leave()
	if err := acknowledge(); err != nil {
		t.Fatal(err)
	}
	if r := <-pushed; r.error != nil || r.At["a"].IsZero() {
		t.Errorf("%+v, %v", r.answer, r.error)
	}
}
