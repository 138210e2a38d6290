package rbactest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
)

// jwtFilter is the name under which payloads stand in the dynamic metadata.
const jwtFilter = "envoy.filters.http.jwt_authn"

// What becomes of a token.
type tokenStatus int

const (
	tokenOK tokenStatus = iota
	tokenMissing
	tokenBad
)

// authenticate is the filter jwt_authn: the first rule that matches the path
// counts; without one the request passes.
func (s *stream) authenticate(c *jwtv3.JwtAuthentication) (ok bool, err error) {
	for _, rule := range c.GetRules() {
		matched, err := s.routeMatches(rule.GetMatch())
		if err != nil {
			return false, err
		}
		if !matched {
			continue
		}
		if rule.GetRequirementType() == nil {
			return true, nil
		}
		status, err := s.requirement(c, rule.GetRequires(), nil)
		return status == tokenOK, err
	}
	return true, nil
}

func (s *stream) routeMatches(m *routev3.RouteMatch) (bool, error) {
	if ok, err := allOf(m.GetHeaders(), s.matchHeader); !ok || err != nil {
		return false, err
	}
	path, _ := s.header(":path")
	switch t := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return strings.HasPrefix(path, t.Prefix), nil
	default:
		return false, fmt.Errorf("a route matches by %T", t)
	}
}

// requirement: among is the providers that stand beside a bypass in the same
// requires_any; nil is all of them.
func (s *stream) requirement(c *jwtv3.JwtAuthentication, r *jwtv3.JwtRequirement, among []string) (tokenStatus, error) {
	switch t := r.GetRequiresType().(type) {
	case nil:
		return tokenOK, nil
	case *jwtv3.JwtRequirement_ProviderName:
		p := c.GetProviders()[t.ProviderName]
		if p == nil {
			return tokenBad, fmt.Errorf("the provider %s is not configured", t.ProviderName)
		}
		return s.verify(c, []string{t.ProviderName}, false)
	case *jwtv3.JwtRequirement_RequiresAny:
		return s.requiresAny(c, t.RequiresAny.GetRequirements())
	case *jwtv3.JwtRequirement_AllowMissing:
		status, err := s.verify(c, orAll(c, among), true)
		if status == tokenMissing {
			status = tokenOK
		}
		return status, err
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		_, err := s.verify(c, orAll(c, among), true)
		return tokenOK, err
	default:
		return tokenBad, fmt.Errorf("a requirement is a %T", t)
	}
}

// requiresAny: the bypass, if there is one, is tried last.
func (s *stream) requiresAny(c *jwtv3.JwtAuthentication, list []*jwtv3.JwtRequirement) (tokenStatus, error) {
	var providers []string
	var bypass *jwtv3.JwtRequirement
	status := tokenBad
	for _, r := range list {
		switch t := r.GetRequiresType().(type) {
		case *jwtv3.JwtRequirement_AllowMissing, *jwtv3.JwtRequirement_AllowMissingOrFailed:
			if bypass != nil {
				return tokenBad, fmt.Errorf("two ways around the same requirement")
			}
			bypass = r
			continue
		case *jwtv3.JwtRequirement_ProviderName:
			providers = append(providers, t.ProviderName)
		}
		var err error
		if status, err = s.requirement(c, r, nil); status == tokenOK || err != nil {
			return status, err
		}
	}
	if bypass == nil {
		return status, nil
	}
	return s.requirement(c, bypass, providers)
}

func orAll(c *jwtv3.JwtAuthentication, among []string) []string {
	if among != nil {
		return among
	}
	return slices.Sorted(maps.Keys(c.GetProviders()))
}

// verify takes the tokens of all these providers' locations, the last first. One
// provider needs every token to be good; lenient goes on after a bad one, and the
// last that it tries counts.
func (s *stream) verify(c *jwtv3.JwtAuthentication, providers []string, lenient bool) (tokenStatus, error) {
	locations := map[Header][]string{} // header and prefix → issuers that look there
	for _, name := range providers {
		p := c.GetProviders()[name]
		if len(p.GetFromHeaders()) == 0 {
			return tokenBad, fmt.Errorf("the provider %s takes tokens from everywhere", name)
		}
		for _, h := range p.GetClaimToHeaders() {
			s.removeHeader(h.GetHeaderName())
		}
		for _, h := range p.GetFromHeaders() {
			at := Header{strings.ToLower(h.GetName()), h.GetValuePrefix()}
			locations[at] = append(locations[at], p.GetIssuer())
		}
	}
	type found struct {
		header, compact string
		issuers         []string
	}
	var tokens []found
	for _, at := range slices.SortedFunc(maps.Keys(locations), func(a, b Header) int { return strings.Compare(a.Name+a.Value, b.Name+b.Value) }) {
		for _, h := range s.headers {
			if h.Name != at.Name {
				continue
			}
			if compact, ok := extract(h.Value, at.Value); ok {
				tokens = append(tokens, found{at.Name, compact, locations[at]})
			}
		}
	}
	status := tokenMissing
	for _, t := range slices.Backward(tokens) {
		status = tokenBad
		token, ok := Token{}, false
		if s.req.Tokens != nil {
			token, ok = s.req.Tokens(t.compact)
		}
		for _, name := range []string{"sub", "jti"} { // Envoy wants strings (RFC 7519, section 4.1)
			if v, has := token.Claims[name]; has {
				_, is := v.(string)
				ok = ok && is
			}
		}
		if ok && slices.Contains(t.issuers, token.Issuer) {
			for _, name := range providers {
				if p := c.GetProviders()[name]; p.GetIssuer() == token.Issuer {
					s.verified(p, t.header, token)
					status = tokenOK
					break
				}
			}
		}
		if status != tokenOK && !lenient {
			return status, nil
		}
	}
	return status, nil
}

// base64url is what a compact token is made of, besides dots.
const base64url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// extract finds a token in a header's value: the prefix stands anywhere, and what
// follows is taken from its first character that a token may have to the end.
func extract(value, prefix string) (string, bool) {
	if prefix == "" {
		return value, true
	}
	i := strings.Index(value, prefix)
	if i < 0 {
		return "", false
	}
	rest := value[i+len(prefix):]
	if j := strings.IndexAny(rest, base64url); j >= 0 {
		return rest[j:], true
	}
	return value, true
}

// verified tells the filters behind, and the application, of a good token.
func (s *stream) verified(p *jwtv3.JwtProvider, header string, t Token) {
	for _, h := range p.GetClaimToHeaders() {
		path := strings.Split(h.GetClaimName(), ".")
		if segments := h.GetClaimPath(); len(segments) > 0 {
			path = nil
			for _, seg := range segments {
				path = append(path, seg.GetKey())
			}
		}
		switch v := lookup(t.Claims, path).(type) {
		case string:
			if v != "" {
				s.addHeader(h.GetHeaderName(), v)
			}
		case bool:
			s.addHeader(h.GetHeaderName(), strconv.FormatBool(v))
		}
	}
	if !p.GetForward() {
		s.removeHeader(header)
	}
	if key := p.GetPayloadInMetadata(); key != "" {
		if s.metadata[jwtFilter] == nil {
			s.metadata[jwtFilter] = map[string]any{}
		}
		s.metadata[jwtFilter][key] = t.Claims
	}
}
