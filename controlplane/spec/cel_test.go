package spec_test

import (
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

func TestParseCEL(t *testing.T) {
	vars := map[string]any{
		"request.method": "GET", "request.url_path": "/a/b", "request.query": "x=1", "request.host": "orders.shop.mesh",
		"request.headers": map[string]string{"x-team": "sre"}, "request.time": time.Date(2030, 1, 31, 18, 0, 0, 0, time.UTC),
		"connection.uri_san_peer_certificate": "spiffe://shop.example/ns/shop/sa/web",
	}
	for text, want := range map[string]bool{
		`true`:                      true,
		`request.method == "GET"`:   true,
		`request.method in ["PUT"]`: false,
		`request.headers["x-team"] == "sre" && !("x-none" in request.headers)`: true,
		`has(request.headers.accept) || request.headers["x-team"] != ""`:       true,
		`request.url_path.startsWith("/a/") && size(request.query) == 3`:       true,
		`request.time < timestamp("2030-01-31T18:00:01Z")`:                     true,
		`request.time - duration("1h") > timestamp("2030-01-31T17:00:00Z")`:    false,
		`request.time.getHours("Europe/Berlin") == 19 ? 1 + 2 == 3 : false`:    true,
		`request.time.getDayOfWeek() == 4`:                                     true,
		`connection.uri_san_peer_certificate.endsWith("/web")`:                 true,
	} {
		e, err := spec.ParseCEL(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := e.Eval(vars); got != want || err != nil {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
}
