package policy

import (
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Settings is what holds for a workload: what its Segment says, or else the Mesh,
// or else the defaults.
type Settings struct {
	SVIDTTL          time.Duration
	MaxConnectionAge time.Duration
	RequireUser      string // a provider: a grant that names no users means any of its; empty: none
}

// Trust is whose certificates are accepted.
type Trust struct {
	Domain    string
	Aliases   []string          // former names of Domain; sorted
	Federated []string          // foreign trust domains; sorted
	Bundles   map[string]string // CA certificates as PEM, of Federated and of some Aliases
}

// mesh is the Mesh document.
type mesh struct {
	settings Settings
	trust    Trust
}

func newMesh(trustDomain string, m *ztv1.Mesh) *mesh {
	out := &mesh{
		settings: Settings{SVIDTTL: spec.DefaultSVIDTTL, MaxConnectionAge: spec.DefaultMaxConnectionAge},
		trust:    Trust{Domain: trustDomain, Bundles: map[string]string{}},
	}
	if d := m.GetSvidTtl(); d != nil {
		out.settings.SVIDTTL = d.AsDuration()
	}
	if d := m.GetMaxConnectionAge(); d != nil {
		out.settings.MaxConnectionAge = d.AsDuration()
	}
	for _, alias := range set(m.GetTrustDomainAliases()) {
		if alias != trustDomain {
			out.trust.Aliases = append(out.trust.Aliases, alias)
		}
	}
	for _, f := range m.GetFederation() {
		domain := f.GetTrustDomain()
		if domain == trustDomain {
			continue // its certificates are the mesh's own to make
		}
		if _, twice := out.trust.Bundles[domain]; twice {
			continue
		}
		out.trust.Bundles[domain] = f.GetBundle()
		if !slices.Contains(out.trust.Aliases, domain) {
			out.trust.Federated = append(out.trust.Federated, domain)
		}
	}
	slices.Sort(out.trust.Federated)
	return out
}

// Mesh is the fleet-wide settings.
func (ix *Index) Mesh() Settings { return ix.mesh.settings }

// Trust is whose certificates are accepted. It must not be changed.
func (ix *Index) Trust() Trust { return ix.mesh.trust }

func (ix *Index) trust() *Trust { return &ix.mesh.trust }

// domains are the trust domain and its aliases.
func (ix *Index) domains() []string { return append([]string{ix.trustDomain}, ix.trust().Aliases...) }

// Settings is what holds for the workload ref, declared or not.
func (ix *Index) Settings(ref spec.Ref) Settings {
	out := ix.Mesh()
	for i, s := range ix.segments.of(ref) {
		// In a checked spec there is one. Of several the shorter times hold.
		if d := s.settings.SVIDTTL; d != 0 && (i == 0 || d < out.SVIDTTL) {
			out.SVIDTTL = d
		}
		if d := s.settings.MaxConnectionAge; d != 0 && (i == 0 || d < out.MaxConnectionAge) {
			out.MaxConnectionAge = d
		}
		if s.settings.RequireUser != "" {
			out.RequireUser = s.settings.RequireUser
		}
	}
	return out
}
