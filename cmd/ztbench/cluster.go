package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// mesh is the control plane that is measured: a server of its own process, and the
// admin of its cluster.
type mesh struct {
	*child
	dir   string // of the run
	at    answer // where it listens
	conn  *grpc.ClientConn
	admin ztv1.AdminServiceClient
	roots []*x509.Certificate
	file  fleetFile
}

// startMesh makes a cluster of one server below dir.
func startMesh(ctx context.Context, dir string) (*mesh, error) {
	m := &mesh{dir: dir}
	if err := m.start(ctx); err != nil {
		return nil, err
	}
	contexts, err := identity.LoadContexts(filepath.Join(dir, "server.admin.yaml"))
	if err != nil {
		return nil, err
	}
	who, _ := contexts.Find("")
	if m.roots, err = identity.ParsePEM([]byte(who.Roots)); err != nil {
		return nil, err
	}
	pair, err := identity.ParseKeyPair([]byte(string(who.Key) + who.Certificate))
	if err != nil {
		return nil, err
	}
	creds, err := m.clientTLS(pair)
	if err != nil {
		return nil, err
	}
	m.conn, err = grpc.NewClient("passthrough:///"+m.at.Admin, grpc.WithTransportCredentials(credentials.NewTLS(creds)),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(maxMessage), grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	m.admin = ztv1.NewAdminServiceClient(m.conn)
	m.file = fleetFile{TrustDomain: trustDomain, Roots: who.Roots}
	return m, nil
}

const maxMessage = 64 << 20

func (m *mesh) start(ctx context.Context) (err error) {
	m.child, m.at, err = start(ctx, "server", "--kind", kindMesh, "--dir", filepath.Join(m.dir, "server"))
	return err
}

func (m *mesh) clientTLS(pair *identity.KeyPair) (*tls.Config, error) {
	return identity.ClientConfig(identity.Trust{
		TrustDomain: trustDomain, Roots: func() []*x509.Certificate { return m.roots }, Now: time.Now,
		Certificate: func() (*tls.Certificate, error) { return pair.TLS(), nil },
	})
}

// apply merges documents in and returns whom they affect.
func (m *mesh) apply(ctx context.Context, spec string) (*ztv1.ApplyResponse, error) {
	resp, err := m.admin.Apply(ctx, &ztv1.ApplyRequest{Files: []*ztv1.File{{Name: "spec.yaml", Content: []byte(spec)}}, Merge: true})
	if err != nil {
		return nil, fmt.Errorf("apply: %w: %v", err, status.Convert(err).Details())
	}
	return resp, nil
}

// enrol makes k instances of each of the workloads, as agents do, and adds them to
// the fleet.
func (m *mesh) enrol(ctx context.Context, workloads []string, k int) ([]member, error) {
	out := make([]member, len(workloads)*k)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	base := len(m.file.Instances)
	for i := range out {
		g.Go(func() (err error) {
			out[i], err = m.enrolOne(ctx, workloads[i/k], loopback(base+i))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	m.file.Instances = append(m.file.Instances, out...)
	return out, nil
}

// loopback is the address of instance i.
func loopback(i int) string {
	return fmt.Sprintf("127.%d.%d.%d", 100+i>>16, i>>8&0xff, i&0xff)
}

func (m *mesh) enrolOne(ctx context.Context, workload, address string) (member, error) {
	made, err := m.admin.CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: workload})
	if err != nil {
		return member{}, err
	}
	token, err := identity.ParseToken(made.Token)
	if err != nil {
		return member{}, err
	}
	creds, err := identity.PinnedClientConfig(token.Pin, time.Now, nil)
	if err != nil {
		return member{}, err
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := grpc.NewClient("passthrough:///"+m.at.Node, grpc.WithTransportCredentials(credentials.NewTLS(creds)),
		grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", to) }))
	if err != nil {
		return member{}, err
	}
	defer conn.Close()
	key, csr, err := request()
	if err != nil {
		return member{}, err
	}
	_, svid, err := request() // the workload's key is the agent's, and no matter here
	if err != nil {
		return member{}, err
	}
	id := identity.NewID()
	resp, err := ztv1.NewNodeServiceClient(conn).Enrol(ctx, &ztv1.EnrolRequest{
		Token: token.Reveal(), Workload: workload, Address: address, Instance: id, NodeCsr: csr, SvidCsr: svid,
	})
	if err != nil {
		return member{}, err
	}
	chain, err := identity.ParseDER(resp.Certificates.NodeChain)
	if err != nil {
		return member{}, err
	}
	pem, err := key.PEM()
	if err != nil {
		return member{}, err
	}
	return member{ID: id, Workload: workload, Address: address, Pair: string(pem.Reveal()) + string(identity.EncodePEM(chain))}, nil
}

func request() (identity.PrivateKey, []byte, error) {
	key, err := identity.NewKey()
	if err != nil {
		return key, nil, err
	}
	csr, err := identity.NewCSR(key)
	return key, csr, err
}

// save writes the fleet down for the processes of proxies.
func (m *mesh) save() (string, error) {
	path := filepath.Join(m.dir, "fleet.json")
	b, err := json.Marshal(m.file)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b, 0o600)
}

// settled returns when n proxies are connected and hold all they should, as a server
// says that leads.
func (m *mesh) settled(ctx context.Context, n int) error {
	for {
		resp, err := m.admin.GetStatus(ctx, &ztv1.GetStatusRequest{})
		if err != nil && status.Code(err) != codes.Unavailable { // nobody leads yet
			return err
		}
		acked := 0
		for _, p := range resp.GetProxies() {
			if p.Connected && p.AckedRevision >= resp.Revision {
				acked++
			}
		}
		if err == nil && acked >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d of %d proxies have ACKed", acked, n), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
