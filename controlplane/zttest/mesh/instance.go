package mesh

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/ztmesh/ztmesh/controlplane/zttest/envoy"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// Instance is one enrolled instance of a workload, at an address of its own,
// where its Envoy takes calls from peers and from its application.
type Instance struct {
	*envoy.Process // after Start

	ID, Workload, Address string
	Node                  *identity.KeyPair // what it shows to the servers
	SVID                  *tls.Certificate  // only of an instance with an agent

	m       *Mesh
	dir     string
	servers []string // node ports, this cluster's first answer
	near    int      // so many of them are in its zone
}

// Enrol enrols an instance without agent: its workload's certificate comes by
// ADS. Start runs its Envoy.
func (m *Mesh) Enrol(workload string) *Instance {
	m.t.Helper()
	return m.enrol(workload, m.Loopback(), false)
}

// EnrolAgent enrols an instance as an agent does: it holds its workload's key.
func (m *Mesh) EnrolAgent(workload string) *Instance {
	m.t.Helper()
	return m.enrol(workload, m.Loopback(), true)
}

// EnrolIn is Enrol of an instance in a zone, with a share of the calls.
func (m *Mesh) EnrolIn(workload, zone string, weight uint32) *Instance {
	m.t.Helper()
	return m.enrol(workload, m.Loopback(), false, func(r *ztv1.EnrolRequest) { r.Zone, r.Weight = zone, weight })
}

// Place moves the instance.
func (in *Instance) Place(zone string, weight uint32) {
	in.m.t.Helper()
	node := ztv1.NewNodeServiceClient(in.m.running()[0].Dial(in.Address, in.Node))
	Settled(in.m, "a place", func() (*ztv1.PlaceResponse, error) {
		return node.Place(in.m.context(), &ztv1.PlaceRequest{Zone: zone, Weight: weight})
	})
}

// EnrolAt is Enrol at an address that is another's already.
func (m *Mesh) EnrolAt(workload, address string) *Instance {
	m.t.Helper()
	return m.enrol(workload, address, false)
}

// Token makes a join token for a workload, or for a server if that is "".
func (m *Mesh) Token(workload string) string {
	m.t.Helper()
	return Settled(m, "a token", func() (*ztv1.CreateTokenResponse, error) {
		return m.Admin().CreateToken(m.context(), &ztv1.CreateTokenRequest{Workload: workload, Server: workload == ""})
	}).Token
}

func (m *Mesh) enrol(workload, address string, agent bool, more ...func(*ztv1.EnrolRequest)) *Instance {
	m.t.Helper()
	in := &Instance{ID: NewID(), Workload: workload, Address: address, m: m}
	token, err := identity.ParseToken(m.Token(workload))
	m.check(err)
	config, err := identity.PinnedClientConfig(token.Pin, time.Now, nil)
	m.check(err)
	key, csr := m.NewRequest()
	req := &ztv1.EnrolRequest{
		Token: token.Reveal(), Workload: workload, Address: address, EgressAddress: address, Instance: in.ID, NodeCsr: csr,
	}
	for _, change := range more {
		change(req)
	}
	var svid identity.PrivateKey
	if agent {
		svid, req.SvidCsr = m.NewRequest()
	}
	conn := m.dial(m.running()[0].Addresses().Node, credentials.NewTLS(config), localAddress(address))
	resp := Settled(m, "an enrolment", func() (*ztv1.EnrolResponse, error) {
		return ztv1.NewNodeServiceClient(conn).Enrol(m.context(), req)
	})
	in.servers, in.near = resp.Servers, int(resp.Near)
	in.Node = m.Pair(key, resp.Certificates.NodeChain)
	if agent {
		in.SVID = m.Pair(svid, resp.Certificates.SvidChain).TLS()
	}
	return in
}

// Ask has the Envoy ask these servers alone from its next start on, the first of them
// while that answers.
func (in *Instance) Ask(servers ...*Server) *Instance {
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.Addresses().Node)
	}
	return in.AskAt(1, addresses...)
}

// AskAt has the Envoy ask at these addresses alone from its next start on, of which the
// first so many are near.
func (in *Instance) AskAt(near int, addresses ...string) *Instance {
	in.servers, in.near = addresses, near
	return in
}

// NewRequest makes a key and asks for a certificate for it.
func (m *Mesh) NewRequest() (identity.PrivateKey, []byte) {
	m.t.Helper()
	key, err := identity.NewKey()
	m.check(err)
	csr, err := identity.NewCSR(key)
	m.check(err)
	return key, csr
}

// Pair is a key and the chain that a server answered with.
func (m *Mesh) Pair(key identity.PrivateKey, der [][]byte) *identity.KeyPair {
	m.t.Helper()
	chain, err := identity.ParseDER(der)
	m.check(err)
	pair, err := identity.NewKeyPair(key, chain)
	m.check(err)
	return pair
}

// NewID is the id of an instance, or of a server.
func NewID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}

// Start runs the Envoy of an instance without agent, from the files that `ztctl
// bootstrap` writes, until the test ends. It returns when the Envoy serves.
func (in *Instance) Start() *Instance {
	m := in.m
	m.t.Helper()
	if in.dir == "" {
		in.writeBootstrap()
	}
	boot, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: m.TrustDomain, Workload: in.Workload, Servers: in.servers, Near: in.near, BindAddress: true,
		Instance:    xds.Instance{ID: in.ID, Address: in.Address, Egress: in.Address, Secrets: xds.FromADS},
		PublicRoots: identity.PublicRoots(),
		AdminSocket: filepath.Join(in.dir, "admin"), NodeDir: filepath.Join(in.dir, "node"),
	})
	m.check(err)
	p, err := envoy.Start(envoy.Config{
		Bootstrap: boot, Dir: in.dir, Admin: filepath.Join(in.dir, "admin"),
		// The access log alone goes to stdout: two writers would tear its lines.
		Args: []string{"--file-flush-interval-msec", "50", "--log-path", filepath.Join(in.dir, "envoy.log")},
	})
	m.check(err)
	in.Process = p
	m.t.Cleanup(func() {
		if err := p.Stop(Patience); err != nil {
			m.t.Error(err)
		}
		if m.t.Failed() {
			said, _ := os.ReadFile(filepath.Join(in.dir, "envoy.log")) // not there if Envoy did not start
			m.t.Logf("log of %s, instance %s at %s:\n%s", in.Workload, in.ID, in.Address, said)
		}
	})
	ctx, cancel := context.WithTimeout(m.context(), Patience)
	defer cancel()
	m.check(p.Ready(ctx))
	return in
}

// writeBootstrap makes the folder that Envoy reads its own certificate from.
func (in *Instance) writeBootstrap() {
	m := in.m
	m.t.Helper()
	in.dir = ShortDir(m.t)
	m.check(os.Mkdir(filepath.Join(in.dir, "node"), 0o700))
	key, err := in.Node.Key.PEM()
	m.check(err)
	for name, res := range map[string]*xds.Resource{
		xds.NodeFile:          xds.Node(identity.EncodePEM(in.Node.Chain), key.Reveal()),
		xds.ControlBundleFile: xds.ControlBundle(m.TrustDomain, identity.EncodePEM(m.Roots())),
	} {
		content, err := xds.File(res)
		m.check(err)
		m.check(os.WriteFile(filepath.Join(in.dir, "node", name), content, 0o600))
	}
}

// Run is Enrol and Start.
func (m *Mesh) Run(workload string) *Instance {
	m.t.Helper()
	return m.Enrol(workload).Start()
}

// Acked returns when the Envoy has ACKed all that it is told at the newest
// revision.
func (in *Instance) Acked() *Instance {
	in.m.t.Helper()
	in.m.Until(in.Workload+" has ACKed", func() bool {
		resp, err := in.m.Admin().GetStatus(in.m.context(), &ztv1.GetStatusRequest{})
		in.m.check(err)
		for _, p := range resp.Proxies {
			if p.Instance == in.ID {
				return p.Connected && p.AckedRevision >= resp.Revision && p.AckedAt != nil
			}
		}
		return false
	})
	return in
}

// At is one port of the instance's address.
func (in *Instance) At(port uint32) string { return net.JoinHostPort(in.Address, fmt.Sprint(port)) }

// Renew asks a server for a new certificate, as the instance.
func (in *Instance) Renew(s *Server) error {
	in.m.t.Helper()
	_, csr := in.m.NewRequest()
	_, err := ztv1.NewNodeServiceClient(s.Dial(in.Address, in.Node)).Renew(in.m.context(), &ztv1.RenewRequest{NodeCsr: csr})
	return err
}

// Certificate is one that the first server's intermediate has signed for a URI,
// whatever the URI: what a caller shows whose ID no server would ever sign.
func (m *Mesh) Certificate(uri string) *tls.Certificate {
	m.t.Helper()
	by := m.Servers[0].Intermediate()
	u, err := url.Parse(uri)
	m.check(err)
	if u.String() != uri {
		m.t.Fatalf("%q becomes %q in a certificate", uri, u)
	}
	key, err := identity.NewKey()
	m.check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{u},
		NotBefore: by.Leaf().NotBefore, NotAfter: by.Leaf().NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.Leaf(), key.Public(), by.Key)
	m.check(err)
	return &tls.Certificate{Certificate: [][]byte{der, by.Leaf().Raw}, PrivateKey: key}
}
