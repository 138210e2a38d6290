package xds_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/ztmesh/ztmesh/xds"
)

// authorizer answers as it is told to and remembers what it was asked.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	server *grpc.Server

	mu     sync.Mutex // guards what follows
	answer *authv3.CheckResponse
	asked  []*authv3.AttributeContext
	hang   bool
}

func newAuthorizer(t *testing.T) (a *authorizer, target string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	a = &authorizer{server: grpc.NewServer()}
	authv3.RegisterAuthorizationServer(a.server, a)
	done := make(chan struct{})
	go func() { defer close(done); _ = a.server.Serve(l) }()
	t.Cleanup(func() { a.server.Stop(); <-done })
	return a, l.Addr().String()
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	a.asked = append(a.asked, r.GetAttributes())
	answer, hang := a.answer, a.hang
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return answer, nil
}

// set says how to answer, and forgets what was asked.
func (a *authorizer) set(answer *authv3.CheckResponse, hang bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer, a.hang, a.asked = answer, hang, nil
}

func (a *authorizer) questions() []*authv3.AttributeContext {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// yes is an OK that sets headers and removes one.
func yes(remove string, headers ...string) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{}
	if remove != "" {
		ok.HeadersToRemove = []string{remove}
	}
	for i := 0; i < len(headers); i += 2 {
		ok.Headers = append(ok.Headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: headers[i], Value: headers[i+1]},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}
}

func no() *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &status.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		}},
	}
}

// TestAuthorizer: it can only narrow, and whatever it does but say yes is a no.
func TestAuthorizer(t *testing.T) {
	a, target := newAuthorizer(t)
	conf := tokenConfig(newEcho(t), xds.Provider{}, xds.Provider{})
	conf.Providers = nil
	conf.Inbound[0].Rules[0].Methods = []string{"GET", "POST"}
	conf.Authorizer = &xds.Authorizer{Target: target, Timeout: time.Second, MaxBodyBytes: 16, Headers: []string{"x-decided", "x-why"}}
	p := newPKI(t)
	orders := newProxy(t, p, newControl(t, p), conf)
	svid := p.svid(t, id("shop/web"))
	ask := func(request string) answer { return orders.raw(8080, svid, request) }
	request := get("GET", ordersHost, "/a")

	for name, tt := range map[string]struct {
		answer *authv3.CheckResponse
		allow  bool
	}{
		"yes":                        {yes(""), true},
		"yes, with its headers":      {yes("", "x-decided", "by me", "x-why", "so"), true},
		"yes, removing its own":      {yes("x-decided"), true},
		"no":                         {no(), false},
		"nothing":                    {&authv3.CheckResponse{}, true}, // no status is status 0, OK
		"no, saying OK in HTTP":      {&authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: yes("").HttpResponse}, false},
		"another path":               {yes("", ":path", "/admin"), false},
		"another method":             {yes("", ":method", "DELETE"), false},
		"another authority":          {yes("", ":authority", "other.shop.mesh"), false},
		"another scheme":             {yes("", ":scheme", "http"), false},
		"another host":               {yes("", "host", "other.shop.mesh"), false},
		"a header not declared":      {yes("", "x-other", "1"), false},
		"one that only begins so":    {yes("", "x-decided-too", "1"), false},
		"one of the proxy":           {yes("", "x-envoy-original-path", "/admin"), false},
		"the identity":               {yes("", "x-forwarded-client-cert", "URI="+id("shop/admin")), false},
		"a line break in its header": {yes("", "x-decided", "a\r\nX-Admin: 1"), false},
		"removing what it may not":   {yes("x-forwarded-client-cert"), false},
		"removing the path":          {yes(":path"), false},
	} {
		a.set(tt.answer, false)
		got := ask(request)
		if (got.status == 200) != tt.allow || !tt.allow && got.status < 400 {
			t.Errorf("%s: %+v", name, got)
		}
		if strings.Contains(got.body, "X-Admin") || tt.allow && !strings.HasPrefix(got.body, "GET /a host="+ordersHost) {
			t.Errorf("%s: the application got %q", name, got.body)
		}
		if !tt.allow && got.status == 403 && !strings.HasPrefix(got.reason, "ext_authz") {
			t.Errorf("%s: the reason is %q", name, got.reason)
		}
	}

	// What it is told, and that it is asked about nothing that a rule has not allowed.
	a.set(yes("", "x-decided", "by me"), false)
	if got := ask(get("DELETE", ordersHost, "/a")); got.status != 403 || len(a.questions()) > 0 {
		t.Errorf("without a grant: %+v, asked %d times", got, len(a.questions()))
	}
	post := "POST /a HTTP/1.1\r\nHost: " + ordersHost + "\r\nX-Decided: forged\r\nContent-Length: 5\r\n\r\nhello"
	if got := ask(post); got.status != 200 || got.sent("X-Decided") != "by me" {
		t.Errorf("with a body: %+v", got)
	}
	asked := a.questions()
	if len(asked) != 1 {
		t.Fatalf("asked %d times", len(asked))
	}
	if q := asked[0]; q.GetSource().GetPrincipal() != id("shop/web") || q.GetDestination().GetPrincipal() != id("shop/orders") ||
		string(q.GetRequest().GetHttp().GetRawBody()) != "hello" {
		t.Errorf("asked %v", q)
	}
	a.set(yes(""), false)
	long := "POST /a HTTP/1.1\r\nHost: " + ordersHost + "\r\nContent-Length: 17\r\n\r\n" + strings.Repeat("x", 17)
	if got := ask(long); got.status != 413 || len(a.questions()) > 0 {
		t.Errorf("a longer body: %+v", got)
	}

	a.set(yes(""), true)
	if got := ask(request); got.status != 403 {
		t.Errorf("no answer in time: %+v", got)
	}
	a.set(yes(""), false)
	if got := ask(request); got.status != 200 {
		t.Errorf("well again: %+v", got)
	}
	a.server.Stop()
	if got := ask(request); got.status != 403 || !strings.HasPrefix(got.reason, "ext_authz") {
		t.Errorf("killed: %+v", got)
	}
}
