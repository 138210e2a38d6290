package controlplane

import (
	"runtime"
	"strconv"
	"testing"

	"github.com/ztmesh/ztmesh/xds"
)

func resource(version string) *xds.Resource {
	return &xds.Resource{Type: "type", Name: "name", Version: version}
}

func TestPoolSharesWhatIsEqual(t *testing.T) {
	p := newPool()
	a := p.one(resource("1"))
	if b := p.one(resource("1")); a != b {
		t.Error("equal resources are two values")
	}
	if c := p.one(resource("2")); a == c {
		t.Error("resources of two versions are one value")
	}
	runtime.KeepAlive(a)
}

func TestPoolKeepsNothingAlive(t *testing.T) {
	p := newPool()
	for i := range 5000 {
		p.one(resource(strconv.Itoa(i)))
		if i%500 == 0 {
			runtime.GC()
		}
	}
	if n := len(p.held); n > 4096 {
		t.Errorf("%d dead resources are remembered", n)
	}
}
