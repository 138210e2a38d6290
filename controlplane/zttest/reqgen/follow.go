package reqgen

import (
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

var methods = []string{"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT"}

// follow makes r what a grant asks for.
func (g *Generator) follow(random Random, r *Request, at target, d *spec.Document) {
	grant, namespace := d.GetGrant(), d.GetMetadata().GetNamespace()
	if ids := g.named(namespace, grant.GetFrom()); len(ids) > 0 {
		r.CallerID = pick(random, ids)
	}
	to := grant.GetTo()
	if !r.TCP {
		g.target(random, r, at, to)
	}
	g.user(random, r, grant.GetFrom().GetUsers())
	when := grant.GetWhen()
	names := sortedKeys(when.GetHeaders())
	for _, name := range names {
		r.Headers = append(r.Headers, policy.Header{Name: name, Value: pick(random, when.GetHeaders()[name].GetValues())})
	}
	if list := when.GetSourceCidrs(); len(list) > 0 {
		one := Generator{}
		one.ranges([]string{pick(random, list)})
		if len(one.addresses) > 0 {
			r.Source = one.addresses[0]
		}
	}
	if list := when.GetWindows(); len(list) > 0 {
		one := Generator{}
		one.window(pick(random, list))
		if len(one.moments) > 0 {
			r.Time = pick(random, one.moments)
		}
	} else if until := grant.GetUntil(); until != nil && !rarely(random, 4) {
		r.Time = until.AsTime().Add(-time.Duration(1+random(3)) * time.Second)
	}
}

// named are the identities that a Caller speaks of, as far as it names them.
func (g *Generator) named(namespace string, from *ztv1.Caller) []string {
	ids := slices.Clone(from.GetSpiffeIds())
	for _, s := range from.GetWorkloads() {
		if ref, err := spec.ParseRef(s, namespace); err == nil {
			ids = append(ids, policy.ID(g.trustDomain, ref))
		}
	}
	for _, w := range g.workloads {
		if from.GetAnyWorkload() || slices.Contains(from.GetNamespaces(), w.Namespace) || len(from.GetSegments()) > 0 {
			ids = append(ids, policy.ID(g.trustDomain, w))
		}
	}
	return ids
}

// target takes method, path and upgrade from what is granted.
func (g *Generator) target(random Random, r *Request, at target, to *ztv1.Target) {
	if list := to.GetMethods(); len(list) > 0 {
		r.Method = pick(random, list)
		if strings.Contains(r.Method, "/") {
			r.Method, r.Path = "POST", instance(random, "/"+r.Method)
		}
	} else if at.port.GetProtocol() == policy.GRPC {
		r.Method = "POST"
	}
	if list := to.GetPaths(); len(list) > 0 {
		r.Path = instance(random, pick(random, list))
	}
	if list := to.GetUpgrades(); len(list) > 0 {
		r.Upgrade, r.Method = pick(random, list), "GET"
	}
}

// instance is a path that a pattern matches, or nearly.
func instance(random Random, pattern string) string {
	segments := strings.Split(pattern, "/")
	for i, s := range segments {
		switch {
		case s == "**":
			segments[i] = pick(random, []string{"", "x", "x/y", "x/", "**"})
		case s == "*", strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}"):
			segments[i] = pick(random, []string{"x", "y", "a", "b", "*", "="})
		}
	}
	path := strings.Join(segments, "/")
	if strings.HasSuffix(pattern, "/**") && rarely(random, 4) {
		path = cutLast(path)
	}
	return path
}

func cutLast(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return path
}

// user gives r a token of such a user.
func (g *Generator) user(random Random, r *Request, u *ztv1.Users) {
	p := g.providers[u.GetProvider()]
	if p == nil {
		return
	}
	claims := map[string]any{"iss": p.GetIssuer(), "sub": pick(random, []string{"u1", "u2", "-"})}
	if list := u.GetSubjects(); len(list) > 0 {
		claims["sub"] = pick(random, list)
	}
	if list := u.GetAcr(); len(list) > 0 {
		claims["acr"] = pick(random, list)
	}
	if list := u.GetAmr(); len(list) > 0 {
		claims["amr"] = []any{"other", pick(random, list)}
	}
	if age := u.GetMaxAge(); age != nil {
		seconds := int(age.AsDuration() / time.Second)
		claims["auth_time"] = float64(r.Time.Unix() - int64(seconds) + int64(random(5)) - 2)
	}
	for _, name := range sortedKeys(u.GetClaims()) {
		value := pick(random, u.GetClaims()[name].GetValues())
		for _, c := range p.GetClaims() {
			if c.GetName() == name {
				put(claims, claimPath(c), claimValue(c.GetKind(), value))
			}
		}
	}
	r.Token = policy.Token{State: policy.TokenValid, Provider: u.GetProvider(), Claims: claims}
}

func claimPath(c *ztv1.Claim) []string {
	if len(c.GetPath()) > 0 {
		return c.GetPath()
	}
	return []string{c.GetName()}
}

func claimValue(kind, value string) any {
	switch kind {
	case "list":
		return []any{"other", value}
	case "boolean":
		return value == "true"
	}
	return value
}

// put sets a value in nested objects.
func put(object map[string]any, path []string, value any) {
	for _, key := range path[:len(path)-1] {
		inner, ok := object[key].(map[string]any)
		if !ok {
			inner = map[string]any{}
			object[key] = inner
		}
		object = inner
	}
	object[path[len(path)-1]] = value
}

// provoke makes r what a Block speaks of.
func (g *Generator) provoke(random Random, r *Request, b *ztv1.Block) {
	if ids := b.GetSpiffeIds(); len(ids) > 0 {
		r.CallerID = pick(random, ids)
	}
	if u := b.GetUsers(); u != nil {
		g.user(random, r, &ztv1.Users{Provider: u.GetProvider(), Subjects: u.GetSubjects()})
	}
	if u := b.GetUntil(); u != nil {
		r.Time = u.AsTime().Add(time.Duration(random(3)-1) * time.Second)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
