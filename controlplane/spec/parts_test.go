package spec_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// TestPartsInAnyOrder: what files say does not depend on the order in which their
// parts are read, nor on how many at the same time.
func TestPartsInAnyOrder(t *testing.T) {
	cases := map[string][]spec.File{"many": {{Name: "a.yaml", Content: many(2500)}, {Name: "b.yaml", Content: many(500)}}}
	for _, path := range goldenPaths(t) {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cases[path], _ = inputs(t, ar)
	}
	orders := map[string]func(int, func(int)){
		"backwards": func(n int, do func(int)) {
			for i := n - 1; i >= 0; i-- {
				do(i)
			}
		},
		"all at once": func(n int, do func(int)) {
			var tasks sync.WaitGroup
			for i := range n {
				tasks.Go(func() { do(i) })
			}
			tasks.Wait()
		},
	}
	for name, files := range cases {
		docs, problems := spec.Parse(files)
		for order, each := range orders {
			again, found := spec.ParseBy(files, each)
			if diff := cmp.Diff(problems, found); diff != "" {
				t.Errorf("%s, %s: problems -want +got:\n%s", name, order, diff)
			}
			if len(docs) != len(again) {
				t.Fatalf("%s, %s: %d documents, want %d", name, order, len(again), len(docs))
			}
			for i, d := range docs {
				if !bytes.Equal(spec.Canonical(d), spec.Canonical(again[i])) {
					t.Fatalf("%s, %s: document %d is %s, want %s", name, order, i, again[i].Key(), d.Key())
				}
				file, line, column := d.At("spec")
				if f, l, c := again[i].At("spec"); f != file || l != line || c != column {
					t.Fatalf("%s, %s: %s is at %s:%d:%d, want %s:%d:%d", name, order, d.Key(), f, l, c, file, line, column)
				}
			}
		}
	}
}

// many is workloads of which every hundredth has a problem, or stands twice.
func many(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		name, protocol := fmt.Sprint("w", i), "http"
		switch i % 100 {
		case 50:
			protocol = "smoke"
		case 99:
			name = fmt.Sprint("w", i/2)
		}
		fmt.Fprintf(&b, "---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: a, name: %s}\n"+
			"spec: {serves: [{name: http, port: 8080, protocol: %s}]}\n", name, protocol)
	}
	return b.Bytes()
}
