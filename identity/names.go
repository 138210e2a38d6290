package identity

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A Role is what a principal of the control plane is. It is the first segment
// of the path of its SPIFFE ID.
type Role string

const (
	Server Role = "server" // a ztd; Name is its server id
	Admin  Role = "admin"  // a person or pipeline; what it may do stands in the store, never here
	Node   Role = "node"   // an enrolled proxy or agent; Name is the instance id
)

// A Principal is one identity of the control plane.
type Principal struct {
	Role Role
	Name string // a DNS label (RFC 1123), at most 63 bytes
}

// String returns "node/0123…".
func (p Principal) String() string { return string(p.Role) + "/" + p.Name }

const (
	controlPrefix   = "control."
	maxTrustDomain  = 255 - len(controlPrefix) // SPIFFE-ID 2.1: a trust domain has at most 255 bytes
	maxLabel        = 63                       // RFC 1123
	errTrustDomainf = "trust domain %q: %s"
)

// ValidTrustDomain says whether td can be the trust domain of a cluster: dotted
// labels of a-z, 0-9, "-" and "_", at most 247 bytes (so that control.<td> is a
// trust domain too), not an IP address (X.509 name constraints cannot hold it),
// and not itself below "control.".
func ValidTrustDomain(td string) error {
	if td == "" || len(td) > maxTrustDomain {
		return fmt.Errorf(errTrustDomainf, td, fmt.Sprintf("must have 1 to %d bytes", maxTrustDomain))
	}
	if strings.HasPrefix(td, controlPrefix) {
		return fmt.Errorf(errTrustDomainf, td, "names below control. are reserved")
	}
	if _, err := netip.ParseAddr(td); err == nil {
		return fmt.Errorf(errTrustDomainf, td, "is an IP address")
	}
	for label := range strings.SplitSeq(td, ".") {
		if !validLabel(strings.ReplaceAll(label, "_", "-")) {
			return fmt.Errorf(errTrustDomainf, td, "must be labels of a-z, 0-9, - and _, joined by dots, each beginning and ending with a letter or digit")
		}
	}
	return nil
}

// ControlDomain returns the trust domain of td's own servers, administrators
// and nodes. The data plane never trusts it.
func ControlDomain(td string) string { return controlPrefix + td }

// WorkloadID returns spiffe://td/ns/NAMESPACE/sa/NAME. It does not judge its
// arguments; ParseWorkloadID and the issuing functions do.
func WorkloadID(td, namespace, name string) string {
	return "spiffe://" + td + "/ns/" + namespace + "/sa/" + name
}

// ServerID returns spiffe://control.td/server/ID.
func ServerID(td, id string) string { return Principal{Server, id}.ID(td) }

// AdminID returns spiffe://control.td/admin/NAME.
func AdminID(td, name string) string { return Principal{Admin, name}.ID(td) }

// NodeID returns spiffe://control.td/node/INSTANCE.
func NodeID(td, instance string) string { return Principal{Node, instance}.ID(td) }

// ID returns the SPIFFE ID of p in the control domain of td.
func (p Principal) ID(td string) string {
	return "spiffe://" + ControlDomain(td) + "/" + string(p.Role) + "/" + p.Name
}

// ParseControlID is the inverse of ServerID, AdminID and NodeID. It is strict:
// nothing is normalised, and only what those functions make of DNS labels is
// accepted.
func ParseControlID(uri, td string) (Principal, error) {
	path, err := idPath(uri, ControlDomain(td))
	if err != nil {
		return Principal{}, err
	}
	role, name, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	p := Principal{Role(role), name}
	switch p.Role {
	case Server, Admin, Node:
	default:
		return Principal{}, fmt.Errorf("SPIFFE ID %q: no such role", uri)
	}
	if !validLabel(name) {
		return Principal{}, fmt.Errorf("SPIFFE ID %q: the name is not a DNS label", uri)
	}
	return p, nil
}

// ParseWorkloadID is the inverse of WorkloadID; as strict as ParseControlID.
func ParseWorkloadID(uri, td string) (namespace, name string, err error) {
	path, err := idPath(uri, td)
	if err != nil {
		return "", "", err
	}
	s := strings.Split(path, "/")
	if len(s) != 5 || s[1] != "ns" || s[3] != "sa" || !validLabel(s[2]) || !validLabel(s[4]) {
		return "", "", fmt.Errorf("SPIFFE ID %q: not of the form /ns/<namespace>/sa/<name>", uri)
	}
	return s[2], s[4], nil
}

// idPath returns the path of a valid SPIFFE ID of exactly the trust domain td.
func idPath(uri, td string) (string, error) {
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return "", fmt.Errorf("SPIFFE ID %q: %w", uri, err)
	}
	if id.TrustDomain().Name() != td {
		return "", fmt.Errorf("SPIFFE ID %q: not of trust domain %q", uri, td)
	}
	return id.Path(), nil
}

// URI returns the one identity of a certificate. A subject alternative name of
// any other kind, or more than one, is an error: verifiers disagree about which
// counts. It is read from the extension itself, since crypto/x509 leaves out
// kinds that it does not know and net/url normalises.
func URI(cert *x509.Certificate) (string, error) {
	uriTag := asn1.Tag(6).ContextSpecific() // RFC 5280 4.2.1.6: GeneralName, [6]
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.17" })
	if i < 0 {
		return "", errors.New("certificate has no SAN")
	}
	var names, uri cryptobyte.String
	ext := cryptobyte.String(cert.Extensions[i].Value)
	if !ext.ReadASN1(&names, asn1.SEQUENCE) || !ext.Empty() ||
		!names.ReadASN1(&uri, uriTag) || !names.Empty() {
		return "", errors.New("certificate has other SANs than one URI")
	}
	return string(uri), nil
}

// validLabel says whether s is a DNS label (RFC 1123) in lower case.
func validLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// NewID makes 128 random bits as 32 hex digits, as the ids of clusters, servers
// and instances are.
func NewID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}

// MaxWeight is the largest share of calls that an instance may take, against the 100
// that it takes by default.
const MaxWeight = 1000

// IsZone tells whether s can name where an instance or a server runs: a DNS label (RFC
// 1123), or empty, for not said.
func IsZone(s string) bool {
	if len(s) > 63 || strings.HasPrefix(s, "-") || strings.HasSuffix(s, "-") {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
