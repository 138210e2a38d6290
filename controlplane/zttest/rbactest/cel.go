package rbactest

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	exprv1 "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/proto"
)

// attributes are the variables that Envoy gives an expression (its "attributes"),
// without their types, as its own parser of the wire form does.
var attributes = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("request", cel.DynType), cel.Variable("source", cel.DynType),
		cel.Variable("destination", cel.DynType), cel.Variable("connection", cel.DynType),
		cel.Variable("metadata", cel.DynType),
	)
})

// celMatcher: what errs does not match.
func (s *stream) celMatcher(m *matcherv3.CelMatcher) (bool, error) {
	var parsed proto.Message
	if e := m.GetExprMatch().GetCelExprParsed(); e != nil {
		parsed = e
	} else {
		return false, errors.New("an expression does not come parsed")
	}
	if p, ok := s.proxy.compiled[m].(cel.Program); ok {
		return s.eval(p), nil
	}
	// The two packages of the message are one on the wire.
	wire, err := proto.Marshal(parsed)
	if err != nil {
		return false, err
	}
	old := &exprv1.ParsedExpr{}
	if err := proto.Unmarshal(wire, old); err != nil {
		return false, err
	}
	return s.program(m, old.GetExpr())
}

// condition is that of a policy. What errs does not match.
func (s *stream) condition(e *exprv1.Expr) (bool, error) {
	if p, ok := s.proxy.compiled[e].(cel.Program); ok {
		return s.eval(p), nil
	}
	return s.program(e, e)
}

func (s *stream) program(key any, e *exprv1.Expr) (bool, error) {
	env, err := attributes()
	if err != nil {
		return false, err
	}
	p, err := env.Program(cel.ParsedExprToAst(&exprv1.ParsedExpr{Expr: e}))
	if err != nil {
		return false, fmt.Errorf("an expression: %w", err)
	}
	s.proxy.compiled[key] = p
	return s.eval(p), nil
}

func (s *stream) eval(p cel.Program) bool {
	out, _, err := p.Eval(s.vars())
	if err != nil {
		return false
	}
	b, ok := out.Value().(bool)
	return ok && b
}

func (s *stream) vars() map[string]any {
	request := map[string]any{"time": s.req.Time}
	if s.http {
		headers := map[string]string{}
		for _, h := range s.headers {
			headers[h.Name], _ = s.header(h.Name)
		}
		path := headers[":path"]
		urlPath, query, _ := strings.Cut(path, "?")
		request["path"], request["url_path"], request["query"] = path, urlPath, query
		request["method"], request["host"], request["headers"] = headers[":method"], headers[":authority"], headers
	}
	connection := map[string]any{"mtls": s.req.TLS && s.req.Peer != ""}
	if s.req.TLS && s.req.Peer != "" {
		connection["uri_san_peer_certificate"] = s.req.Peer
	}
	return map[string]any{
		"metadata": map[string]any{"filter_metadata": s.metadata},
		"request":  request, "connection": connection,
		"source": map[string]any{"address": s.req.Source.String()}, "destination": map[string]any{"port": int64(s.port)},
	}
}
