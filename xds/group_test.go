package xds_test

import (
	"fmt"
	"testing"

	"github.com/ztmesh/ztmesh/xds"
)

// grouped is rules of many callers that share many paths, and one that does not.
func grouped(target string, callers, paths int) *xds.Config {
	all := xds.Rule{Grant: "shop/all", Methods: []string{"GET", "PUT"}}
	for i := range callers {
		all.Callers.IDs = append(all.Callers.IDs, id(fmt.Sprint("shop/c", i)))
	}
	for i := range paths {
		all.Paths = append(all.Paths, xds.Path{Value: fmt.Sprint("/p", i), Kind: []xds.PathKind{xds.Exact, xds.Rest}[i%2]})
	}
	narrow := all
	narrow.Grant, narrow.Callers = "shop/narrow", xds.Callers{Prefixes: []string{sas("far")}}
	narrow.Conditions.Headers = []xds.Header{{Name: "x-a", Values: []string{"1"}}}
	conf := judged(target, all, narrow, xds.Rule{
		Grant: "shop/other", Callers: byWeb(), Methods: []string{"DELETE"}, Paths: []xds.Path{{Value: "/p1", Kind: xds.Rest}},
	})
	conf.Inbound[0].Gate = append(conf.Inbound[0].Gate, xds.GateEntry{ID: id("shop/c7"), Key: "zt.c7"})
	return conf
}

// TestGroups: where callers × paths would be large, a policy is callers + paths in
// size, and means the same.
func TestGroups(t *testing.T) {
	size := func(callers, paths int) int {
		return len(mustBuild(t, grouped("127.0.0.1:1", callers, paths)).Get(xds.ExtensionType, xds.PolicyName("shop/orders", "http")).Body.GetValue())
	}
	if few, many := size(500, 2), size(500, 40); many > 2*few {
		t.Errorf("500 callers: %d bytes with 2 paths, %d with 40", few, many)
	}
	judgeAll(t, grouped(newApp(t), 500, 40), []judgeCase{
		{caller: "shop/c7", request: ask("GET", "/p0"), want: "200"},
		{caller: "shop/c7", request: ask("PUT", "/p39/x"), want: "200"},
		{caller: "shop/c7", request: ask("GET", "/p0/x"), want: "default-deny"},
		{caller: "shop/c7", request: ask("POST", "/p0"), want: "default-deny"},
		{caller: "shop/c7", request: ask("DELETE", "/p1"), want: "default-deny"},
		{caller: "shop/c7", request: ask("GET", "/p40"), want: "default-deny"},
		{caller: "shop/c7", request: ask("GET", "/p0;"), want: "form"},
		{caller: "far/stranger", request: ask("GET", "/p0", "x-a: 1"), want: "200"},
		{caller: "far/stranger", request: ask("GET", "/p0"), want: "default-deny"},
		{caller: "shop/web", request: ask("DELETE", "/p1/x"), want: "200"},
		{caller: "shop/web", request: ask("GET", "/p1"), want: "default-deny"},
	})
}
