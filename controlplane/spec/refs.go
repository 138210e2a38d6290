package spec

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// Ref names a workload, service or grant in its namespace.
type Ref struct{ Namespace, Name string }

// String is "namespace/name".
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Compare orders by namespace, then name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(cmp.Compare(r.Namespace, o.Namespace), cmp.Compare(r.Name, o.Name))
}

// ParseRef reads "name", which is of defaultNamespace, or "namespace/name". With
// an empty defaultNamespace only the second is allowed.
func ParseRef(s, defaultNamespace string) (Ref, error) {
	namespace, name, qualified := strings.Cut(s, "/")
	if !qualified {
		namespace, name = defaultNamespace, s
	}
	if namespace == "" && !qualified && isLabel(name) {
		return Ref{}, fmt.Errorf("%s needs a namespace: namespace/%s", show(s), name)
	}
	if !isLabel(namespace) || !isLabel(name) {
		return Ref{}, fmt.Errorf("%s is not a name or namespace/name of DNS labels", show(s))
	}
	return Ref{namespace, name}, nil
}

// ParseServicePort reads "service" or "service:port-name", where service is a
// reference as in ParseRef. port is empty when none is named.
func ParseServicePort(s, defaultNamespace string) (service Ref, port string, err error) {
	name, port, named := strings.Cut(s, ":")
	if named && !isLabel(port) {
		return Ref{}, "", fmt.Errorf("%s: the port after \":\" is not a DNS label", show(s))
	}
	service, err = ParseRef(name, defaultNamespace)
	return service, port, err
}

// Request is one request as a person writes it, in Test.request and `ztctl can`.
type Request struct {
	Service Ref
	// Port is the port's name; empty when the request names none, which is
	// enough where the service has one port.
	Port string
	// Method and Path are what arrives, the path with its query, not yet
	// normalized. gRPC is POST /pkg.Service/Method. Empty for tcp.
	Method, Path string
	TCP          bool
	// GRPC tells that the request was written as a gRPC call.
	GRPC bool
	// Upgrade is "websocket" for a request that asks for that upgrade, else empty.
	Upgrade string
}

// websocket is the one upgrade that there is.
const websocket = "websocket"

// ParseRequest reads one of
//
//	METHOD service[:port] /path
//	WS service[:port] /path
//	GRPC service[:port] pkg.Service/Method
//	TCP service[:port]
//
// where service is a reference as in ParseRef. WS is a GET that asks for an
// upgrade to a websocket.
func ParseRequest(s, namespace string) (Request, error) {
	words := strings.Split(s, " ")
	want := 3
	if words[0] == "TCP" {
		want = 2
	}
	if len(words) != want {
		return Request{}, fmt.Errorf("%s has %d words separated by single spaces, not %d", show(s), len(words), want)
	}
	service, port, err := ParseServicePort(words[1], namespace)
	if err != nil {
		return Request{}, err
	}
	r := Request{Service: service, Port: port}
	switch words[0] {
	case "TCP":
		r.TCP = true
	case "GRPC":
		if !isGRPCMethod(words[2]) || strings.HasSuffix(words[2], "/*") {
			return Request{}, fmt.Errorf("%s is not pkg.Service/Method", show(words[2]))
		}
		r.GRPC, r.Method, r.Path = true, "POST", "/"+words[2]
	default:
		if !isHTTPMethod(words[0]) {
			return Request{}, fmt.Errorf("%s is not an upper-case HTTP method, WS, GRPC or TCP", show(words[0]))
		}
		if !strings.HasPrefix(words[2], "/") {
			return Request{}, fmt.Errorf("the path %s does not begin with \"/\"", show(words[2]))
		}
		if badText(words[2]) >= 0 || strings.ContainsAny(words[2], "\t\n") {
			return Request{}, errors.New("the path has control characters")
		}
		r.Method, r.Path = words[0], words[2]
		if words[0] == "WS" {
			r.Method, r.Upgrade = "GET", websocket
		}
	}
	return r, nil
}

// isLabel tells whether s is a DNS label (RFC 1123, section 2.1): at most 63 of
// a-z, 0-9 and inner hyphens.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// isHTTPMethod tells whether s is a method of capital letters and "-", beginning
// with a letter, as every registered one is (RFC 9110, section 16.1). Methods are
// case-sensitive (section 9.1), so "get" is a mistake.
func isHTTPMethod(s string) bool {
	if s == "" || len(s) > 32 || s[0] < 'A' || s[0] > 'Z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// isGRPCMethod tells whether s is pkg.Service/Method or pkg.Service/*.
func isGRPCMethod(s string) bool {
	service, method, ok := strings.Cut(s, "/")
	if !ok || len(s) > 512 || (method != "*" && !isIdentifier(method)) {
		return false
	}
	for part := range strings.SplitSeq(service, ".") {
		if !isIdentifier(part) {
			return false
		}
	}
	return true
}

func isIdentifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
