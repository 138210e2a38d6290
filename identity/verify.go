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
func verifyServer(chain []*x509.Certificate, td string, pool *x509.CertPool, now time.Time) (Principal, error) {
	found, err := paths(chain, pool, now, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return Principal{}, badPeer(err)
	}
	return verify(chain[0], found, td, Server)
}

// verifyClient holds a client to the roles. Where crypto/tls has found the paths from it
// to a root of pool in this handshake, they are given, and not looked for again.
func verifyClient(chain []*x509.Certificate, found [][]*x509.Certificate, td string, pool *x509.CertPool, now time.Time, roles ...Role) error {
	const usage = x509.ExtKeyUsageClientAuth
	var err error
	if found == nil {
		found, err = paths(chain, pool, now, usage)
	} else {
		err = errors.Join(checkLength(chain), checkLeaf(chain[0], usage))
	}
	if err != nil {
		return badPeer(err)
	}
	_, err = verify(chain[0], found, td, roles...)
	return err
}

func badPeer(err error) error { return fmt.Errorf("TLS: the peer's certificate: %w", err) }

// VerifySVID says which workload of td a chain (leaf first) names, held to the
// same rules as a peer of the control plane: for agents, to look at what a server
// signed before an Envoy gets it.
func VerifySVID(chain []*x509.Certificate, td string, roots []*x509.Certificate, now time.Time) (uri string, err error) {
	pool, err := (&anchors{td: td}).pool(roots)
	if err != nil {
		return "", err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := paths(chain, pool, now, usage); err != nil {
			return "", err
		}
	}
	if uri, err = URI(chain[0]); err != nil {
		return "", err
	}
	_, _, err = ParseWorkloadID(uri, td)
	return uri, err
}

// verify is the one place that says who a peer of the control plane is: an end entity
// with valid paths to a root of td, for its usage by name, with exactly one SAN, a
// SPIFFE ID of control.<td> in one of these roles, signed by what may sign that role.
// Subjects are never read as names.
func verify(leaf *x509.Certificate, paths [][]*x509.Certificate, td string, roles ...Role) (Principal, error) {
	p, err := principalOf(leaf, td)
	if err != nil {
		return Principal{}, badPeer(err)
	}
	if !slices.Contains(roles, p.Role) {
		return Principal{}, &RoleError{p, roles}
	}
	if !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool { return maySign(path, p) }) {
		return Principal{}, badPeer(fmt.Errorf("not signed by what signs a %s", p.Role))
	}
	return p, nil
}

func checkLength(chain []*x509.Certificate) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("%d certificates in a chain of 1 to %d", len(chain), maxChain)
	}
	return nil
}

// paths returns every valid path from the first certificate of chain, an end
// entity for this usage, to a root of pool.
func paths(chain []*x509.Certificate, pool *x509.CertPool, now time.Time, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	if err := checkLength(chain); err != nil {
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
