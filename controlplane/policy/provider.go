package policy

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// noKeys is a JWK Set that verifies nothing.
const noKeys = `{"keys":[]}`

// Provider is an IdentityProvider. It is never changed.
type Provider struct {
	Name      string
	Issuer    string
	Audiences []string // sorted
	Inline    string   // the JWK Set; set unless URI is
	URI       string   // where it is fetched
	CA        string   // of URI, as PEM; empty: public roots
	ClockSkew time.Duration
	Claims    map[string]Claim // that grants may name, beside sub, acr and amr
	KeepToken bool
	Headers   []ClaimHeader // sorted by name

	// Enforced tells, in the answer of Index.Providers, that a token that does not
	// verify is denied. False: shadow rules alone name the provider.
	Enforced bool
}

// ClaimHeader is a header that carries a verified claim to the application.
type ClaimHeader struct {
	Header string // in lower case
	Path   []string
}

func newProvider(ref spec.Ref, d *ztv1.IdentityProvider) *Provider {
	p := &Provider{
		Name: ref.Name, Issuer: d.GetIssuer(), Audiences: set(d.GetAudiences()),
		Inline: d.GetJwks().GetInline(), URI: d.GetJwks().GetUri(), CA: d.GetJwks().GetCa(),
		ClockSkew: spec.DefaultClockSkew, KeepToken: d.GetForward().GetToken(), Claims: map[string]Claim{},
	}
	if (p.Inline == "") == (p.URI == "") {
		p.Inline, p.URI = noKeys, ""
	}
	if s := d.GetClockSkew(); s != nil {
		p.ClockSkew = s.AsDuration()
	}
	for _, c := range d.GetClaims() {
		claim := Claim{Name: c.GetName(), Path: c.GetPath(), Kind: ClaimKind(cmp.Or(c.GetKind(), string(StringClaim)))}
		if len(claim.Path) == 0 {
			claim.Path = []string{claim.Name}
		}
		p.Claims[claim.Name] = claim
	}
	for header, name := range d.GetForward().GetHeaders() {
		path := []string{"sub"}
		if name != "sub" {
			c, ok := p.Claims[name]
			if !ok || c.Kind == ListClaim {
				path = nil // carries nothing, and is taken from requests all the same
			} else {
				path = c.Path
			}
		}
		p.Headers = append(p.Headers, ClaimHeader{Header: strings.ToLower(header), Path: path})
	}
	slices.SortFunc(p.Headers, func(a, b ClaimHeader) int {
		return cmp.Or(strings.Compare(a.Header, b.Header), slices.Compare(a.Path, b.Path))
	})
	return p
}

func (c Claim) equal(o Claim) bool {
	return c.Name == o.Name && c.Kind == o.Kind && slices.Equal(c.Path, o.Path)
}

func (h ClaimHeader) equal(o ClaimHeader) bool {
	return h.Header == o.Header && slices.Equal(h.Path, o.Path)
}

// equal compares what a proxy is told; of claims it is told by rules.
func (p Provider) equal(o Provider) bool {
	return p.Name == o.Name && p.Issuer == o.Issuer && slices.Equal(p.Audiences, o.Audiences) && p.Inline == o.Inline &&
		p.URI == o.URI && p.CA == o.CA && p.ClockSkew == o.ClockSkew && p.KeepToken == o.KeepToken &&
		slices.EqualFunc(p.Headers, o.Headers, ClaimHeader.equal) && p.Enforced == o.Enforced
}

// Provider is the declared provider of that name. One whose keys would be fetched
// without TLS, and without an Exception, has no keys. It must not be changed.
func (ix *Index) Provider(name string) (*Provider, bool) {
	p, ok := ix.providers.Get([]byte(name))
	if !ok || p.URI == "" {
		return p, ok
	}
	u, err := url.Parse(p.URI)
	switch {
	case err == nil && u.Scheme == "https":
		return p, true
	case err == nil && u.Scheme == "http" && ix.excepted(spec.FindingPlaintextJWKS, spec.Ref{Namespace: spec.MeshNamespace, Name: name}, "", time.Time{}):
		return p, true
	}
	bare := *p
	bare.URI, bare.CA, bare.Inline = "", "", noKeys
	return &bare, true
}

// Strip is the headers, in lower case and sorted, by which some provider forwards
// claims: they are taken from every request of a peer.
func (ix *Index) Strip() []string {
	var out []string
	walk(ix.providers, nil, func(p *Provider) bool {
		for _, h := range p.Headers {
			out = append(out, h.Header)
		}
		return true
	})
	return set(out)
}

// Providers is those that verify tokens on every HTTP port of the workload ref,
// sorted by name: grants or Blocks that concern one of these ports name their
// users. Nobody is read a token where there are none.
func (ix *Index) Providers(ref spec.Ref) []Provider {
	if ix.providers.Len() == 0 {
		return nil
	}
	s, ok := ix.site(ref)
	if !ok {
		return nil
	}
	enforced := map[string]bool{}
	for i := range s.w.Ports {
		p := &s.w.Ports[i]
		if p.Protocol == TCP {
			continue
		}
		for _, r := range ix.rules(s, p, true) {
			if u := r.Users; u != nil {
				enforced[u.Provider] = enforced[u.Provider] || !r.shadow
			}
		}
	}
	if s.hasHTTP() {
		for _, provider := range ix.usersBlockedOn(s.target) {
			enforced[provider] = true
		}
	}
	var out []Provider
	for name, enforce := range enforced {
		if p, ok := ix.Provider(name); ok {
			judging := *p
			judging.Enforced = enforce
			out = append(out, judging)
		}
	}
	slices.SortFunc(out, func(a, b Provider) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// jwksHost is the host and port that the keys come from.
func (p *Provider) jwksHost() (host string, port uint32, ok bool) {
	if p.URI == "" {
		return "", 0, false
	}
	u, err := url.Parse(p.URI)
	if err != nil || u.Hostname() == "" {
		return "", 0, false
	}
	number := map[string]uint64{"http": 80, "https": 443}[u.Scheme]
	if u.Port() != "" {
		if number, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return "", 0, false
		}
	}
	return strings.ToLower(u.Hostname()), uint32(number), number != 0
}
