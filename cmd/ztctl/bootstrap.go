package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/xds"
)

// enrolment is what `ztctl bootstrap` is asked for.
type enrolment struct {
	workload, tokenFile, address, egress, adminSocket string
	servers                                           []string
	zone                                              string
	weight                                            uint32
}

func (a *app) newBootstrap() *cobra.Command {
	var o enrolment
	var renew, ifDue bool
	cmd := &cobra.Command{
		Use:   "bootstrap FOLDER",
		Short: "Enrol an Envoy without an agent, and write what it starts with",
		Long: `bootstrap enrols an instance of a workload with a one-use token and writes into
FOLDER what an Envoy on this host starts with: bootstrap.json, and the
instance's certificate, with which the Envoy asks the control plane for
everything else; the workload's own certificate comes that way too. The key is
made here and never leaves FOLDER.

The control plane registers the address that this command calls from: run it on
the host of the Envoy, with the --address that the Envoy is to listen on. Started
again after an enrolment whose outcome is not known, it goes on with the same
token.

The instance's certificate lives 30 days. Run --renew --if-due on a timer; a
running Envoy takes the new certificate over by itself.`,
		Example: `  ztctl bootstrap /etc/envoy/web --workload shop/web --token-file web.token \
      --server ztd-1:7401 --server ztd-2:7401 --address 10.0.0.7
  envoy -c /etc/envoy/web/bootstrap.json
  ztctl bootstrap --renew --if-due /etc/envoy/web`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if !identity.IsZone(o.zone) || o.weight > identity.MaxWeight {
				return fmt.Errorf("--zone is a DNS label, and --weight at most %d", identity.MaxWeight)
			}
			if renew {
				return a.renew(cmd.Context(), dir, ifDue, o)
			}
			return a.bootstrap(cmd.Context(), dir, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.workload, "workload", "", "`NAMESPACE/NAME` that the token was made for")
	f.StringArrayVar(&o.servers, "server", nil, "node port of a server, `HOST:PORT`; repeatable")
	f.StringVar(&o.tokenFile, "token-file", "", "`FILE` with the token, or - for stdin")
	f.StringVar(&o.address, "address", "", "IP `ADDRESS` that the Envoy listens on for its peers (default: the one this host calls from)")
	f.StringVar(&o.egress, "egress-address", "", "loopback `ADDRESS` that it listens on for its application (default 127.0.0.1)")
	f.StringVar(&o.zone, "zone", "", "where its host is, such as a datacentre: peers in the same `ZONE` call it first; with --renew, a new one")
	f.Uint32Var(&o.weight, "weight", 0, "its share of the calls among the workload's instances, 1 to 1000 (default 100); with --renew, a new one")
	f.StringVar(&o.adminSocket, "admin-socket", "", "`PATH` of Envoy's admin socket (default FOLDER/admin.sock)")
	f.BoolVar(&renew, "renew", false, "renew the certificate of a folder that bootstrap has written")
	f.BoolVar(&ifDue, "if-due", false, "with --renew: only after half of its life")
	cmd.MarkFlagsOneRequired("token-file", "renew")
	cmd.MarkFlagsRequiredTogether("workload", "server", "token-file")
	cmd.MarkFlagsMutuallyExclusive("token-file", "renew")
	cmd.MarkFlagsMutuallyExclusive("token-file", "if-due")
	return cmd
}

// The files of a bootstrap folder, all of mode 0600. xds.NodeFile and
// xds.ControlBundleFile are Envoy's form of nodePair and rootsFile.
const (
	bootstrapFile = "bootstrap.json"
	nodePair      = "node.pem"  // key and chain, for renewals
	rootsFile     = "roots.pem" // how servers are known
	instanceFile  = "instance.json"
	pendingFile   = "enrolling.json" // only while an enrolment is under way
)

// instance is instanceFile: what was enrolled. It is written last, so that a
// folder with it is complete.
type instance struct {
	Instance      string   `json:"instance"`
	Workload      string   `json:"workload"`
	TrustDomain   string   `json:"trustDomain"`
	Address       string   `json:"address"`
	EgressAddress string   `json:"egressAddress"`
	BindAddress   bool     `json:"bindAddress"`
	PublicRoots   string   `json:"publicRoots,omitempty"` // of the host when it was enrolled
	AdminSocket   string   `json:"adminSocket"`
	Servers       []string `json:"servers"`
	Near          int      `json:"near,omitempty"` // so many of Servers are in the zone
	Zone          string   `json:"zone,omitempty"`
	Weight        uint32   `json:"weight,omitempty"` // against 100; 0: 100
}

func (a *app) bootstrap(ctx context.Context, dir string, o enrolment) error {
	ref, err := spec.ParseRef(o.workload, a.set.Namespace)
	if err != nil {
		return fmt.Errorf("--workload: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, instanceFile)); err == nil {
		return withHint(fmt.Errorf("%s is enrolled already", dir), "use ztctl bootstrap --renew %s, or another folder", dir)
	}
	token, err := a.readToken(o.tokenFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	e, err := identity.OpenEnrolment(filepath.Join(dir, pendingFile), ref.String())
	if err != nil {
		return err
	}
	csr, err := identity.NewCSR(e.Key)
	if err != nil {
		return err
	}
	resp, err := a.enrol(ctx, o, token, &ztv1.EnrolRequest{
		Token: token.Reveal(), Workload: ref.String(), Address: o.address, EgressAddress: o.egress,
		NodeCsr: csr, Instance: e.Instance, Zone: o.zone, Weight: o.weight,
	})
	if err != nil {
		return err
	}
	in := instance{
		Instance: resp.Instance, Workload: ref.String(), TrustDomain: resp.TrustDomain,
		Address: resp.Address, EgressAddress: resp.EgressAddress, BindAddress: o.address != "", PublicRoots: identity.PublicRoots(),
		AdminSocket: o.adminSocket, Servers: known(resp.Servers, o.servers), Near: int(resp.Near),
		Zone: o.zone, Weight: o.weight,
	}
	if in.AdminSocket == "" {
		in.AdminSocket = filepath.Join(dir, "admin.sock")
	}
	roots, err := identity.ParseDER(resp.Certificates.GetRoots())
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(roots, func(c *x509.Certificate) bool { return identity.PinOf(c) == token.Pin }) {
		return errors.New("the server sent roots without the one that the token pins")
	}
	if err := in.write(dir, e.Key, resp.Certificates); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, pendingFile)); err != nil {
		return err
	}
	return a.print(in, func() error {
		a.note("instance %s of %s is enrolled at %s; its certificate ends on %s",
			in.Instance, in.Workload, in.Address, resp.Certificates.NodeNotAfter.AsTime().Format(time.DateOnly))
		_, err := fmt.Fprintf(a.out, "envoy -c %s\n", filepath.Join(dir, bootstrapFile))
		return err
	})
}

// known is where the servers are, as the cluster says; while none of them has
// told it yet, as it was known before.
func known(told, before []string) []string {
	told = slices.DeleteFunc(told, func(s string) bool { return s == "" })
	if len(told) == 0 {
		return before
	}
	return told
}

func (a *app) readToken(path string) (identity.Token, error) {
	var b []byte
	var err error
	if path == "-" {
		var buf bytes.Buffer
		_, err = buf.ReadFrom(a.in)
		b = buf.Bytes()
	} else {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return identity.Token{}, err
	}
	token, err := identity.ParseToken(strings.TrimSpace(string(b)))
	if err != nil {
		return token, fmt.Errorf("--token-file %s: %w", path, err)
	}
	return token, nil
}

// enrol redeems the token. An unknown outcome is asked for again: the same
// instance with the same key gets the same answer.
func (a *app) enrol(ctx context.Context, o enrolment, token identity.Token, req *ztv1.EnrolRequest) (*ztv1.EnrolResponse, error) {
	config, err := identity.PinnedClientConfig(token.Pin, a.now, nil)
	if err != nil {
		return nil, err
	}
	config.ServerName = xds.ServerName // it waits as long as an Envoy
	s, err := dialServers(o.servers, o.address, config, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	defer s.Close()
	node := ztv1.NewNodeServiceClient(s)
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	for {
		resp, err := node.Enrol(ctx, req)
		after, again := askAgain(err)
		if !again {
			return resp, a.explain(err)
		}
		select {
		case <-ctx.Done():
			return nil, withHint(a.explain(err), "run the same command again; it goes on with the same token")
		case <-time.After(after):
		}
	}
}

// askAgain says whether to ask for an enrolment again, and after how long: its outcome
// is not known, or the server is busy and has said when to come back.
func askAgain(err error) (after time.Duration, again bool) {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return 300 * time.Millisecond, true
	case codes.ResourceExhausted:
		for _, d := range s.Details() {
			if r, ok := d.(*errdetails.RetryInfo); ok {
				return r.GetRetryDelay().AsDuration(), true
			}
		}
	}
	return 0, false
}

// write puts the whole folder in place.
func (in instance) write(dir string, key identity.PrivateKey, issued *ztv1.Issued) error {
	chain, err := identity.ParseDER(issued.GetNodeChain())
	if err != nil {
		return err
	}
	pair, err := identity.NewKeyPair(key, chain)
	if err != nil {
		return err
	}
	if uri, err := identity.URI(pair.Leaf()); err != nil || uri != identity.NodeID(in.TrustDomain, in.Instance) {
		return errors.Join(fmt.Errorf("the server signed for %q, not for instance %s", uri, in.Instance), err)
	}
	roots, err := identity.ParseDER(issued.GetRoots())
	if err != nil {
		return err
	}
	bootstrap, err := xds.Bootstrap(xds.BootstrapConfig{
		TrustDomain: in.TrustDomain, Workload: in.Workload, Servers: in.Servers, Near: in.Near, AdminSocket: in.AdminSocket,
		Instance: xds.Instance{ID: in.Instance, Address: in.Address, Egress: in.EgressAddress, Secrets: xds.FromADS},
		NodeDir:  dir, BindAddress: in.BindAddress, PublicRoots: in.PublicRoots,
	})
	if err != nil {
		return err
	}
	bundle, err := xds.File(xds.ControlBundle(in.TrustDomain, identity.EncodePEM(roots)))
	if err != nil {
		return err
	}
	asJSON, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{rootsFile, identity.EncodePEM(roots)},
		{xds.ControlBundleFile, bundle},
		{bootstrapFile, bootstrap},
	} {
		if err := replaceChanged(filepath.Join(dir, f.name), f.content); err != nil {
			return err
		}
	}
	if err := pair.Save(filepath.Join(dir, nodePair)); err != nil {
		return err
	}
	if err := writeNode(dir, pair); err != nil {
		return err
	}
	return replaceChanged(filepath.Join(dir, instanceFile), append(asJSON, '\n'))
}

// writeNode writes a key pair in the form that Envoy watches: key and
// certificate are replaced in one step.
func writeNode(dir string, pair *identity.KeyPair) error {
	secret, err := pair.Key.PEM()
	if err != nil {
		return err
	}
	file, err := xds.File(xds.Node(identity.EncodePEM(pair.Chain), secret.Reveal()))
	if err != nil {
		return err
	}
	return replaceChanged(filepath.Join(dir, xds.NodeFile), file)
}

// renew gets a new certificate, for a new key, by the old one.
func (a *app) renew(ctx context.Context, dir string, ifDue bool, o enrolment) error {
	in, pair, roots, err := loadInstance(dir)
	if err != nil {
		return err
	}
	// A renewal that was cut off may have saved a pair that Envoy was not shown.
	if err := writeNode(dir, pair); err != nil {
		return err
	}
	due := identity.RenewAt(pair.Leaf().NotBefore, pair.Leaf().NotAfter, 0)
	moves := o.zone != "" && o.zone != in.Zone || o.weight != 0 && o.weight != in.Weight
	if ifDue && !moves && a.now().Before(due) {
		a.note("nothing to do: the certificate ends on %s and is due on %s", pair.NotAfter().Format(time.DateOnly), due.Format(time.DateOnly))
		return nil
	}
	if !a.now().Before(pair.NotAfter()) {
		return withHint(fmt.Errorf("the certificate of instance %s has ended on %s", in.Instance, pair.NotAfter().Format(time.DateOnly)),
			"enrol again into another folder, with a new token")
	}
	config, err := a.clientTLS(in.TrustDomain, roots, pair)
	if err != nil {
		return err
	}
	config.ServerName = identity.RenewalServerName
	from := ""
	if in.BindAddress {
		from = in.Address
	}
	s, err := dialServers(in.Servers, from, config, func(string) bool { return true })
	if err != nil {
		return err
	}
	defer s.Close()
	if moves {
		in.Zone, in.Weight = cmp.Or(o.zone, in.Zone), cmp.Or(o.weight, in.Weight)
		if _, err := call(ctx, a, ztv1.NewNodeServiceClient(s).Place, &ztv1.PlaceRequest{Zone: in.Zone, Weight: in.Weight}); err != nil {
			return err
		}
	}
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return err
	}
	resp, err := call(ctx, a, ztv1.NewNodeServiceClient(s).Renew, &ztv1.RenewRequest{NodeCsr: csr})
	if err != nil {
		return err
	}
	in.Servers, in.Near = known(resp.Servers, in.Servers), int(resp.Near)
	if err := in.write(dir, key, resp.Certificates); err != nil {
		return err
	}
	a.note("instance %s is renewed; its certificate ends on %s", in.Instance, resp.Certificates.NodeNotAfter.AsTime().Format(time.DateOnly))
	return nil
}

func loadInstance(dir string) (in instance, pair *identity.KeyPair, roots []*x509.Certificate, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, instanceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return in, nil, nil, withHint(fmt.Errorf("%s is not enrolled", dir), "ztctl bootstrap enrols; see ztctl bootstrap --help")
	}
	if err != nil {
		return in, nil, nil, err
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return in, nil, nil, fmt.Errorf("%s: %w", filepath.Join(dir, instanceFile), err)
	}
	if pair, err = identity.LoadKeyPair(filepath.Join(dir, nodePair)); err != nil {
		return in, nil, nil, err
	}
	raw, err = os.ReadFile(filepath.Join(dir, rootsFile))
	if err != nil {
		return in, nil, nil, err
	}
	roots, err = identity.ParsePEM(raw)
	return in, pair, roots, err
}
