package controlplane

import (
	"runtime"
	"strconv"
	"testing"

	"github.com/ztmesh/ztmesh/xds"
)

func resources(version string) *xds.Resources {
	return &xds.Resources{"type": {"name": {Type: "type", Name: "name", Version: version}}}
}

func TestPoolSharesWhatIsEqual(t *testing.T) {
	p := newPool()
	a, b, c := resources("1"), resources("1"), resources("2")
	for _, r := range []*xds.Resources{a, b, c} {
		p.share(r)
	}
	if a.Get("type", "name") != b.Get("type", "name") {
		t.Error("equal resources are two values")
	}
	if a.Get("type", "name") == c.Get("type", "name") {
		t.Error("resources of two versions are one value")
	}
	runtime.KeepAlive(a)
}

func TestPoolKeepsNothingAlive(t *testing.T) {
	p := newPool()
	for i := range 5000 {
		p.share(resources(strconv.Itoa(i)))
		if i%500 == 0 {
			runtime.GC()
		}
	}
	if n := len(p.held); n > 4096 {
		t.Errorf("%d dead resources are remembered", n)
	}
}
