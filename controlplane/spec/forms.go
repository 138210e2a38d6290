package spec

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ParseID reads a SPIFFE ID of a workload (SPIFFE-ID, sections 2.1 to 2.4): the
// trust domain, and the path with its leading slash.
func ParseID(id string) (trustDomain, path string, err error) {
	const most = 2048 // bytes; section 2.3
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok || len(id) > most {
		return "", "", fmt.Errorf("%s is not spiffe://trust-domain/path of at most %d bytes", show(id), most)
	}
	trustDomain, path, ok = strings.Cut(rest, "/")
	if !ok || path == "" {
		return "", "", fmt.Errorf("%s has no path", show(id))
	}
	if !isTrustDomain(trustDomain) {
		return "", "", fmt.Errorf("%s is not a trust domain of a-z, 0-9, dots, hyphens and underscores", show(trustDomain))
	}
	for s := range strings.SplitSeq(path, "/") {
		if s == "" || s == "." || s == ".." || strings.IndexFunc(s, func(c rune) bool { return !isIDRune(c) && (c < 'A' || c > 'Z') }) >= 0 {
			return "", "", fmt.Errorf("the path of %s has the segment %s, which is not of letters, digits, dots, hyphens and underscores", show(id), show(s))
		}
	}
	return trustDomain, "/" + path, nil
}

// isTrustDomain is as the schema has it for Mesh.trustDomain.
func isTrustDomain(s string) bool {
	const edge = "-._"
	return s != "" && len(s) <= 247 && !strings.Contains(edge, s[:1]) && !strings.Contains(edge, s[len(s)-1:]) &&
		strings.IndexFunc(s, func(c rune) bool { return !isIDRune(c) }) < 0
}

func isIDRune(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
}

// workloadOf is the workload whose ID has the path "/ns/NAMESPACE/sa/NAME".
func workloadOf(path string) (ref Ref, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" || !isLabel(parts[2]) || !isLabel(parts[4]) {
		return Ref{}, false
	}
	return Ref{parts[2], parts[4]}, true
}

// Header names that a condition may not speak of and that nothing may set: those
// of one hop (RFC 9110, section 7.6.1), of the message's framing, of who is
// called, of credentials, and those that proxies write.
var (
	ownHeaders = []string{
		"authorization", "connection", "content-length", "expect", "forwarded", "host", "http2-settings", "keep-alive",
		"proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
		"via", "x-request-id",
	}
	ownPrefixes = []string{"x-forwarded-", "x-envoy-", "x-ztmesh-"}

	// What applications read for themselves; a condition may speak of it.
	commonHeaders = []string{
		"accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "access-control-request-headers",
		"access-control-request-method", "cache-control", "content-disposition", "content-encoding", "content-language",
		"content-location", "content-range", "content-type", "cookie", "date", "etag", "if-match", "if-modified-since",
		"if-none-match", "if-range", "if-unmodified-since", "max-forwards", "origin", "pragma", "range", "referer",
		"set-cookie", "traceparent", "tracestate", "user-agent", "www-authenticate",
	}
	commonPrefixes = []string{"grpc-", "sec-"}
)

// headerProblem is why name may not be matched or, with set, be written by a
// proxy; empty when it may.
func headerProblem(name string, set bool) string {
	const most = 128
	begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	switch {
	case name == "" || len(name) > most || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.HasPrefix(name, "-"):
		return "is not a header name in lower case, of letters, digits and hyphens"
	case slices.Contains(ownHeaders, name) || slices.ContainsFunc(ownPrefixes, begins):
		return "is a header that proxies and protocols use themselves"
	case set && (slices.Contains(commonHeaders, name) || slices.ContainsFunc(commonPrefixes, begins)):
		return "is a header that clients and applications use themselves"
	}
	return ""
}

// isHeaderValue tells whether s can arrive as the value of a header as it is.
func isHeaderValue(s string) bool {
	return s != "" && len(s) <= 4096 && s == strings.TrimSpace(s) && strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) < 0
}

// ParseCIDR reads an address range in its one canonical spelling.
func ParseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is not an address range such as 10.0.0.0/8 or fd00::/8", show(s))
	case p.Masked().String() != s:
		return netip.Prefix{}, fmt.Errorf("%s is not canonical: write %s", show(s), p.Masked())
	}
	return p, nil
}

var (
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
	reserved = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),          // this host (RFC 1122)
		netip.MustParsePrefix("127.0.0.0/8"),        // loopback
		netip.MustParsePrefix("169.254.0.0/16"),     // link-local, metadata of most clouds
		netip.MustParsePrefix("100.100.100.200/32"), // metadata of Alibaba Cloud
		netip.MustParsePrefix("168.63.129.16/32"),   // the host of Azure
		netip.MustParsePrefix("192.0.0.192/32"),     // metadata of Oracle Cloud
		netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("fd00:ec2::/32"), // metadata of AWS
	}
)

// Reserved tells whether addr is one that no name may lead to without an
// Exception: unspecified, loopback, link-local, multicast, or of a host's own
// services such as cloud metadata. It sees through IPv4 in IPv6.
func Reserved(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	return !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() ||
		slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// isHost tells whether s is a DNS name in lower case that can not be read as an
// address and is not of the mesh.
func isHost(s string) bool {
	if len(s) > 253 || strings.HasSuffix("."+s, HostSuffix) {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
		last = label
	}
	// "Ends in a number" (WHATWG URL, section 3.5): resolvers take such a name for
	// an IPv4 address.
	return strings.Trim(last, "0123456789") != "" && !(strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "")
}

// isLocalName tells whether the host name s is this host's (RFC 6761, section 6.3).
func isLocalName(s string) bool { return strings.HasSuffix("."+s, ".localhost") }

// parseURL reads an absolute http or https URL without credentials or fragment,
// to a host name or address in canonical spelling.
func parseURL(s string) (*url.URL, error) {
	if strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\\\"<>^`{|}", c) }) >= 0 {
		return nil, fmt.Errorf("%s has characters that a URL may not have", show(s))
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		return nil, fmt.Errorf("%s is not a URL", show(s))
	case u.Scheme != "https" && u.Scheme != "http" || !strings.HasPrefix(s, u.Scheme+":"):
		return nil, fmt.Errorf("%s begins with neither https:// nor http://", show(s))
	case u.User != nil || strings.Contains(s, "#"):
		return nil, fmt.Errorf("%s has credentials or a fragment", show(s))
	}
	host, _, bracketed := strings.Cut(u.Host, "]")
	if bracketed {
		addr, err := netip.ParseAddr(host[1:])
		if err != nil || addr.Zone() != "" || addr.String() != host[1:] {
			return nil, fmt.Errorf("%s has the address %s, which is not in canonical form", show(s), show(u.Hostname()))
		}
	} else if addr, err := netip.ParseAddr(u.Hostname()); !isHost(u.Hostname()) && (err != nil || !addr.Is4()) {
		return nil, fmt.Errorf("%s has the host %s, which is neither a DNS name in lower case nor an address", show(s), show(u.Hostname()))
	}
	if strings.HasSuffix(u.Host, ":") {
		return nil, fmt.Errorf("%s has no port after \":\"", show(s))
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != p {
			return nil, fmt.Errorf("%s has the port %s", show(s), show(p))
		}
	}
	return u, nil
}

// caProblem is why text is not one or more CA certificates as PEM. Any other
// certificate would be trusted for what it is, not for what it signs.
func caProblem(text string) error {
	rest, n := []byte(text), 0
	for len(bytes.TrimSpace(rest)) > 0 {
		if n++; n > 256 {
			return errors.New("there are more than 256 certificates")
		}
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return errors.New("it is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("item %d is a %s, not a CERTIFICATE", n, show(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return fmt.Errorf("certificate %d does not parse", n)
		case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
			return fmt.Errorf("certificate %d is not that of a CA", n)
		}
	}
	if n == 0 {
		return errors.New("there is no certificate")
	}
	return nil
}
