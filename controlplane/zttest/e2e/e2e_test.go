// Package e2e_test runs whole meshes: real servers, real Envoys, raw requests. What
// single requests come to is asked elsewhere (judge).
package e2e_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"testing"

	"github.com/ztmesh/ztmesh/controlplane/zttest/mesh"
)

// atOnce is how many requests are under way: Envoy takes a second to close what
// it refuses as malformed.
const atOnce = 8

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// echo says whether a tcp port lets bytes through: 200 if so.
func echo(t *testing.T, in *mesh.Instance, port uint32, as *tls.Certificate) mesh.Answer {
	t.Helper()
	c, err := in.Dial(port, as)
	if err != nil {
		return in.Ended(err)
	}
	defer c.Close()
	sent := []byte("x\n")
	if _, err := c.Write(sent); err != nil {
		return in.Ended(err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return in.Ended(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%s sent back %q", in.Workload, got)
	}
	return mesh.Answer{Status: 200}
}
