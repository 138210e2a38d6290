package rbactest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	headermetav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpsetstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ztmesh/ztmesh/xds"
)

// serve is a connection manager: the request is brought into form, goes through
// the filters and is routed.
func (s *stream) serve(h *hcmv3.HttpConnectionManager) (Verdict, error) {
	if refused, err := s.accept(h); refused != nil || err != nil {
		return deref(refused), err
	}
	target, err := s.route(h)
	if err != nil {
		return Verdict{}, err
	}
	if !s.upgradable(h) {
		return Verdict{Status: 403, Filter: StageRequest}, nil
	}
	for _, f := range h.GetHttpFilters() {
		var m proto.Message
		var err error
		if d := f.GetConfigDiscovery(); d != nil {
			m, err = s.proxy.discovered(f.GetName(), d)
		} else {
			m, err = s.proxy.decode(f.GetTypedConfig())
		}
		if err != nil {
			return Verdict{}, fmt.Errorf("filter %s: %w", f.GetName(), err)
		}
		v, err := s.httpFilter(m)
		if err != nil {
			return Verdict{}, fmt.Errorf("filter %s: %w", f.GetName(), err)
		}
		if v != nil {
			v.Filter, v.Shadow = f.GetName(), s.shadow
			return *v, nil
		}
	}
	target.Shadow = s.shadow
	if target.Allowed {
		target.Policy = s.allowed
	}
	return target, nil
}

func deref(v *Verdict) Verdict {
	if v == nil {
		return Verdict{}
	}
	return *v
}

// accept does what comes before the filters; not nil is a refusal.
func (s *stream) accept(h *hcmv3.HttpConnectionManager) (*Verdict, error) {
	if !h.GetNormalizePath().GetValue() || !h.GetMergeSlashes() ||
		h.GetPathWithEscapedSlashesAction() != hcmv3.HttpConnectionManager_REJECT_REQUEST ||
		!h.GetStripAnyHostPort() || !h.GetStripTrailingHostDot() || !h.GetUseRemoteAddress().GetValue() ||
		h.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() != corev3.HttpProtocolOptions_REJECT_REQUEST {
		return nil, errors.New("the connection manager is not hardened")
	}
	malformed := &Verdict{Status: 400, Filter: StageRequest}
	path, ok := normalise(s.req.Path)
	if !ok || !isToken(s.req.Method) || strings.ContainsAny(s.req.Authority, "/?#\\ ") {
		return malformed, nil
	}
	for _, hd := range s.req.Headers {
		if strings.Contains(hd.Name, "_") {
			return malformed, nil
		}
	}
	s.headers = append([]Header{{":method", s.req.Method}, {":path", path}, {":authority", stripHost(s.req.Authority)}}, s.req.Headers...)
	for _, x := range h.GetEarlyHeaderMutationExtensions() {
		m, err := s.proxy.decode(x.GetTypedConfig())
		if err != nil {
			return nil, err
		}
		early, ok := m.(*earlyv3.HeaderMutation)
		if !ok {
			return nil, fmt.Errorf("headers are changed by a %T", m)
		}
		for _, change := range early.GetMutations() {
			if change.GetRemove() == "" {
				return nil, errors.New("a header is changed, not removed")
			}
			s.removeHeader(change.GetRemove())
		}
	}
	if s.req.Upgrade != "" {
		s.addHeader("upgrade", s.req.Upgrade)
	}
	return nil, nil
}

// upgradable says whether the connection manager, or the route, takes the upgrade
// that a request asks for. It says no before any filter is asked (upgrade_failed).
// CONNECT is an upgrade that nobody takes.
func (s *stream) upgradable(h *hcmv3.HttpConnectionManager) bool {
	switch {
	case s.req.Method == "CONNECT":
		return false
	case s.req.Upgrade == "":
		return true
	}
	for _, u := range h.GetUpgradeConfigs() {
		if strings.EqualFold(u.GetUpgradeType(), s.req.Upgrade) {
			return true
		}
	}
	return slices.ContainsFunc(s.upgrades, func(u string) bool { return strings.EqualFold(u, s.req.Upgrade) })
}

// stripHost takes one trailing dot and a port away.
func stripHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if _, err := strconv.ParseUint(host[i+1:], 10, 32); err == nil && !strings.ContainsAny(host[i+1:], "+-_") {
			host = host[:i]
		}
	}
	return strings.TrimSuffix(host, ".")
}

// isToken: RFC 9110, section 5.6.2.
func isToken(s string) bool {
	return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// httpFilter runs one filter; nil lets the request go on.
func (s *stream) httpFilter(m proto.Message) (*Verdict, error) {
	switch m := m.(type) {
	case *healthcheckv3.HealthCheck:
		if m.GetPassThroughMode().GetValue() {
			return nil, errors.New("a health check passes through")
		}
		ok, err := allOf(m.GetHeaders(), s.matchHeader)
		if !ok || err != nil {
			return nil, err
		}
		return &Verdict{Allowed: true, Status: 200, Policy: "health"}, nil
	case *filterchainv3.FilterChainConfig: // none: it passes
		for _, f := range m.GetDefaultFilterChain().GetFilters() {
			inner, err := s.proxy.decode(f.GetTypedConfig())
			if err != nil {
				return nil, err
			}
			if v, err := s.httpFilter(inner); v != nil || err != nil {
				return v, err
			}
		}
		return nil, nil
	case *httpsetstatev3.Config:
		return nil, s.setState(m.GetOnRequestHeaders())
	case *headermetav3.Config:
		return nil, s.headerToMetadata(m)
	case *jwtv3.JwtAuthentication:
		if ok, err := s.authenticate(m); ok || err != nil {
			return nil, err
		}
		return &Verdict{Status: 401, Policy: "token"}, nil
	case *httprbacv3.RBAC:
		return s.httpRBAC(m)
	case *authzv3.ExtAuthz:
		if m.GetFailureModeAllow() || !m.GetDecoderHeaderMutationRules().GetDisallowSystem().GetValue() {
			return nil, errors.New("an authorizer may open, or rewrite")
		}
		if s.req.Refused && s.found { // without a route it is not asked
			return &Verdict{Status: 403, Policy: "external"}, nil
		}
		return nil, nil
	case *routerv3.Router:
		return nil, nil
	default:
		return nil, fmt.Errorf("it is a %T", m)
	}
}

func (s *stream) httpRBAC(m *httprbacv3.RBAC) (*Verdict, error) {
	shadow := engine{m.GetShadowRules(), m.GetShadowMatcher()}
	if shadow != (engine{}) {
		_, policy, err := s.judge(shadow)
		if err != nil {
			return nil, fmt.Errorf("shadow: %w", err)
		}
		s.shadow = policy
	}
	enforced := engine{m.GetRules(), m.GetMatcher()}
	ok, policy, err := s.judge(enforced)
	if err != nil {
		return nil, err
	}
	if !ok {
		return &Verdict{Status: 403, Policy: policy}, nil
	}
	// The filters of Blocks tell under other names that they let it pass.
	if enforced != (engine{}) && m.GetRulesStatPrefix() == xds.RBACStatPrefix {
		s.allowed = policy
	}
	return nil, nil
}

// route finds the virtual host and the route, and so what comes of a request that
// every filter lets pass.
func (s *stream) route(h *hcmv3.HttpConnectionManager) (Verdict, error) {
	v := Verdict{Filter: StageRoute}
	config := h.GetRouteConfig()
	if rds := h.GetRds(); rds != nil {
		if config = s.proxy.routes[rds.GetRouteConfigName()]; config == nil {
			v.Status = 404
			return v, nil
		}
	}
	authority, _ := s.header(":authority")
	var host, any *routev3.VirtualHost
	for _, vh := range config.GetVirtualHosts() {
		for _, d := range vh.GetDomains() {
			switch {
			case d == "*":
				any = vh
			case strings.Contains(d, "*"):
				return v, fmt.Errorf("the domain %s", d)
			case strings.EqualFold(d, authority):
				host = vh
			}
		}
	}
	if host == nil {
		host = any
	}
	for _, r := range host.GetRoutes() {
		ok, err := s.routeMatches(r.GetMatch())
		if err != nil {
			return v, err
		}
		if !ok {
			continue
		}
		s.routed, s.found = r.GetName(), true
		switch a := r.GetAction().(type) {
		case *routev3.Route_Route:
			v.Allowed, v.Cluster = true, a.Route.GetCluster()
			for _, u := range a.Route.GetUpgradeConfigs() {
				s.upgrades = append(s.upgrades, u.GetUpgradeType())
			}
		case *routev3.Route_DirectResponse:
			v.Status, v.Policy = int(a.DirectResponse.GetStatus()), host.GetName()
		default:
			return v, fmt.Errorf("a route does %T", a)
		}
		if v.Allowed && s.proxy.clusters[v.Cluster] == nil {
			return Verdict{}, fmt.Errorf("the cluster %s is missing", v.Cluster)
		}
		return v, nil
	}
	v.Status = 404
	return v, nil
}
