package xds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// SVID is the workload's certificate chain (leaf first) and key, as PEM. The
// resource holds the key: it goes to one proxy only.
func SVID(chainPEM, keyPEM []byte) *Resource { return certificate(SVIDSecret, chainPEM, keyPEM) }

// Bundle is the SPIFFE validator of trust domains: name → roots as PEM. It
// accepts certificates that the roots of a domain vouch for and whose one SPIFFE
// ID is of that domain, and no others. It always comes from the control plane.
func Bundle(domains map[string][]byte) *Resource {
	return mustResource(BundleSecret, bundle(BundleSecret, domains))
}

// Peers is Bundle for a server-first port of c: of those identities it accepts
// the ones that the port's gate admits and no Block of everything they do denies.
// A server that speaks first would else have spoken before anything is judged.
func Peers(c *Config, port string, domains map[string][]byte) *Resource {
	name := PeersSecret(port)
	s := bundle(name, domains)
	var admitted []string
	for i := range c.Inbound {
		if in := &c.Inbound[i]; in.Name == port {
			admitted = in.admitted(c)
		}
	}
	if admitted == nil {
		admitted = []string{"nobody"} // no SPIFFE ID; without any matcher all would match
	}
	sans := s.GetValidationContext()
	for _, id := range admitted {
		sans.MatchTypedSubjectAltNames = append(sans.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: id}},
		})
	}
	return mustResource(name, s)
}

// admitted is the identities of the gate that no Block of whole peers names; nil
// if there are none.
func (in *Inbound) admitted(c *Config) []string {
	var ids []string
	for _, g := range in.Gate {
		if !slices.ContainsFunc(in.Blocks, func(b Block) bool {
			return b.Users == nil && (b.Callers == nil || b.Callers.include(c, g.ID))
		}) {
			ids = append(ids, g.ID)
		}
	}
	return set(ids)
}

// include says whether an identity is among the callers.
func (cs *Callers) include(c *Config, id string) bool {
	of := func(td string) bool { return strings.HasPrefix(id, "spiffe://"+td+"/") }
	return slices.Contains(cs.IDs, id) ||
		slices.ContainsFunc(cs.Prefixes, func(p string) bool { return strings.HasPrefix(id, p) }) ||
		slices.ContainsFunc(cs.Domains, of) ||
		cs.Any && slices.ContainsFunc(append([]string{c.TrustDomain}, c.Aliases...), of)
}

// Node is the instance's own certificate, with which a proxy opens its ADS
// stream.
func Node(chainPEM, keyPEM []byte) *Resource { return certificate(NodeSecret, chainPEM, keyPEM) }

// ControlBundle is the validator by which a proxy knows the control plane of
// trust domain td. It accepts the control trust domain only.
func ControlBundle(td string, rootsPEM []byte) *Resource {
	return mustResource(ControlBundleSecret, bundle(ControlBundleSecret, map[string][]byte{"control." + td: rootsPEM}))
}

func certificate(name string, chainPEM, keyPEM []byte) *Resource {
	return mustResource(name, &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(chainPEM),
			PrivateKey:       inline(keyPEM),
		}},
	})
}

func bundle(name string, domains map[string][]byte) *tlsv3.Secret {
	conf := &tlsv3.SPIFFECertValidatorConfig{}
	for _, td := range slices.Sorted(maps.Keys(domains)) {
		conf.TrustDomains = append(conf.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{
			Name: td, TrustBundle: inline(domains[td]),
		})
	}
	validator, err := pack(conf)
	if err != nil {
		panic("xds: " + err.Error()) // no trust domain, or one without a name
	}
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			CustomValidatorConfig: &corev3.TypedExtensionConfig{
				Name:        "envoy.tls.cert_validator.spiffe",
				TypedConfig: validator,
			},
		}},
	}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// File renders resources of one type as a file that Envoy watches
// (path_config_source): node and control-bundle secrets where there is no
// agent. Replace the file by rename, so that it is never seen in part. It holds
// a key if a resource does: mode 0600.
func File(resources ...*Resource) ([]byte, error) {
	resp := &discoveryv3.DiscoveryResponse{}
	versions := ""
	for _, r := range resources {
		if resp.TypeUrl != "" && resp.TypeUrl != r.Type {
			return nil, fmt.Errorf("render %s beside %s", r.Type, resp.GetTypeUrl())
		}
		resp.TypeUrl = r.Type
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: r.Body.GetTypeUrl(), Value: r.Body.GetValue()})
		versions += r.Version
	}
	resp.VersionInfo = version([]byte(versions))
	return renderJSON(resp)
}

// renderJSON is protojson with stable bytes: protojson alone varies its spaces
// from build to build, on purpose.
func renderJSON(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, fmt.Errorf("render %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
