package compile_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ztmesh/ztmesh/controlplane/compile"
	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files, and prune what is in them no more")

// TestGolden reads each testdata/*.txtar: *.yaml is a spec, "config namespace/name"
// what the proxies of each of its workloads are told.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) < 8 {
		t.Fatalf("%d cases, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { golden(t, path) })
	}
}

func golden(t *testing.T, path string) {
	ar, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: ar.Comment}
	var files []spec.File
	for _, f := range ar.Files {
		if strings.HasSuffix(f.Name, ".yaml") {
			files = append(files, spec.File{Name: f.Name, Content: f.Data})
			got.Files = append(got.Files, f)
		}
	}
	docs, problems := spec.Parse(files)
	problems = append(problems, spec.Check(docs, "shop.example")...)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	ix := policy.New("shop.example", docs)
	ix.Workloads(func(w *policy.Workload) bool {
		c, err := compile.Workload(ix, nil, w.Ref)
		if err != nil {
			t.Fatal(err)
		}
		got.Files = append(got.Files, txtar.File{Name: "config " + w.Ref.String(), Data: []byte(c.YAML())})
		return true
	})
	text := txtar.Format(got)
	if *update {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want := txtar.Format(ar); !bytes.Equal(text, want) {
		t.Errorf("differs; -update rewrites it\n%s", cmp.Diff(string(want), string(text)))
	}
}
