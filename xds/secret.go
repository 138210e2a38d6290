package xds

import (
	"bytes"
	"encoding/json"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// SVID is the workload's certificate chain (leaf first) and key, as PEM. The
// resource holds the key: it goes to one proxy only.
func SVID(chainPEM, keyPEM []byte) *Resource { return certificate(SVIDSecret, chainPEM, keyPEM) }

// Bundle is the SPIFFE validator of trust domain td: it accepts certificates
// that the roots vouch for and whose one SPIFFE ID is of td, and no others.
func Bundle(td string, rootsPEM []byte) *Resource { return bundle(BundleSecret, td, rootsPEM) }

// Node is the instance's own certificate, with which a proxy opens its ADS
// stream.
func Node(chainPEM, keyPEM []byte) *Resource { return certificate(NodeSecret, chainPEM, keyPEM) }

// ControlBundle is the validator by which a proxy knows the control plane of
// trust domain td. It accepts the control trust domain only.
func ControlBundle(td string, rootsPEM []byte) *Resource {
	return bundle(ControlBundleSecret, "control."+td, rootsPEM)
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

func bundle(name, td string, rootsPEM []byte) *Resource {
	validator, err := pack(&tlsv3.SPIFFECertValidatorConfig{
		TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{{Name: td, TrustBundle: inline(rootsPEM)}},
	})
	if err != nil {
		panic("xds: " + err.Error()) // an empty trust domain
	}
	return mustResource(name, &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			CustomValidatorConfig: &corev3.TypedExtensionConfig{
				Name:        "envoy.tls.cert_validator.spiffe",
				TypedConfig: validator,
			},
		}},
	})
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
