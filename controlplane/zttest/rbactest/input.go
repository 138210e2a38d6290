package rbactest

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	xcorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	networkinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslinputv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// input is what a matcher looks at.
type input struct {
	present bool
	text    string
	custom  bool // value or cel, and no text
	value   any
	cel     bool
}

func text(s string, present bool) input { return input{present: present, text: s} }

func (s *stream) input(x *xcorev3.TypedExtensionConfig) (input, error) {
	m, err := s.proxy.decode(x.GetTypedConfig())
	if err != nil {
		return input{}, err
	}
	switch m := m.(type) {
	case *sslinputv3.UriSanInput:
		if !s.req.TLS {
			return input{}, errors.New("without TLS there is no certificate, and Envoy denies without a name")
		}
		return text(s.req.Peer, s.req.Peer != ""), nil
	case *networkinputv3.FilterStateInput:
		v, ok := s.state[m.GetKey()]
		return text(v, ok), nil
	case *networkinputv3.DirectSourceIPInput:
		return text(s.req.Source.String(), true), nil
	case *networkinputv3.SourceIPInput:
		// use_remote_address with no trusted hops: the TCP peer in HTTP, too.
		return text(s.req.Source.String(), true), nil
	case *networkinputv3.DestinationPortInput:
		return text(strconv.FormatUint(uint64(s.port), 10), true), nil
	case *networkinputv3.DynamicMetadataInput:
		var path []string
		for _, seg := range m.GetPath() {
			path = append(path, seg.GetKey())
		}
		return input{present: true, custom: true, value: lookup(s.metadata[m.GetFilter()], path)}, nil
	case *matcherv3.HttpAttributesCelMatchInput:
		return input{present: true, custom: true, cel: true}, nil
	case *typematcherv3.HttpRequestHeaderMatchInput:
		if !s.http {
			return input{}, fmt.Errorf("a connection has no header %s", m.GetHeaderName())
		}
		if err := modelled(m.GetHeaderName()); err != nil {
			return input{}, err
		}
		v, ok := s.header(m.GetHeaderName())
		return text(v, ok), nil
	default:
		return input{}, fmt.Errorf("the input %s is a %T", x.GetName(), m)
	}
}

// modelled refuses the headers that Envoy itself writes and that are not here.
func modelled(name string) error {
	switch name {
	case "x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-client-cert",
		"connection", "keep-alive", "proxy-connection", "transfer-encoding", "te", "content-length":
		return fmt.Errorf("the header %s is Envoy's own, which this does not model", name)
	}
	if strings.HasPrefix(name, "x-envoy-") {
		return fmt.Errorf("the header %s is Envoy's own, which this does not model", name)
	}
	return nil
}

// matchString is xds.type.matcher.v3.StringMatcher.
func (p *Proxy) matchString(m *matcherv3.StringMatcher, v string) (bool, error) {
	ic := m.GetIgnoreCase()
	v = fold(v, ic)
	switch t := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return v == fold(t.Exact, ic), nil
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(v, fold(t.Prefix, ic)), nil
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(v, fold(t.Suffix, ic)), nil
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(v, fold(t.Contains, ic)), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return p.fullMatch(t.SafeRegex.GetRegex(), v)
	default:
		return false, fmt.Errorf("a string matches by %T", t)
	}
}

// matchEnvoyString is envoy.type.matcher.v3.StringMatcher, which says the same.
func (p *Proxy) matchEnvoyString(m *typematcherv3.StringMatcher, v string) (bool, error) {
	ic := m.GetIgnoreCase()
	v = fold(v, ic)
	switch t := m.GetMatchPattern().(type) {
	case *typematcherv3.StringMatcher_Exact:
		return v == fold(t.Exact, ic), nil
	case *typematcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(v, fold(t.Prefix, ic)), nil
	case *typematcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(v, fold(t.Suffix, ic)), nil
	case *typematcherv3.StringMatcher_Contains:
		return strings.Contains(v, fold(t.Contains, ic)), nil
	case *typematcherv3.StringMatcher_SafeRegex:
		return p.fullMatch(t.SafeRegex.GetRegex(), v)
	default:
		return false, fmt.Errorf("a string matches by %T", t)
	}
}

// fullMatch matches the whole of v, as Envoy's regular expressions do. Go's are
// those of RE2.
func (p *Proxy) fullMatch(expr, v string) (bool, error) {
	re, err := p.regexp(`\A(?:` + expr + `)\z`)
	if err != nil {
		return false, err
	}
	return re.MatchString(v), nil
}

func (p *Proxy) regexp(expr string) (*regexp.Regexp, error) {
	if re, ok := p.compiled[expr].(*regexp.Regexp); ok {
		return re, nil
	}
	re, err := regexp.Compile(strings.ReplaceAll(expr, `\C`, `(?s:.)`)) // any byte
	if err != nil {
		return nil, err
	}
	p.compiled[expr] = re
	return re, nil
}

// containsIP: a range of IPv4 holds no IPv6 address, mapped ones neither.
func containsIP(ranges []*corev3.CidrRange, address string) bool {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	for _, r := range ranges {
		base, err := netip.ParseAddr(r.GetAddressPrefix())
		if err == nil && netip.PrefixFrom(base, int(r.GetPrefixLen().GetValue())).Contains(ip) {
			return true
		}
	}
	return false
}
