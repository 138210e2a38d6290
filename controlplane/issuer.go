package controlplane

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/store/state"
)

// issuer signs for the API: workloads and this server by the intermediate that
// is here, everything longer-lived by the cluster's root, which is unsealed for
// the one call.
type issuer struct {
	authority *identity.Authority
	keys      *keyring
	signing   identity.Signing
	roots     []*x509.Certificate
	state     func() *state.State
	clock     *clock // nothing is signed while it is off
}

func (i *issuer) TrustDomain() string { return i.authority.TrustDomain() }

func (i *issuer) Roots() [][]byte { return identity.DER(i.roots) }

// KeyFor is api.Issuer. A key that comes from a variable or a command is its source's
// to give, not this server's.
func (i *issuer) KeyFor(have []string) (id string, key []byte, err error) {
	kek, err := i.keys.current(i.state())
	if err != nil {
		return "", nil, err
	}
	_, file := i.keys.source.File()
	switch {
	case slices.Contains(have, kek.ID()):
		return kek.ID(), nil, nil
	case len(have) > 0:
		return "", nil, fmt.Errorf("%w: the cluster's key-encryption key is %s, and the server has %s", api.ErrOtherKey, kek.ID(), strings.Join(have, ", "))
	case !file:
		return "", nil, fmt.Errorf("%w: this cluster does not hand its key-encryption key over; name the source of %s with --kek", api.ErrOtherKey, kek.ID())
	}
	return kek.ID(), kek.Reveal(), nil
}

// root opens the root key that the log holds sealed.
func (i *issuer) root() (*identity.Root, error) {
	st := i.state()
	roots, err := identity.ParseDER(st.Roots())
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, errors.New("this server has not learnt the cluster's root yet")
	}
	return identity.OpenRoot(roots[0], st.SealedRootKey(), i.keys.get(), i.signing)
}

// byRoot signs with the root, for the key of a request.
func (i *issuer) byRoot(csr []byte, sign func(*identity.Root, crypto.PublicKey) ([]*x509.Certificate, error)) ([][]byte, time.Time, error) {
	pub, err := identity.CheckCSR(csr)
	if err != nil {
		return nil, time.Time{}, err
	}
	if err := i.clock.check(); err != nil {
		return nil, time.Time{}, err
	}
	root, err := i.root()
	if err != nil {
		return nil, time.Time{}, err
	}
	return encoded(sign(root, pub))
}

func encoded(chain []*x509.Certificate, err error) ([][]byte, time.Time, error) {
	if err != nil {
		return nil, time.Time{}, err
	}
	return identity.DER(chain), chain[0].NotAfter, nil
}

func (i *issuer) Node(csr []byte, instance string) ([][]byte, time.Time, error) {
	return i.byRoot(csr, func(r *identity.Root, pub crypto.PublicKey) ([]*x509.Certificate, error) {
		return r.IssueNode(pub, instance)
	})
}

func (i *issuer) Admin(csr []byte, name string) ([][]byte, time.Time, error) {
	return i.byRoot(csr, func(r *identity.Root, pub crypto.PublicKey) ([]*x509.Certificate, error) {
		return r.IssueAdmin(pub, name)
	})
}

func (i *issuer) Workload(csr []byte, namespace, name string, ttl time.Duration) ([][]byte, time.Time, error) {
	pub, err := identity.CheckCSR(csr)
	if err != nil {
		return nil, time.Time{}, err
	}
	if err := i.clock.check(); err != nil {
		return nil, time.Time{}, err
	}
	return encoded(i.authority.IssueWorkload(pub, identity.WorkloadID(i.TrustDomain(), namespace, name), ttl))
}

func (i *issuer) Intermediate(csr []byte, server string) ([]byte, error) {
	chain, _, err := i.byRoot(csr, func(r *identity.Root, pub crypto.PublicKey) ([]*x509.Certificate, error) {
		c, err := r.SignIntermediate(pub, server)
		return []*x509.Certificate{c}, err
	})
	if err != nil {
		return nil, err
	}
	return chain[0], nil
}

func (i *issuer) KeyHash(csr []byte) ([]byte, error) {
	pub, err := identity.CheckCSR(csr)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("key of the request: %w", err)
	}
	h := sha256.Sum256(der)
	return h[:], nil
}

func (i *issuer) NewToken(seed string) (token, id string, secretHash []byte, err error) {
	pin := identity.PinOf(i.roots[0])
	t, err := identity.NewToken(pin)
	if seed != "" {
		kek, kerr := i.keys.current(i.state())
		if kerr != nil {
			return "", "", nil, kerr
		}
		t, err = identity.DeriveToken(pin, kek.Reveal(), seed)
	}
	if err != nil {
		return "", "", nil, err
	}
	return t.Reveal(), t.ID, t.Hash(), nil
}

func (i *issuer) ParseToken(token string) (id string, secretHash []byte, err error) {
	t, err := identity.ParseToken(token)
	if err != nil {
		return "", nil, err
	}
	return t.ID, t.Hash(), nil
}
