package ztmesh_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/ztmesh/ztmesh"

// A row says what the packages of one folder may import. A package below a row
// belongs to it, unless it has a row of its own.
type row struct {
	// imports are the rows of this module that may be imported; proto, as data, is
	// open to all and stands in no row.
	imports []string
	// pure packages make the same bytes of the same input: no clock, no chance, no
	// world outside.
	pure bool
	// harness packages run the product to test or to show it, and import what they
	// like.
	harness bool
}

// table is the import table of docs/adr/0002-module-layout.md: change both.
var table = map[string]row{
	// What a crash test needs in all places: empty, but under a build tag.
	"failpoint": {},

	// Three leaves that do not know one another, and what is beside them.
	"journal":     {},
	"identity":    {imports: []string{"failpoint", "journal"}},
	"store":       {imports: []string{"failpoint", "store/audit", "store/state"}},
	"store/audit": {imports: []string{"store/state"}},
	"store/state": {pure: true},
	"xds":         {pure: true},
	"xds/serve":   {imports: []string{"xds"}},

	// What joins them.
	"controlplane/spec":     {pure: true},
	"controlplane/policy":   {pure: true, imports: []string{"controlplane/spec"}},
	"controlplane/compile":  {pure: true, imports: []string{"controlplane/spec", "controlplane/policy", "xds"}},
	"controlplane/parallel": {},
	"controlplane/view": {imports: []string{
		"controlplane/parallel", "controlplane/spec", "controlplane/policy", "controlplane/compile", "store/state", "xds",
	}},
	"controlplane/api": {imports: []string{
		"controlplane/parallel", "controlplane/spec", "controlplane/policy", "controlplane/compile", "controlplane/view", "failpoint", "store/state",
	}},
	"controlplane/kube":      {imports: []string{"controlplane/spec"}},
	"controlplane/decisions": {imports: []string{"xds"}},
	"controlplane/refusals":  {imports: []string{"journal"}},
	"controlplane/ui":        {},
	"controlplane": {imports: []string{
		"controlplane/api", "controlplane/compile", "controlplane/decisions", "controlplane/kube",
		"controlplane/policy", "controlplane/refusals", "controlplane/spec", "controlplane/ui", "controlplane/view",
		"failpoint", "identity", "journal", "store", "store/state", "xds", "xds/serve",
	}},
	"controlplane/zttest": {harness: true},

	"agent": {imports: []string{"failpoint", "identity", "xds", "xds/serve"}},

	"cmd/ztd": {imports: []string{"controlplane", "store"}},
	"cmd/ztctl": {imports: []string{
		"controlplane/parallel", "controlplane/spec", "controlplane/policy", "controlplane/compile", "controlplane/refusals", "xds", "identity", "journal", "store/state",
	}},
	"cmd/ztagent": {imports: []string{"agent"}},
	"cmd/ztbench": {harness: true},

	"deploy/demo": {harness: true},
}

// exact are the folders whose sub-packages each need a row of their own.
var exact = []string{"controlplane", "cmd", "deploy"}

// impure are the imports that a pure package must not have; an entry stands for
// everything below it, too.
var impure = []string{
	"context", "crypto/rand", "log", "math/rand", "net", "os", "sync", "syscall",
	"google.golang.org/grpc", "github.com/hashicorp/raft", "github.com/spf13/viper",
}

// harmless are exceptions to impure: they only parse.
var harmless = []string{"net/netip", "net/url"}

// clock are the functions of package time that ask for the time or wait for it.
var clock = []string{
	"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until",
}

// A place is the one place where a dependency may be known.
type place struct {
	dependency string // an import path, or what it begins with
	row        string // "" is any
	file       string // "" is any; else a pattern of path.Match
}

var places = []place{
	{dependency: "github.com/hashicorp/raft", row: "store"},
	{dependency: "github.com/vishvananda/netlink", row: "agent"},
	{dependency: "github.com/anishathalye/porcupine", row: "store"},
	{dependency: "github.com/envoyproxy/go-control-plane/pkg/server", row: "xds/serve"},
	{dependency: "github.com/spiffe/spire-api-sdk", row: "identity"},
	{dependency: "k8s.io/client-go", row: "controlplane/kube"},
	{dependency: "github.com/spf13/viper", file: "cmd/*/config.go"},
}

// TestImports holds every file of the module to the table, also those that a build
// tag leaves out. It parses in process: go list would answer from a cache that does
// not know what this test reads.
func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipFolder(name)
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		files++
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		problems, err := violations(filepath.ToSlash(name), src)
		for _, p := range problems {
			t.Error(p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 2 {
		t.Errorf("only %d Go files were found: is this still the root of the module?", files)
	}
}

// skipFolder skips what the go command skips as well: hidden folders, test data and
// other modules.
func skipFolder(name string) error {
	base := filepath.Base(name)
	if name == "." {
		return nil
	}
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// violations returns what the file at name, a slash path from the root of the
// module, does against the rules. Generated files are not judged, and of tests only
// that they have no init.
func violations(name string, src []byte) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(file) {
		return nil, nil
	}
	var problems []string
	report := func(format string, args ...any) {
		problems = append(problems, name+": "+fmt.Sprintf(format, args...))
	}

	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			report("has a func init: pass it in, or compute it where it is used")
		}
	}
	if strings.HasSuffix(name, "_test.go") {
		return problems, nil
	}

	from, ok := rowOf(path.Dir(name))
	if !ok {
		report("package %s has no row in the import table", path.Dir(name))
		return problems, nil
	}
	rules := table[from]
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		if !rules.harness {
			if local, ok := localTo(imported); ok && !mayImport(from, local) {
				report("%s may not import %s (docs/adr/0002-module-layout.md)", from, local)
			}
			for _, p := range places {
				if strings.HasPrefix(imported, p.dependency) && !p.holds(from, name) {
					report("imports %s, which only %s may know", imported, p)
				}
			}
		}
		if rules.pure && isImpure(imported) {
			report("imports %s, but %s is pure", imported, from)
		}
		if rules.pure && imported == "time" {
			for _, call := range clockUses(file, spec) {
				report("uses time.%s, but %s is pure", call, from)
			}
		}
	}
	return problems, nil
}

// rowOf returns the row that the package in folder dir belongs to: its own, or the
// nearest above it.
func rowOf(dir string) (string, bool) {
	for d := dir; d != "."; d = path.Dir(d) {
		if _, ok := table[d]; ok {
			return d, true
		}
		if slices.Contains(exact, path.Dir(d)) {
			return "", false
		}
	}
	return "", false
}

// localTo returns the folder of an imported package of this module.
func localTo(imported string) (dir string, ok bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

func mayImport(from, dir string) bool {
	if dir == "proto" || strings.HasPrefix(dir, "proto/") {
		return true
	}
	to, ok := rowOf(dir)
	return ok && (to == from || slices.Contains(table[from].imports, to))
}

func (p place) holds(row, name string) bool {
	if p.row != "" && p.row != row {
		return false
	}
	if p.file != "" {
		ok, err := path.Match(p.file, name)
		return err == nil && ok
	}
	return true
}

func (p place) String() string {
	if p.file != "" {
		return p.file
	}
	return p.row
}

func isImpure(imported string) bool {
	if slices.Contains(harmless, imported) {
		return false
	}
	return slices.ContainsFunc(impure, func(p string) bool {
		return imported == p || strings.HasPrefix(imported, p+"/") || strings.HasPrefix(imported, p+"-")
	})
}

// clockUses returns the functions of clock that file uses, given its import of time.
func clockUses(file *ast.File, spec *ast.ImportSpec) []string {
	name := "time"
	if spec.Name != nil {
		name = spec.Name.Name
	}
	if name == "." {
		return []string{"* (imported by a dot)"}
	}
	var uses []string
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name && slices.Contains(clock, s.Sel.Name) {
				uses = append(uses, s.Sel.Name)
			}
		}
		return true
	})
	return uses
}

// TestViolations shows that the rules can be broken, and what is no breach.
func TestViolations(t *testing.T) {
	importing := func(paths ...string) string {
		src := "package p\n"
		for _, p := range paths {
			src += fmt.Sprintf("import _ %q\n", p)
		}
		return src
	}
	tests := []struct {
		name string
		file string
		src  string
		want []string
	}{
		{
			name: "edges of the table, proto and the row itself",
			file: "controlplane/compile/workload.go",
			src:  importing(module+"/controlplane/policy", module+"/xds", module+"/proto/zt/v1alpha1", module+"/controlplane/compile/parts"),
		},
		{
			name: "a leaf that knows another",
			file: "store/store.go",
			src:  importing(module + "/xds"),
			want: []string{"store/store.go: store may not import xds (docs/adr/0002-module-layout.md)"},
		},
		{
			name: "an edge backwards",
			file: "controlplane/spec/parse.go",
			src:  importing(module + "/controlplane/policy"),
			want: []string{"controlplane/spec/parse.go: controlplane/spec may not import controlplane/policy (docs/adr/0002-module-layout.md)"},
		},
		{
			name: "a sub-package does not lend its rights to the package above",
			file: "xds/names.go",
			src:  importing(module + "/xds/serve"),
			want: []string{"xds/names.go: xds may not import xds/serve (docs/adr/0002-module-layout.md)"},
		},
		{
			name: "a package below a row is bound by it",
			file: "xds/golden/golden.go",
			src:  importing("os", module+"/identity"),
			want: []string{
				"xds/golden/golden.go: imports os, but xds is pure",
				"xds/golden/golden.go: xds may not import identity (docs/adr/0002-module-layout.md)",
			},
		},
		{
			name: "the harness in the product",
			file: "controlplane/run.go",
			src:  importing(module + "/controlplane/zttest"),
			want: []string{"controlplane/run.go: controlplane may not import controlplane/zttest (docs/adr/0002-module-layout.md)"},
		},
		{
			name: "the harness itself",
			file: "controlplane/zttest/cluster.go",
			src:  importing(module+"/store", module+"/agent", "github.com/hashicorp/raft", "os"),
		},
		{
			name: "a new package beside the others",
			file: "controlplane/util/util.go",
			src:  importing(),
			want: []string{"controlplane/util/util.go: package controlplane/util has no row in the import table"},
		},
		{
			name: "a new top-level package",
			file: "common/common.go",
			src:  importing(),
			want: []string{"common/common.go: package common has no row in the import table"},
		},
		{
			name: "impure imports",
			file: "store/state/apply.go",
			src:  importing("log/slog", "net/http", "net/netip", "net/url", "sync/atomic", "math/rand/v2", "math/bits"),
			want: []string{
				"store/state/apply.go: imports log/slog, but store/state is pure",
				"store/state/apply.go: imports math/rand/v2, but store/state is pure",
				"store/state/apply.go: imports net/http, but store/state is pure",
				"store/state/apply.go: imports sync/atomic, but store/state is pure",
			},
		},
		{
			name: "raft outside of the store",
			file: "controlplane/run.go",
			src:  importing("github.com/hashicorp/raft-wal"),
			want: []string{"controlplane/run.go: imports github.com/hashicorp/raft-wal, which only store may know"},
		},
		{
			name: "raft in the store",
			file: "store/store.go",
			src:  importing("github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb/v2"),
		},
		{
			name: "go-control-plane's server outside of xds/serve",
			file: "agent/sds.go",
			src:  importing("github.com/envoyproxy/go-control-plane/pkg/server/v3"),
			want: []string{"agent/sds.go: imports github.com/envoyproxy/go-control-plane/pkg/server/v3, which only xds/serve may know"},
		},
		{
			name: "viper beside config.go",
			file: "cmd/ztd/main.go",
			src:  importing("github.com/spf13/viper"),
			want: []string{"cmd/ztd/main.go: imports github.com/spf13/viper, which only cmd/*/config.go may know"},
		},
		{
			name: "viper in config.go",
			file: "cmd/ztctl/config.go",
			src:  importing("github.com/spf13/viper"),
		},
		{
			name: "the clock in a pure package",
			file: "controlplane/policy/decide.go",
			src:  "package policy\nimport \"time\"\nvar a, b = time.Now(), time.Unix(0, 0)",
			want: []string{"controlplane/policy/decide.go: uses time.Now, but controlplane/policy is pure"},
		},
		{
			name: "the clock as a value, under another name",
			file: "controlplane/policy/decide.go",
			src:  "package policy\nimport clock \"time\"\nvar since = clock.Since",
			want: []string{"controlplane/policy/decide.go: uses time.Since, but controlplane/policy is pure"},
		},
		{
			name: "the clock elsewhere",
			file: "store/run.go",
			src:  "package store\nimport \"time\"\nvar a = time.Now()",
		},
		{
			name: "init, in a test as well",
			file: "store/store_test.go",
			src:  "package store\nfunc init() {}\n",
			want: []string{"store/store_test.go: has a func init: pass it in, or compute it where it is used"},
		},
		{
			name: "a method named init",
			file: "store/store.go",
			src:  "package store\ntype T struct{}\nfunc (T) init() {}\n",
		},
		{
			name: "tests import what they like",
			file: "controlplane/policy/decide_test.go",
			src:  importing("os", module+"/controlplane/zttest"),
		},
		{
			name: "generated code",
			file: "proto/zt/v1alpha1/spec.pb.go",
			src:  "// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage p\nfunc init() {}\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := violations(test.file, []byte(test.src))
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTable finds rows that name no row, and roots that somebody could import.
func TestTable(t *testing.T) {
	for from, r := range table {
		for _, to := range r.imports {
			if _, ok := table[to]; !ok {
				t.Errorf("%s may import %s, which has no row", from, to)
			}
			if table[to].harness || strings.HasPrefix(to, "cmd/") {
				t.Errorf("%s may import %s, which nobody may", from, to)
			}
		}
	}
}
