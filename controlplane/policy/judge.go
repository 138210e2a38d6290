package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// failures is why the conditions do not hold for a request, each as "needs ..., the
// request has ..."; nil if they hold. provider is that of c.Users, nil when it is
// not declared. r.Path is canonical, with its query as it came, and r.Authority
// not empty.
func (c Conditions) failures(r *Request, provider *Provider) []string {
	var out []string
	fail := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if c.Users != nil {
		out = c.Users.failures(r, provider)
	}
	for _, want := range c.Headers {
		if got, present := r.header(want.Name); !present {
			fail("needs header %s in %s, the request has none", want.Name, bracketed(want.Values))
		} else if !slices.Contains(want.Values, got) {
			fail("needs header %s in %s, the request has %q", want.Name, bracketed(want.Values), got)
		}
	}
	switch {
	case c.activeAt(r.Time):
	case r.Time.IsZero():
		fail("depends on the time, the request has none")
	case !c.Until.IsZero() && !r.Time.Before(c.Until):
		fail("ended at %s, before %s", moment(c.Until), moment(r.Time))
	default:
		fail("is for %s, not %s", listed(texts(c.Windows, Window.String)), moment(r.Time))
	}
	if source := r.source(); c.Sources != nil && !slices.ContainsFunc(c.Sources, func(p netip.Prefix) bool { return p.Contains(source) }) {
		fail("needs a peer in %s, not %s", bracketed(texts(c.Sources, netip.Prefix.String)), source)
	}
	if c.CEL != nil {
		if holds, err := c.CEL.Eval(r.variables()); err != nil {
			fail("needs %s, which cannot be told", c.CELText)
		} else if !holds {
			fail("needs %s", c.CELText)
		}
	}
	return out
}

// header is the value of a header as matchers read it: the lines of one name are
// one value, joined by commas (RFC 9110, section 5.3). A header that Connection
// names goes no further than the proxy, and is absent.
func (r *Request) header(name string) (value string, present bool) {
	for _, h := range r.Headers {
		switch {
		case h.Name == "connection" && slices.ContainsFunc(strings.Split(h.Value, ","), func(s string) bool {
			return strings.EqualFold(strings.TrimSpace(s), name)
		}):
			return "", false
		case h.Name != name:
		case present:
			value += "," + h.Value
		default:
			value, present = h.Value, true
		}
	}
	return value, present
}

// source is the TCP peer. A proxy takes an IPv4 peer of an IPv6 socket for what it
// is, and compares no zones.
func (r *Request) source() netip.Addr {
	if !r.Source.IsValid() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return r.Source.Unmap().WithZone("")
}

// variables are what an expression speaks of (spec.CELVariables). The time is
// missing where the request has none, so what asks for it errs.
func (r *Request) variables() map[string]any {
	path, query, _ := strings.Cut(r.Path, "?")
	headers := map[string]string{}
	for _, h := range r.Headers {
		if value, present := r.header(h.Name); present {
			headers[h.Name] = value
		}
	}
	vars := map[string]any{
		"request.method":   r.Method,
		"request.url_path": path,
		"request.query":    query,
		"request.host":     bareHost(r.Authority),
		"request.headers":  headers,

		"connection.uri_san_peer_certificate": r.CallerID,
	}
	if !r.Time.IsZero() {
		vars["request.time"] = r.Time
	}
	return vars
}

// bareHost is an authority without its port and one trailing dot, which the proxy
// cuts off.
func bareHost(authority string) string {
	if i := strings.LastIndexByte(authority, ':'); i >= 0 {
		if port := authority[i+1:]; port != "" && strings.Trim(port, "0123456789") == "" {
			authority = authority[:i]
		}
	}
	return strings.TrimSuffix(authority, ".")
}

// failures is why the user of a request, if there is one, is none of u.
func (u *Users) failures(r *Request, provider *Provider) []string {
	user := "needs a user of " + u.Provider
	switch {
	case r.Token.State != TokenValid:
		return []string{user + ", the request bears none"}
	case r.Token.Provider != u.Provider:
		return []string{fmt.Sprintf("%s, the token is of %s", user, r.Token.Provider)}
	case provider == nil || provider.Name != u.Provider:
		return []string{user + ", which is not declared"}
	}
	var out []string
	claim := func(c Claim, values []string) {
		if values == nil {
			return
		}
		got, ok := claimed(r.Token.Claims, c)
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s with %s in %s, the token has none of this kind", user, c.Name, bracketed(values)))
		case !slices.ContainsFunc(got, func(s string) bool { return slices.Contains(values, s) }):
			out = append(out, fmt.Sprintf("%s with %s in %s, the token has %s", user, c.Name, bracketed(values), bracketed(got)))
		}
	}
	claim(Claim{"sub", []string{"sub"}, StringClaim}, u.Subjects)
	for _, want := range u.Claims {
		declared, ok := provider.Claims[want.Name]
		if !ok {
			out = append(out, fmt.Sprintf("%s with %s, which it does not declare", user, want.Name))
			continue
		}
		claim(declared, want.Values)
	}
	claim(Claim{"acr", []string{"acr"}, StringClaim}, u.ACR)
	claim(Claim{"amr", []string{"amr"}, ListClaim}, u.AMR)
	if u.MaxAge > 0 {
		at, ok := authTime(r.Token.Claims)
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%s who logged in within %s, the token does not say when", user, u.MaxAge))
		case r.Time.IsZero() || r.Time.Add(-u.MaxAge).After(at):
			out = append(out, fmt.Sprintf("%s who logged in within %s, not at %s", user, u.MaxAge, moment(at)))
		}
	}
	return out
}

// claimed is the values that a token has for a claim; false when it has none, or
// one of another kind. Items of a list that are no strings are none.
func claimed(claims map[string]any, c Claim) (values []string, ok bool) {
	var v any = claims
	for _, name := range c.Path {
		object, is := v.(map[string]any)
		if !is {
			return nil, false
		}
		v = object[name]
	}
	switch v := v.(type) {
	case string:
		return []string{v}, c.Kind == StringClaim
	case bool:
		return []string{strconv.FormatBool(v)}, c.Kind == BooleanClaim
	case []any:
		for _, item := range v {
			if s, is := item.(string); is {
				values = append(values, s)
			}
		}
		return values, c.Kind == ListClaim
	}
	return nil, false
}

// The seconds since 1970 between which a timestamp lies (google.protobuf.Timestamp).
const (
	firstSecond = -62135596800 // 0001-01-01
	lastSecond  = 253402300799 // 9999-12-31
)

// authTime is auth_time (OpenID Connect Core, section 2), cut to the second. A
// token from the future is young: its issuer's clock is ahead.
func authTime(claims map[string]any) (time.Time, bool) {
	var seconds float64
	switch v := claims["auth_time"].(type) {
	case float64:
		seconds = v
	case json.Number:
		var err error
		if seconds, err = v.Float64(); err != nil {
			return time.Time{}, false
		}
	default:
		return time.Time{}, false
	}
	if !(seconds >= firstSecond && seconds <= lastSecond) {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}

func bracketed(values []string) string { return "[" + listed(values) + "]" }

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }
