package rbactest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// engine is one half, enforced or shadow, of an RBAC filter of either level.
type engine struct {
	rules   *rbacv3.RBAC
	matcher *matcherv3.Matcher
}

// judge says whether the engine lets the stream pass and which policy says so.
// Without rules there is no engine, and everything passes.
func (s *stream) judge(e engine) (allowed bool, policy string, err error) {
	switch {
	case e.matcher != nil:
		action, err := s.match(e.matcher)
		if err != nil || action == nil {
			return false, "", err // no match denies
		}
		switch action.GetAction() {
		case rbacv3.RBAC_ALLOW:
			return true, action.GetName(), nil
		case rbacv3.RBAC_DENY:
			return false, action.GetName(), nil
		}
		return false, "", fmt.Errorf("the action %s is %s", action.GetName(), action.GetAction())
	case e.rules != nil:
		return s.judgeRules(e.rules)
	}
	return true, "", nil
}

// judgeRules: policies are tried in the order of their names.
func (s *stream) judgeRules(r *rbacv3.RBAC) (bool, string, error) {
	matched := ""
	for _, name := range slices.Sorted(maps.Keys(r.GetPolicies())) {
		ok, err := s.policyMatches(r.GetPolicies()[name])
		if err != nil {
			return false, "", fmt.Errorf("policy %s: %w", name, err)
		}
		if ok {
			matched = name
			break
		}
	}
	switch r.GetAction() {
	case rbacv3.RBAC_ALLOW:
		return matched != "", matched, nil
	case rbacv3.RBAC_DENY:
		return matched == "", matched, nil
	}
	return false, "", fmt.Errorf("rules with action %s", r.GetAction())
}

func (s *stream) policyMatches(p *rbacv3.Policy) (bool, error) {
	ok, err := s.anyPermission(p.GetPermissions())
	if !ok || err != nil {
		return false, err
	}
	if ok, err = s.anyPrincipal(p.GetPrincipals()); !ok || err != nil {
		return false, err
	}
	if p.GetCondition() == nil {
		return true, nil
	}
	return s.condition(p.GetCondition())
}

func (s *stream) anyPermission(list []*rbacv3.Permission) (bool, error) {
	return anyOf(list, s.permission)
}

func (s *stream) anyPrincipal(list []*rbacv3.Principal) (bool, error) {
	return anyOf(list, s.principal)
}

func anyOf[T any](list []T, f func(T) (bool, error)) (bool, error) {
	for _, item := range list {
		if ok, err := f(item); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func allOf[T any](list []T, f func(T) (bool, error)) (bool, error) {
	for _, item := range list {
		if ok, err := f(item); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (s *stream) permission(p *rbacv3.Permission) (bool, error) {
	switch t := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return t.Any, nil
	case *rbacv3.Permission_AndRules:
		return allOf(t.AndRules.GetRules(), s.permission)
	case *rbacv3.Permission_OrRules:
		return s.anyPermission(t.OrRules.GetRules())
	case *rbacv3.Permission_NotRule:
		ok, err := s.permission(t.NotRule)
		return !ok && err == nil, err
	case *rbacv3.Permission_Header:
		return s.matchHeader(t.Header)
	case *rbacv3.Permission_DestinationPort:
		return s.port == t.DestinationPort, nil
	case *rbacv3.Permission_SourcedMetadata:
		return s.sourced(t.SourcedMetadata)
	default:
		return false, fmt.Errorf("a permission is a %T", t)
	}
}

func (s *stream) principal(p *rbacv3.Principal) (bool, error) {
	switch t := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return t.Any, nil
	case *rbacv3.Principal_AndIds:
		return allOf(t.AndIds.GetIds(), s.principal)
	case *rbacv3.Principal_OrIds:
		return s.anyPrincipal(t.OrIds.GetIds())
	case *rbacv3.Principal_NotId:
		ok, err := s.principal(t.NotId)
		return !ok && err == nil, err
	case *rbacv3.Principal_Authenticated_:
		if !s.req.TLS || s.req.Peer == "" {
			return false, nil
		}
		name := t.Authenticated.GetPrincipalName()
		if name == nil {
			return true, nil
		}
		return s.proxy.matchEnvoyString(name, s.req.Peer)
	case *rbacv3.Principal_DirectRemoteIp:
		return containsIP([]*corev3.CidrRange{t.DirectRemoteIp}, s.req.Source.String()), nil
	case *rbacv3.Principal_RemoteIp:
		return containsIP([]*corev3.CidrRange{t.RemoteIp}, s.req.Source.String()), nil
	case *rbacv3.Principal_Header:
		return s.matchHeader(t.Header)
	case *rbacv3.Principal_SourcedMetadata:
		return s.sourced(t.SourcedMetadata)
	default:
		return false, fmt.Errorf("a principal is a %T", t)
	}
}

// matchHeader is envoy.config.route.v3.HeaderMatcher: an absent header does not
// match, inverted or not, save by present_match.
func (s *stream) matchHeader(m *routev3.HeaderMatcher) (bool, error) {
	if !s.http {
		return false, fmt.Errorf("a connection has no header %s", m.GetName())
	}
	if err := modelled(strings.ToLower(m.GetName())); err != nil {
		return false, err
	}
	v, present := s.header(m.GetName())
	if t, ok := m.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch); ok {
		return (present == t.PresentMatch) != m.GetInvertMatch(), nil
	}
	if !present {
		return false, nil
	}
	t, ok := m.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_StringMatch)
	if !ok {
		return false, fmt.Errorf("a header matches by %T", m.GetHeaderMatchSpecifier())
	}
	matched, err := s.proxy.matchEnvoyString(t.StringMatch, v)
	return matched != m.GetInvertMatch(), err
}
