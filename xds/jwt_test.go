package xds_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/xds"
)

// signer is an identity provider's key.
type signer struct {
	key *rsa.PrivateKey
	kid string
}

func newSigner(t *testing.T, kid string) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	return signer{key, kid}
}

func (s signer) jwks() string {
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":%q,"n":%q,"e":%q}]}`,
		s.kid, b64(s.key.N.Bytes()), b64(big.NewInt(int64(s.key.E)).Bytes()))
}

// claims of a token that orders accepts of provider one.
func claims(edit ...any) map[string]any {
	c := map[string]any{"iss": "https://one.example", "aud": "orders", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for i := 0; i < len(edit); i += 2 {
		c[edit[i].(string)] = edit[i+1]
		if edit[i+1] == nil {
			delete(c, edit[i].(string))
		}
	}
	return c
}

// token signs claims, or a payload that is given as it is. Fields of header
// replace those of the usual one.
func (s signer) token(t *testing.T, payload any, header map[string]any) string {
	t.Helper()
	h := map[string]any{"alg": "RS256", "typ": "JWT", "kid": s.kid}
	for k, v := range header {
		h[k] = v
	}
	text, ok := payload.(string)
	if !ok {
		b, err := json.Marshal(payload)
		check(t, err)
		text = string(b)
	}
	hb, err := json.Marshal(h)
	check(t, err)
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64(hb) + "." + b64([]byte(text))
	sum := sha256.Sum256([]byte(signed))
	switch h["alg"] {
	case "none":
		return signed + "."
	case "HS256": // the public key as a shared secret
		der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
		check(t, err)
		mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		mac.Write([]byte(signed))
		return signed + "." + b64(mac.Sum(nil))
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	check(t, err)
	return signed + "." + b64(sig)
}

// web is a server outside the mesh, with TLS by a CA of its own.
type web struct {
	addr netip.AddrPort
	ca   string // PEM
}

func newWeb(t *testing.T, host string, h http.Handler) web {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "outside"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	check(t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, key)
	check(t, err)
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // refused handshakes are wanted
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return web{
		addr: s.Listener.Addr().(*net.TCPAddr).AddrPort(),
		ca:   string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root})),
	}
}

func (w web) endpoints(cluster string) *xds.Resource {
	return xds.Endpoints(cluster, []xds.Endpoint{{Address: w.addr.Addr().String(), Port: uint32(w.addr.Port())}})
}

// newEcho is an application that answers with its request's headers.
func newEcho(t *testing.T) (target string) {
	t.Helper()
	s := httptest.NewServer(echo())
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func echo() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s host=%s\n", r.Method, r.RequestURI, r.Host)
		_ = r.Header.Write(w)
	})
}

// header reads what the application was sent of a header.
func (a answer) sent(name string) string {
	for line := range strings.Lines(a.body) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

// tokenConfig judges tokens of two providers.
func tokenConfig(target string, one, two xds.Provider) *xds.Config {
	c := ordersConfig(target, "127.0.0.1:1")
	c.Inbound = c.Inbound[:1]
	c.Inbound[0].Rules = []xds.Rule{{Grant: "shop/all", Callers: xds.Callers{Any: true}}}
	c.Providers = []xds.Provider{one, two}
	c.Strip = []string{"x-user"}
	return c
}

func provider(name, keys string) xds.Provider {
	return xds.Provider{
		Name: name, Issuer: "https://" + name + ".example", Audiences: []string{"orders"}, Inline: keys,
		ClockSkew: 30 * time.Second, Enforced: true, Headers: []xds.ClaimHeader{{Header: "x-user", Path: []string{"sub"}}},
	}
}

// TestTokens is what passes without a user, with one, and not at all. ISTIO-2021-001
// is the unknown issuer; CVE-2016-9122, CVE-2025-30204 and CVE-2024-28180 are tokens
// that are forged, malformed or huge.
func TestTokens(t *testing.T) {
	one, two, other := newSigner(t, "one"), newSigner(t, "two"), newSigner(t, "one")
	idp := newWeb(t, "two.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "two.example" || r.URL.Path != "/keys" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, two.jwks())
	}))
	second := provider("two", "")
	second.Inline, second.URI, second.CA, second.KeepToken = "", "https://two.example/keys", idp.ca, true
	p := newPKI(t)
	c := newControl(t, p)
	c.set("i-shop-orders", idp.endpoints(xds.JWKSCluster("two")))
	orders := newProxy(t, p, c, tokenConfig(newEcho(t), provider("one", one.jwks()), second))
	good := one.token(t, claims(), nil)
	bob := two.token(t, claims("iss", "https://two.example", "sub", "bob"), nil)
	svid := p.svid(t, id("shop/web"))
	request := func(path string, headers ...string) answer {
		return orders.raw(8080, svid, "GET "+path+" HTTP/1.1\r\nHost: "+ordersHost+"\r\n"+strings.Join(append(headers, "\r\n"), "\r\n"))
	}
	orders.until(func() bool { return request("/", "Authorization: Bearer "+bob).status == 200 })

	const nobody, denied = "", "denied"
	auth := func(values ...string) (out []string) {
		for _, v := range values {
			out = append(out, "Authorization: "+v)
		}
		return out
	}
	bearer := func(payload any, header map[string]any) []string {
		return auth("Bearer " + one.token(t, payload, header))
	}
	for name, tt := range map[string]struct {
		headers []string
		want    string // the user
	}{
		"no token":                   {nil, nobody},
		"basic":                      {auth("Basic YTpi"), nobody},
		"empty":                      {auth(""), nobody},
		"a cookie":                   {[]string{"Cookie: access_token=" + good}, nobody},
		"another header":             {[]string{"Proxy-Authorization: Bearer " + good}, nobody},
		"forged claim":               {[]string{"X-User: admin"}, nobody},
		"forged claim, twice":        {[]string{"X-User: admin", "x-USER: root"}, nobody},
		"taken away by Connection":   {append(auth("Bearer "+good), "Connection: authorization"), nobody},
		"of one":                     {auth("Bearer " + good), "alice"},
		"of two":                     {auth("Bearer " + bob), "bob"},
		"of two, forged claim":       {append(auth("Bearer "+bob), "X-User: admin"), "bob"},
		"space after it":             {auth("Bearer " + good + "  "), "alice"},
		"no kid":                     {bearer(claims(), map[string]any{"kid": ""}), "alice"},
		"lower case":                 {auth("bearer " + good), denied},
		"upper case":                 {auth("BEARER " + good), denied},
		"a tab":                      {auth("Bearer\t" + good), denied},
		"two spaces":                 {auth("Bearer  " + good), denied},
		"no token in it":             {auth("Bearer"), denied},
		"a longer scheme":            {auth("BearerX " + good), denied},
		"more of RFC 6750 after it":  {auth("Bearer " + good + "~" + bob), denied},
		"padding":                    {auth("Bearer " + good + "=="), denied},
		"something after it":         {auth("Bearer " + good + " x"), denied},
		"opaque":                     {auth("Bearer abc"), denied},
		"three opaque parts":         {auth("Bearer a.b.c"), denied},
		"encrypted":                  {auth("Bearer a.b.c.d.e"), denied},
		"two headers":                {auth("Bearer "+good, "Bearer "+bob), denied},
		"twice the same":             {auth("Bearer "+good, "Bearer "+good), denied},
		"a good and a bad one":       {auth("Bearer "+good, "Bearer x"), denied},
		"basic, then bearer":         {auth("Basic YTpi", "Bearer "+good), denied},
		"bearer, then basic":         {auth("Bearer "+good, "Basic YTpi"), denied},
		"comma-joined":               {auth("Bearer " + good + ", Bearer " + bob), denied},
		"basic, comma":               {auth("Basic x, Bearer " + good), denied},
		"within basic":               {auth("Basic Bearer " + good), denied},
		"alg none":                   {bearer(claims(), map[string]any{"alg": "none"}), denied},
		"HS256 by the public key":    {bearer(claims(), map[string]any{"alg": "HS256"}), denied},
		"unknown kid":                {bearer(claims(), map[string]any{"kid": "x"}), denied},
		"another's key":              {auth("Bearer " + other.token(t, claims(), nil)), denied},
		"two's issuer by one's key":  {bearer(claims("iss", "https://two.example"), nil), denied},
		"unknown issuer":             {bearer(claims("iss", "https://evil.example"), nil), denied},
		"no issuer":                  {bearer(claims("iss", nil), nil), denied},
		"no expiry":                  {bearer(claims("exp", nil), nil), denied},
		"expired":                    {bearer(claims("exp", time.Now().Add(-time.Minute).Unix()), nil), denied},
		"expired, within the skew":   {bearer(claims("exp", time.Now().Unix()-1), nil), "alice"},
		"expiry as text":             {bearer(claims("exp", "9999999999"), nil), denied},
		"expiry below zero":          {bearer(claims("exp", -1), nil), denied},
		"not yet valid":              {bearer(claims("nbf", time.Now().Add(time.Hour).Unix()), nil), denied},
		"another audience":           {bearer(claims("aud", "payments"), nil), denied},
		"no audience":                {bearer(claims("aud", nil), nil), denied},
		"one of its audiences":       {bearer(claims("aud", []string{"x", "orders"}), nil), "alice"},
		"an object as subject":       {bearer(claims("sub", map[string]any{"a": 1}), nil), denied},
		"a line break in a claim":    {bearer(claims("sub", "a\r\nX-Admin: 1"), nil), denied},
		"a claim twice":              {bearer(`{"iss":"https://one.example","aud":"orders","exp":9999999999,"sub":"alice","sub":"admin"}`, nil), denied},
		"a signature cut":            {auth("Bearer " + good[:len(good)-8]), denied},
		"bigger than all headers":    {bearer(claims("x", strings.Repeat("a", 60<<10)), nil), denied},
		"big":                        {bearer(claims("x", strings.Repeat("a", 20<<10)), nil), "alice"},
		"critical header, not known": {bearer(claims(), map[string]any{"crit": []string{"x"}, "x": 1}), "alice"}, // Envoy ignores crit: only an issuer can set it
	} {
		t.Run(name, func(t *testing.T) {
			got := request("/", tt.headers...)
			if tt.want == denied {
				if got.status < 400 {
					t.Errorf("passed as %q: %+v", got.sent("X-User"), got)
				}
				return
			}
			if got.status != 200 || got.sent("X-User") != tt.want || strings.Contains(got.body, "X-Admin") {
				t.Errorf("want user %q, got %+v", tt.want, got)
			}
			keeps := tt.want == "bob" || tt.want == nobody && strings.HasPrefix(got.sent("Authorization"), "Basic")
			if (got.sent("Authorization") != "") != keeps {
				t.Errorf("the application was sent Authorization %.40q", got.sent("Authorization"))
			}
		})
	}
	if got := request("/?access_token=" + good); got.status != 200 || got.sent("X-User") != nobody {
		t.Errorf("in the query: %+v", got)
	}
}

// TestKeysAway is CVE-2026-31837, and CVE-2022-29153 of redirects: a provider whose keys cannot be fetched, or come from somebody
// else, denies its own tokens, and those only. No key is ever assumed.
func TestKeysAway(t *testing.T) {
	one, two := newSigner(t, "one"), newSigner(t, "two")
	serve := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, two.jwks()) })
	good, impostor, wrong := newWeb(t, "two.example", serve), newWeb(t, "two.example", serve), newWeb(t, "evil.example", serve)
	redirect := newWeb(t, "two.example", http.RedirectHandler("https://"+good.addr.String()+"/keys", http.StatusFound))
	for name, tt := range map[string]struct {
		server web
		ca     string
		port   uint16
	}{
		"nobody listens": {good, good.ca, 1},
		"another CA":     {impostor, good.ca, impostor.addr.Port()},
		"public roots":   {good, "", good.addr.Port()},
		"another name":   {wrong, wrong.ca, wrong.addr.Port()},
		"a redirect":     {redirect, redirect.ca, redirect.addr.Port()},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			c := newControl(t, p)
			away := provider("two", "")
			away.Inline, away.URI, away.CA = "", "https://two.example/keys", tt.ca
			tt.server.addr = netip.AddrPortFrom(tt.server.addr.Addr(), tt.port)
			c.set("i-shop-orders", tt.server.endpoints(xds.JWKSCluster("two")))
			orders := newProxy(t, p, c, tokenConfig(newEcho(t), provider("one", one.jwks()), away))
			svid := p.svid(t, id("shop/web"))
			ask := func(token string) answer {
				return orders.raw(8080, svid, "GET / HTTP/1.1\r\nHost: "+ordersHost+"\r\n"+token+"\r\n")
			}
			for range 2 {
				if got := ask("Authorization: Bearer " + two.token(t, claims("iss", "https://two.example"), nil) + "\r\n"); got.status != 401 {
					t.Errorf("its token: %+v", got)
				}
			}
			if got := ask("Authorization: Bearer " + one.token(t, claims(), nil) + "\r\n"); got.status != 200 || got.sent("X-User") != "alice" {
				t.Errorf("another's token: %+v", got)
			}
			if got := ask(""); got.status != 200 {
				t.Errorf("no token: %+v", got)
			}
		})
	}
}

// TestShadowProvider: a provider that only shadow rules name rejects nothing and
// changes nothing of what the application receives.
func TestShadowProvider(t *testing.T) {
	one := newSigner(t, "one")
	shadow := provider("one", one.jwks())
	shadow.Enforced = false
	conf := tokenConfig(newEcho(t), shadow, xds.Provider{})
	conf.Providers = conf.Providers[:1]
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), conf)
	svid := p.svid(t, id("shop/web"))
	for _, token := range []string{"Bearer " + one.token(t, claims(), nil), "Bearer x", "bearer x", "Bearer a, Bearer b"} {
		got := orders.raw(8080, svid, "GET / HTTP/1.1\r\nHost: "+ordersHost+"\r\nX-User: admin\r\nAuthorization: "+token+"\r\n\r\n")
		if got.status != 200 || got.sent("Authorization") != token || got.sent("X-User") != "" {
			t.Errorf("%.20s: %+v", token, got)
		}
	}
}

// TestNoTokensYet: while what verifies tokens is missing, nothing passes.
func TestNoTokensYet(t *testing.T) {
	one := newSigner(t, "one")
	conf := tokenConfig(newEcho(t), provider("one", one.jwks()), xds.Provider{})
	conf.Providers = conf.Providers[:1]
	p := newPKI(t)
	c := newControl(t, p)
	orders := newProxy(t, p, c, conf, xds.TokensName("shop/orders", "http"))
	svid := p.svid(t, id("shop/web"))
	ask := func(headers string) int {
		return orders.raw(8080, svid, "GET / HTTP/1.1\r\nHost: "+ordersHost+"\r\n"+headers+"\r\n").status
	}
	token := "Authorization: Bearer " + one.token(t, claims(), nil) + "\r\n"
	for _, headers := range []string{"", token} {
		if got := ask(headers); got != 403 {
			t.Errorf("%.30q: %d", headers, got)
		}
	}
	orders.apply(without(orders.build(conf), nil)...)
	for _, headers := range []string{"", token} {
		if got := ask(headers); got != 200 {
			t.Errorf("%.30q: %d", headers, got)
		}
	}
}
