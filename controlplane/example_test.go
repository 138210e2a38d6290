package controlplane_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/controlplane"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// A program that embeds the whole control plane: it makes a cluster of one
// server, runs it, applies a spec as the first admin and asks what it allows.
func Example() {
	dir, err := os.MkdirTemp("", "ztmesh")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()

	// Once: a folder with the cluster's root and the first admin's credential.
	data := filepath.Join(dir, "ztd")
	credential, err := controlplane.Init(ctx, controlplane.InitConfig{
		DataDir: data, TrustDomain: "shop.example", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}

	// Each time: serve from the folder until ctx ends. Port 0 is any free port.
	cfg := controlplane.Default()
	cfg.DataDir = data
	cfg.AdminListen, cfg.NodeListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.ClusterListen, cfg.LocalListen = "127.0.0.1:0", "127.0.0.1:0"
	server, err := controlplane.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	select {
	case <-server.Ready():
	case err := <-ended:
		log.Fatal(err)
	}

	admin, err := dial(server.Addresses().Admin, credential)
	if err != nil {
		log.Fatal(err)
	}
	defer admin.Close()
	api := ztv1.NewAdminServiceClient(admin)
	if _, err := api.Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "shop.yaml", Content: []byte(`
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: web}
spec: {}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: shop, name: orders}
spec: {serves: [{name: http, port: 8080, protocol: http}]}
---
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: web-reads-orders}
spec: {from: {workloads: [web]}, to: {services: [orders], methods: [GET]}}
`)}}}); err != nil {
		log.Fatal(err)
	}
	for _, request := range []string{"GET orders /orders/7", "DELETE orders /orders/7"} {
		answer, err := api.Can(ctx, &ztv1.CanRequest{Caller: "shop/web", Request: request})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(request, answer.Allowed, answer.Reason)
	}

	stop()
	fmt.Println("stopped:", <-ended)
	// Output:
	// GET orders /orders/7 true grant:shop/web-reads-orders
	// DELETE orders /orders/7 false default
	// stopped: <nil>
}

// dial opens the API as the admin whose credential Init has written.
func dial(address, credential string) (*grpc.ClientConn, error) {
	contexts, err := identity.LoadContexts(credential)
	if err != nil {
		return nil, err
	}
	admin, _ := contexts.Find("")
	roots, err := identity.ParsePEM([]byte(admin.Roots))
	if err != nil {
		return nil, err
	}
	pair, err := identity.ParseKeyPair([]byte(string(admin.Key) + admin.Certificate))
	if err != nil {
		return nil, err
	}
	config, err := identity.ClientConfig(identity.Trust{
		TrustDomain: admin.TrustDomain, Now: time.Now,
		Roots:       func() []*x509.Certificate { return roots },
		Certificate: func() (*tls.Certificate, error) { return pair.TLS(), nil },
	})
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}
