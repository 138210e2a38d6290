package script

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// User is somebody whose token requests bear, as the file "users" declares them by
// name:
//
//	ada:
//	  provider: corp
//	  sub: ada
//	  acr: gold
//	  amr: [pwd, otp]
//	  authAge: 5m                           # auth_time is that long before the request
//	  claims: {groups: [sre], org: {unit: payments}}   # as they stand in the token
type User struct {
	Provider string         `yaml:"provider"` // an IdentityProvider of the script's spec
	Sub      string         `yaml:"sub"`
	ACR      string         `yaml:"acr"`
	AMR      []string       `yaml:"amr"`
	AuthAge  time.Duration  `yaml:"authAge"` // 0: the token has no auth_time
	Claims   map[string]any `yaml:"claims"`

	// Of the provider as the spec declares it.
	Issuer   string `yaml:"-"`
	Audience string `yaml:"-"`
}

// What may be wrong with the token of a line. All but the first two claim to be
// bearer tokens and do not verify.
const (
	TokenNone          = "none"           // there is no Authorization
	TokenBasic         = "basic"          // it is no bearer token, and so no user
	TokenInvalid       = "invalid"        // its signature is somebody else's
	TokenExpired       = "expired"        // its end is beyond the clock skew
	TokenOpaque        = "opaque"         // it is no JWT
	TokenTwo           = "two"            // there are two Authorization headers, each with a valid one
	TokenComma         = "comma"          // there are two valid ones in one header
	TokenOtherAudience = "other-audience" //
	TokenOtherIssuer   = "other-issuer"   // of nobody whom the spec declares
	TokenUnsigned      = "unsigned"       // alg is none
)

// TokenKinds are the words that stand after "token".
func TokenKinds() []string {
	return []string{
		TokenNone, TokenBasic, TokenInvalid, TokenExpired, TokenOpaque, TokenTwo, TokenComma,
		TokenOtherAudience, TokenOtherIssuer, TokenUnsigned,
	}
}

// Token is the claims of a token of u for a request that begins at now, as
// encoding/json decodes them; the times of the token itself are for whoever signs
// it.
func (u User) Token(now time.Time) map[string]any {
	claims := map[string]any{}
	maps.Copy(claims, u.Claims)
	if u.Issuer != "" {
		claims["iss"], claims["aud"] = u.Issuer, u.Audience
	}
	if u.Sub != "" {
		claims["sub"] = u.Sub
	}
	if u.ACR != "" {
		claims["acr"] = u.ACR
	}
	if u.AMR != nil {
		list := make([]any, len(u.AMR))
		for i, s := range u.AMR {
			list[i] = s
		}
		claims["amr"] = list
	}
	if u.AuthAge != 0 {
		claims["auth_time"] = float64(now.Add(-u.AuthAge).Unix())
	}
	return claims
}

// issued fills in what the providers in docs say.
func issued(users map[string]User, docs []*spec.Document) {
	for name, u := range users {
		for _, d := range docs {
			if p := d.GetIdentityProvider(); p != nil && d.Ref().Name == u.Provider {
				u.Issuer, u.Audience = p.GetIssuer(), p.GetAudiences()[0]
				users[name] = u
			}
		}
	}
}

func parseUsers(data []byte) (map[string]User, error) {
	users := map[string]User{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&users); err != nil {
		return nil, err
	}
	for name, u := range users {
		if u.Provider == "" {
			return nil, fmt.Errorf("%s has no provider", name)
		}
		text, err := json.Marshal(u.Claims)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		u.Claims = nil
		if err := json.Unmarshal(text, &u.Claims); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		users[name] = u
	}
	return users, nil
}
