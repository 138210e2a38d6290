package identity

import (
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"
)

// anchors makes pools of the roots of one trust domain, each once: to look at a root
// costs as much as to verify a peer. The zero value with a trust domain is ready; safe
// for concurrent use.
type anchors struct {
	td   string
	last atomic.Pointer[anchored]
}

// anchored is a set of roots and its pool. Neither is changed.
type anchored struct {
	roots []*x509.Certificate
	pool  *x509.CertPool
}

// pool returns the same pool as long as the roots are the same. A root that is not the
// certificate of an authority for the trust domain is an error, not a smaller pool: x509
// would take any certificate in the pool as trusted, also a leaf (CVE-2024-2048).
func (a *anchors) pool(roots []*x509.Certificate) (*x509.CertPool, error) {
	if len(roots) == 0 {
		return nil, ErrNoTrust
	}
	if last := a.last.Load(); last != nil && slices.EqualFunc(last.roots, roots, (*x509.Certificate).Equal) {
		return last.pool, nil
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		of, err := RootTrustDomain(r)
		if err != nil {
			return nil, err
		}
		if of != a.td {
			return nil, fmt.Errorf("trust anchor: for trust domain %q, want %q", of, a.td)
		}
		pool.AddCert(r)
	}
	a.last.Store(&anchored{slices.Clone(roots), pool})
	return pool, nil
}
