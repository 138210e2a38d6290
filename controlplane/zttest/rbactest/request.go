package rbactest

import (
	"net/netip"
	"strings"
	"time"
)

// Request is one request, or one tcp connection, as it reaches the proxy.
type Request struct {
	Peer   string     // the URI SAN of the client's verified certificate; empty: it has none
	TLS    bool       // false: plaintext
	Source netip.Addr // the address of the TCP peer
	Time   time.Time

	// Of HTTP. Path is the :path as sent, with its query; headers are those besides
	// pseudo headers, host, connection and upgrade, names in lower case, in order.
	Method, Path, Authority string
	Headers                 []Header
	Upgrade                 string // asks for an upgrade to this, or is an extended CONNECT for it

	// Tokens says what a token in compact form is; nil: nothing is a token.
	Tokens func(compact string) (Token, bool)
	// Refused is what an external authorizer answers, if it is asked.
	Refused bool
}

// Header is one header line.
type Header struct{ Name, Value string }

// Token is what a token says that its issuer's keys verify, in time and for the
// right audience.
type Token struct {
	Issuer string
	Claims map[string]any // as encoding/json decodes them
}

// Verdict is what comes of a request.
type Verdict struct {
	Allowed bool   // the application is asked, or the health check answers
	Status  int    // of the proxy's own answer; 0: none, or the connection ends
	Filter  string // what decided: the name of the filter, or one of the stages below
	Policy  string // the policy that it names; empty: none
	Cluster string // where it goes
	Shadow  string // what the shadow policy names; empty: there is none
}

// The stages of a proxy that decide besides its filters.
const (
	StageTLS     = "tls"     // the handshake, or no filter chain for the connection
	StageRequest = "request" // the connection manager refuses the request as malformed
	StageRoute   = "route"   // no virtual host or route
)

// stream is one request on its way through the filters.
type stream struct {
	proxy    *Proxy
	req      Request
	http     bool
	port     uint32
	headers  []Header                  // with pseudo headers; filters change them
	state    map[string]string         // filter state
	metadata map[string]map[string]any // dynamic metadata
	routed   string                    // the name of the route
	found    bool                      // there is a route
	upgrades []string                  // that the route takes
	shadow   string
	allowed  string // the last policy that let it pass
}

// header is the values of a header, joined as Envoy joins them.
func (s *stream) header(name string) (string, bool) {
	name = strings.ToLower(name)
	var values []string
	for _, h := range s.headers {
		if h.Name == name {
			values = append(values, h.Value)
		}
	}
	return strings.Join(values, ","), values != nil
}

func (s *stream) removeHeader(name string) {
	name = strings.ToLower(name)
	kept := s.headers[:0:0]
	for _, h := range s.headers {
		if h.Name != name {
			kept = append(kept, h)
		}
	}
	s.headers = kept
}

func (s *stream) addHeader(name, value string) {
	s.headers = append(s.headers, Header{strings.ToLower(name), value})
}
