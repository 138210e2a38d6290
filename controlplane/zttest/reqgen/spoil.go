package reqgen

import (
	"fmt"
	"maps"
	"strings"

	"github.com/ztmesh/ztmesh/controlplane/policy"
)

// spoil changes what a request says, often nothing.
func (g *Generator) spoil(random Random, r *Request, at target) {
	if rarely(random, 16) {
		r.CallerID = g.otherCaller(random, r.CallerID)
	}
	if rarely(random, 16) {
		r.Plaintext, r.CallerID = true, ""
	}
	if rarely(random, 10) {
		r.Source = pick(random, g.addresses)
	}
	if rarely(random, 10) {
		r.Time = pick(random, g.moments)
	}
	r.Denied = rarely(random, 12)
	if r.TCP {
		r.Token = policy.Token{}
		r.Headers = nil
		return
	}
	if rarely(random, 8) {
		r.Method = pick(random, []string{"GET", "POST", "HEAD", "get", "PATCH", "TRACE", "OPTIONS", "M-SEARCH", "Get"})
	}
	if rarely(random, 4) {
		r.Path = g.somePath(random)
	}
	if rarely(random, 24) {
		r.Path = "/.well-known/ztmesh/health"
	}
	for twists := []int{0, 0, 0, 0, 1, 2, 3}[random(7)]; twists > 0; twists-- {
		r.Path = twist(random, r.Path)
	}
	if rarely(random, 16) {
		r.Upgrade = pick(random, []string{"websocket", "WebSocket", "h2c", "websocket2"})
	}
	g.spoilHost(random, r, at)
	g.spoilHeaders(random, r)
	g.spoilToken(random, r)
}

// otherCaller is another identity, or another spelling of one.
func (g *Generator) otherCaller(random Random, id string) string {
	return pick(random, []string{
		pick(random, g.callers), "", id + "/", id + "x", strings.ToUpper(id), strings.Replace(id, "/sa/", "/gw/", 1),
		strings.Replace(id, "/ns/", "//ns/", 1), strings.Replace(id, g.trustDomain, "other.example", 1),
		strings.Replace(id, g.trustDomain, g.trustDomain+".evil", 1), "https://" + strings.TrimPrefix(id, "spiffe://"),
	})
}

func (g *Generator) somePath(random Random) string {
	if len(g.paths) > 0 && !rarely(random, 3) {
		return instance(random, pick(random, g.paths)) + pick(random, []string{"", "", "", "/", "/x", "x"})
	}
	return pick(random, []string{"/", "/a", "/b", "/a/b/c", "/s.S/Get", "/t.T/Get", "/a/x/b", "/x"})
}

// spoilHost sets the authority, most often to one of the port's own.
func (g *Generator) spoilHost(random Random, r *Request, at target) {
	if !rarely(random, 3) {
		return // the port's main one
	}
	host := pick(random, at.hosts)
	r.Authority = pick(random, []string{
		host, host, host, strings.ToUpper(host), host + ".", fmt.Sprintf("%s:%d", host, at.port.GetPort()), host + ".:1",
		host + ":", host + "..", "x" + host, host + ",x", "u@" + host, "a.b.mesh", at.service.Name, "*", "127.0.0.1", "[::1]:80",
	})
	// Envoy's parser judges an absolute URL itself, before any filter does: it drops
	// a user and refuses what is no host.
	if strings.HasPrefix(r.Path, "/") && !strings.ContainsAny(r.Authority, "@*,[") && !strings.HasSuffix(r.Authority, ":") && rarely(random, 6) {
		r.Target = "http://" + r.Authority + r.Path
	}
}

// spoilHeaders leaves some out, doubles some, and adds others: of the spec's and
// such as a framework, or a proxy, may take for something else.
func (g *Generator) spoilHeaders(random Random, r *Request) {
	if len(r.Headers) > 0 && rarely(random, 6) {
		r.Headers = r.Headers[1:]
	}
	if len(r.Headers) > 0 && rarely(random, 8) {
		r.Headers = append(r.Headers, pick(random, r.Headers))
	}
	if len(g.headers) > 0 && rarely(random, 4) {
		h := pick(random, g.headers)
		h.Value = pick(random, []string{h.Value, h.Value, h.Value + ",x", strings.ToUpper(h.Value), "", h.Value + "x"})
		r.Headers = append(r.Headers, h)
	}
	if rarely(random, 16) {
		r.Headers = append(r.Headers, pick(random, []policy.Header{
			{Name: "x-original-url", Value: "/admin"},
			{Name: "x-http-method-override", Value: "DELETE"},
			{Name: "x-envoy-original-path", Value: "/"},
			{Name: "x-forwarded-host", Value: "a.b.mesh"},
			{Name: "cookie", Value: "a=b"},
			{Name: "x", Value: "y"},
		}))
	}
}

// spoilToken changes the token, and writes the header that bears it.
func (g *Generator) spoilToken(random Random, r *Request) {
	if r.Token.State == policy.TokenNone && len(g.names) > 0 && rarely(random, 4) {
		name := pick(random, g.names)
		claims := map[string]any{"iss": g.providers[name].GetIssuer(), "sub": pick(random, []string{"u1", "u2", "x"})}
		r.Token = policy.Token{State: policy.TokenValid, Provider: name, Claims: claims}
	}
	if r.Token.State == policy.TokenValid {
		if rarely(random, 8) {
			r.Token = policy.Token{}
		} else if rarely(random, 5) {
			g.spoilClaims(random, r)
		}
	}
	if rarely(random, 16) {
		r.Token = policy.Token{State: policy.TokenInvalid}
	}
	switch r.Token.State {
	case policy.TokenNone:
		if rarely(random, 16) {
			r.Authorization = []string{pick(random, []string{"Basic dTpw", "Digest x", "Token " + BadToken, ""})}
		}
	case policy.TokenValid:
		r.Authorization = []string{"Bearer " + GoodToken}
		if rarely(random, 10) {
			r.Authorization, r.Token = pick(random, oddGood), policy.Token{State: policy.TokenInvalid}
		}
	case policy.TokenInvalid:
		r.Authorization = pick(random, [][]string{{"Bearer " + BadToken}, {"Bearer opaque"}, {"Bearer"}, {"Bearer "}, {"bearer " + BadToken}})
	}
}

// oddGood are spellings that bear a good token and are not exactly one: refused,
// since an application could see another user, or none.
var oddGood = [][]string{
	{"bearer " + GoodToken},
	{"BEARER " + GoodToken},
	{"Bearer  " + GoodToken},
	{"Bearer " + GoodToken + ","},
	{"Bearer " + GoodToken + ", Bearer " + GoodToken},
	{"Basic dTpw, Bearer " + GoodToken},
	{"Bearer " + GoodToken, "Bearer " + GoodToken},
	{"Bearer " + GoodToken, "Basic dTpw"},
	{"Bearer " + GoodToken, "Bearer " + BadToken},
	{"xBearer " + GoodToken},
}

// spoilClaims changes the type, or the value, of one claim: texts that look like
// another type's among them.
func (g *Generator) spoilClaims(random Random, r *Request) {
	claims := maps.Clone(r.Token.Claims)
	names := sortedKeys(claims)
	name := pick(random, names)
	if name == "iss" {
		return
	}
	was, _ := claims[name].(string)
	switch claims[name] = pick(random, []any{was + "x", []any{was}, `["` + was + `"]`, "-", "", true, "true", float64(5), "5", nil, map[string]any{"x": was}}); {
	case rarely(random, 6):
		delete(claims, name)
	case name == "sub" && rarely(random, 2):
		claims[name] = "u1"
	}
	if name == "auth_time" {
		claims[name] = pick(random, []any{"0", "x", float64(-1), float64(1 << 33), true, nil, 1.5})
	}
	r.Token.Claims = claims
}

// twist writes a path in another way that some servers take for the same, or
// takes it elsewhere.
func twist(random Random, path string) string {
	at := random(len(path) + 1)
	before, after := path[:at], path[at:]
	switch random(6) {
	case 0: // a character encoded, in either case, or twice
		if after != "" {
			return before + pick(random, []string{fmt.Sprintf("%%%02x", after[0]), fmt.Sprintf("%%%02X", after[0]), fmt.Sprintf("%%25%02x", after[0])}) + after[1:]
		}
		return path + "%"
	case 1:
		return before + pick(random, []string{"/", "//", "/./", "/../", "/x/../", "/..", "/.", "/%2e%2e/", "/.%2E/", "/..;/", "/..;x=1/", "/.;/", "/...", "/%2e"}) + after
	case 2:
		return before + pick(random, []string{"%2f", "%5C", "\\", ";", ";x=1", "%00", "%", "%zz", "%c0%af", "%e3%80%82", "%e4", "~", "!", "+", "*", "'", ":", "@", "|", "^", "{", "\"", "<", "[", "="}) + after
	case 3:
		return path + pick(random, []string{"?", "?/a", "?x=/../", "?%2f", "#", "#/a", "?x#y", ";", "/", "//", "\\", "."})
	case 4:
		return strings.ToUpper(before) + after
	default:
		return strings.Replace(path, "/", pick(random, []string{"//", "\\", "/./", "%2F", "/x/..//"}), 1)
	}
}
