package judge

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/zttest/reqgen"
	"github.com/ztmesh/ztmesh/controlplane/zttest/script"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

// authorization is the lines of that header, with real tokens in the place of those
// that reqgen names.
func (s *Spec) authorization(q *Question, number uint64) []string {
	lines := make([]string, len(q.Authorization))
	for i, l := range q.Authorization {
		if strings.Contains(l, reqgen.GoodToken) {
			l = strings.ReplaceAll(l, reqgen.GoodToken, s.good(q.Token))
		}
		if strings.Contains(l, reqgen.BadToken) {
			kinds := []string{script.TokenInvalid, script.TokenExpired, script.TokenOtherAudience, script.TokenOtherIssuer, script.TokenUnsigned}
			l = strings.ReplaceAll(l, reqgen.BadToken, s.bad(kinds[number%uint64(len(kinds))]))
		}
		lines[i] = l
	}
	return lines
}

// good is a token that verifies: of t, or of some provider if t does not say.
func (s *Spec) good(t policy.Token) string {
	if t.State != policy.TokenValid {
		t = policy.Token{Provider: s.provider(), Claims: map[string]any{"sub": "u1"}}
	}
	return specgen.Token(t.Provider, s.claims(t.Provider, t.Claims))
}

// claims adds what a token must say to verify.
func (s *Spec) claims(provider string, claims map[string]any) map[string]any {
	out := map[string]any{}
	if p, ok := s.Index.Provider(provider); ok {
		out["iss"], out["aud"] = p.Issuer, p.Audiences[0]
	}
	for name, v := range claims {
		if out[name] = v; v == nil {
			out[name] = json.RawMessage("null")
		}
	}
	return out
}

// provider is some provider of the spec.
func (s *Spec) provider() string {
	for _, d := range s.Docs {
		if d.GetIdentityProvider() != nil {
			return d.Ref().Name
		}
	}
	return "none"
}

// bad is a token with one fault.
func (s *Spec) bad(kind string) string {
	provider := s.provider()
	claims := s.claims(provider, map[string]any{"sub": "u1"})
	switch kind {
	case script.TokenExpired:
		claims["exp"] = time.Now().Add(-time.Hour).Unix()
	case script.TokenOtherAudience:
		claims["aud"] = "somebody else"
	case script.TokenOtherIssuer:
		claims["iss"] = "https://nobody.invalid"
	case script.TokenInvalid:
		return specgen.Token("nobody", claims)
	case script.TokenUnsigned:
		payload := strings.Split(specgen.Token(provider, claims), ".")[1]
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + "."
	case script.TokenOpaque:
		return "opaque"
	}
	return specgen.Token(provider, claims)
}

// scripted is the lines of the header that a script's words stand for.
func (s *Spec) scripted(l script.Line) []string {
	good, bad := "Bearer "+reqgen.GoodToken, "Bearer "+reqgen.BadToken
	switch l.Token {
	case "":
		if l.User != "" {
			return []string{good}
		}
		return nil
	case script.TokenNone:
		return nil
	case script.TokenBasic:
		return []string{"Basic dTpw"}
	case script.TokenTwo:
		return []string{good, good}
	case script.TokenComma:
		return []string{good + ", " + good}
	case script.TokenOpaque:
		return []string{"Bearer opaque"}
	case script.TokenInvalid, script.TokenExpired, script.TokenOtherAudience, script.TokenOtherIssuer, script.TokenUnsigned:
		return []string{"Bearer " + s.bad(l.Token)}
	}
	return []string{bad}
}
