package ztmesh_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ztmesh/ztmesh/failpoint"
)

// TestFailpoints: every failpoint that is listed stands at one place in the code, in
// the package that its name begins with, and no other is there.
func TestFailpoints(t *testing.T) {
	at := make(map[string][]string)
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return skipFolder(name)
		case !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "failpoint"+string(filepath.Separator)):
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		hits, err := hitsOf(name, src)
		for _, h := range hits {
			at[h] = append(at[h], filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range at {
		if len(files) != 1 {
			t.Errorf("%s stands at %d places: %v", name, len(files), files)
		}
		if owner, _, _ := strings.Cut(name, "."); filepath.Base(filepath.Dir(files[0])) != owner {
			t.Errorf("%s is in %s", name, files[0])
		}
		if !slices.Contains(failpoint.Names(), name) {
			t.Errorf("%s: %s is not listed in package failpoint", files[0], name)
		}
	}
	for _, name := range failpoint.Names() {
		if len(at[name]) == 0 {
			t.Errorf("%s is listed, and nowhere in the code", name)
		}
	}
}

// hitsOf are the names that a file hits.
func hitsOf(name string, src []byte) (names []string, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if x, isName := exprName(f); !ok || !isName || x != "failpoint" || f.Sel.Name != "Hit" {
			return true
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		if !ok {
			err = fmt.Errorf("%s: a failpoint whose name is not written out", name)
			return false
		}
		text, uerr := strconv.Unquote(lit.Value)
		if uerr != nil {
			err = uerr
		}
		names = append(names, text)
		return true
	})
	return names, err
}

func exprName(s *ast.SelectorExpr) (string, bool) {
	if s == nil {
		return "", false
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	return x.Name, true
}

// TestHitsOf shows what is found.
func TestHitsOf(t *testing.T) {
	const src = `package p
import "github.com/ztmesh/ztmesh/failpoint"
func f() { if true { failpoint.Hit("p.a.b") }; other.Hit("no"); failpoint.Names(); Hit("no") }
func g(name string) { func() { failpoint.Hit("p.c.d") }() }`
	got, err := hitsOf("p/p.go", []byte(src))
	if d := cmp.Diff([]string{"p.a.b", "p.c.d"}, got); d != "" || err != nil {
		t.Errorf("%s, %v", d, err)
	}
	if _, err := hitsOf("p/p.go", []byte("package p\nfunc f(n string) { failpoint.Hit(n) }")); err == nil {
		t.Error("a name that is a variable is no error")
	}
}
