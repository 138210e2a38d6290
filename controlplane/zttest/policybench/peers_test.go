package policybench_test

import (
	"crypto/sha256"
	"encoding/hex"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ztmesh/ztmesh/xds"
)

// asPeers replaces the policies of the forms that are lowered as other meshes do.
func (d *bed) asPeers(r *xds.Resources, conf *xds.Config) {
	for _, f := range forms() {
		if !f.peers || f.ref().String() != conf.Workload {
			continue
		}
		for _, n := range sizes() {
			name := xds.PolicyName(conf.Workload, f.port(n))
			chain := &filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{
				Filters: []*corev3.TypedExtensionConfig{{Name: "rbac", TypedConfig: d.any(policies(inbound(conf, f.port(n)).Rules))}},
			}}
			d.replace(r, name, &corev3.TypedExtensionConfig{Name: name, TypedConfig: d.any(chain)})
		}
	}
}

// policies is a list of policies, by path and source, which Envoy goes through one
// after the other.
func policies(rules []xds.Rule) *httprbacv3.RBAC {
	all := map[string]*rbacv3.Policy{}
	for i := range rules {
		r := &rules[i]
		p := &rbacv3.Policy{}
		var methods, paths []*rbacv3.Permission
		for _, m := range r.Methods {
			methods = append(methods, header(":method", &typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: m}}))
		}
		for _, path := range r.Paths {
			paths = append(paths, urlPath(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: path.Value}}))
			if path.Kind == xds.Rest {
				paths = append(paths, urlPath(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Prefix{Prefix: path.Value + "/"}}))
			}
		}
		p.Permissions = []*rbacv3.Permission{{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{
			Rules: []*rbacv3.Permission{orRules(paths), orRules(methods)},
		}}}}
		for _, id := range r.Callers.IDs {
			p.Principals = append(p.Principals, source(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Exact{Exact: id}}))
		}
		for _, prefix := range r.Callers.Prefixes {
			p.Principals = append(p.Principals, source(&typematcherv3.StringMatcher{MatchPattern: &typematcherv3.StringMatcher_Prefix{Prefix: prefix}}))
		}
		all[r.Grant] = p
	}
	return &httprbacv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: all}, RulesStatPrefix: xds.RBACStatPrefix}
}

func source(m *typematcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m}}}
}

func orRules(rules []*rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: rules}}}
}

func urlPath(m *typematcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &typematcherv3.PathMatcher{
		Rule: &typematcherv3.PathMatcher_Path{Path: m},
	}}}
}

func header(name string, m *typematcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}}}
}

func (d *bed) any(m proto.Message) *anypb.Any {
	d.b.Helper()
	a := &anypb.Any{}
	d.check(anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}))
	return a
}

// replace puts m in the place of a resource.
func (d *bed) replace(r *xds.Resources, name string, m proto.Message) {
	d.b.Helper()
	body := d.any(m)
	sum := sha256.Sum256(body.GetValue())
	byName := (*r)[body.GetTypeUrl()]
	if byName[name] == nil {
		d.b.Fatalf("no resource %s %s", body.GetTypeUrl(), name)
	}
	byName[name] = &xds.Resource{Type: body.GetTypeUrl(), Name: name, Version: hex.EncodeToString(sum[:16]), Body: body}
}
