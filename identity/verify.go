package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxChain bounds what a peer can make us verify: leaf, intermediate, root, and
// one more root while roots change.
const maxChain = 4

// RoleError is why a peer is refused whose certificate is good, but not for this.
type RoleError struct {
	Peer Principal
	Want []Role
}

func (e *RoleError) Error() string {
	return fmt.Sprintf("TLS: the peer is %s, want %v", e.Peer, e.Want)
}

// verifyServer says which server a peer is. See verify.
func verifyServer(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time) (Principal, error) {
	return verify(chain, td, roots, now, x509.ExtKeyUsageServerAuth, []Role{Server})
}

func verifyClient(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time, roles []Role) error {
	_, err := verify(chain, td, roots, now, x509.ExtKeyUsageClientAuth, roles)
	return err
}

// VerifySVID says which workload of td a chain (leaf first) names, held to the
// same rules as a peer of the control plane: for agents, to look at what a server
// signed before an Envoy gets it.
func VerifySVID(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time) (uri string, err error) {
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := paths(chain, td, roots, now, usage); err != nil {
			return "", err
		}
	}
	if uri, err = URI(chain[0]); err != nil {
		return "", err
	}
	_, _, err = ParseWorkloadID(uri, td)
	return uri, err
}

// verify is the one place that says who a peer of the control plane is: a valid
// chain to a root of td, for this usage by name, of an end entity with exactly
// one SAN, a SPIFFE ID of control.<td> in one of these roles, signed by what may
// sign that role. Subjects are never read as names.
func verify(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage, roles []Role) (Principal, error) {
	paths, err := paths(chain, td, roots, now, usage)
	if err != nil {
		return Principal{}, fmt.Errorf("TLS: the peer's certificate: %w", err)
	}
	p, err := principalOf(chain[0], td)
	if err != nil {
		return Principal{}, fmt.Errorf("TLS: the peer's certificate: %w", err)
	}
	if !slices.Contains(roles, p.Role) {
		return Principal{}, &RoleError{p, roles}
	}
	if !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool { return maySign(path, p) }) {
		return Principal{}, fmt.Errorf("TLS: the peer's certificate: not signed by what signs a %s", p.Role)
	}
	return p, nil
}

// paths returns every valid path from the first certificate of chain, an end
// entity for this usage, to a root.
func paths(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("%d certificates in a chain of 1 to %d", len(chain), maxChain)
	}
	pool, err := anchors(td, roots)
	if err != nil {
		return nil, err
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	found, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, err
	}
	return found, checkLeaf(chain[0], usage)
}

// maySign holds a verified path to docs/adr/0006: the root itself signs nodes
// and administrators, so a server's intermediate cannot make one; a server is
// signed by the intermediate that the root gave that same server, so it cannot
// make another server either.
func maySign(path []*x509.Certificate, p Principal) bool {
	if p.Role == Server {
		return len(path) == 3 && path[1].Subject.CommonName == p.Name
	}
	return len(path) == 2
}

// checkLeaf wants what leaf makes: RFC 5280 lets a certificate without extended
// key usages, or with "any", stand for all of them; here the usage must be named.
func checkLeaf(c *x509.Certificate, usage x509.ExtKeyUsage) error {
	switch {
	case c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("is that of an authority")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("is not for signatures")
	case !slices.Contains(c.ExtKeyUsage, usage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny):
		return errors.New("is not for this side of a connection")
	}
	return nil
}

func principalOf(c *x509.Certificate, td string) (Principal, error) {
	uri, err := URI(c)
	if err != nil {
		return Principal{}, err
	}
	return ParseControlID(uri, td)
}

// anchors makes a pool of roots. One that is not the certificate of an authority
// for td is an error, not a smaller pool: x509 would take any certificate in the
// pool as trusted, also a leaf (CVE-2024-2048).
func anchors(td string, roots []*x509.Certificate) (*x509.CertPool, error) {
	if len(roots) == 0 {
		return nil, ErrNoTrust
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		of, err := RootTrustDomain(r)
		if err != nil {
			return nil, err
		}
		if of != td {
			return nil, fmt.Errorf("trust anchor: for trust domain %q, want %q", of, td)
		}
		pool.AddCert(r)
	}
	return pool, nil
}
