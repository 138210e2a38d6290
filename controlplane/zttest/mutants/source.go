package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

const module = "github.com/ztmesh/ztmesh/"

// lowering is the files in which what a spec says becomes what Envoy is told.
func lowering() map[string][]string {
	return map[string][]string{
		"controlplane/compile": {"compile.go", "outbound.go", "rules.go"},
		"xds": {
			"policy.go", "tree.go", "matcher.go", "leaf.go", "group.go", "block.go", "tcppolicy.go", "segments.go",
			"state.go", "cel.go", "canonical.go", "gate.go", "jwt.go", "inbound.go", "egress.go", "plaintext.go",
		},
	}
}

// source is one package, parsed and with its types.
type source struct {
	dir     string
	fset    *token.FileSet
	files   map[string]*ast.File
	content map[string][]byte
	info    *types.Info
	pkg     *types.Package
}

// read parses and checks the package in a folder of the module.
func read(root, dir string) (*source, error) {
	var listed struct{ GoFiles []string }
	exports := map[string]string{}
	out, err := run(root, "go", "list", "-export", "-deps", "-json=ImportPath,Export,GoFiles", "./"+dir)
	if err != nil {
		return nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Export string
			GoFiles            []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		exports[p.ImportPath] = p.Export
		if p.ImportPath == module+dir {
			listed.GoFiles = p.GoFiles
		}
	}
	s := &source{
		dir: dir, fset: token.NewFileSet(), files: map[string]*ast.File{}, content: map[string][]byte{},
		info: &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}},
	}
	var all []*ast.File
	for _, name := range listed.GoFiles {
		path := filepath.Join(root, dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		f, err := parser.ParseFile(s.fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
		s.files[name], s.content[name] = f, text
	}
	open := func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }
	s.pkg, err = (&types.Config{Importer: importer.ForCompiler(s.fset, "gc", open)}).Check(module+dir, s.fset, all, s.info)
	return s, err
}

// text is the source of a node.
func (s *source) text(file string, n ast.Node) string {
	return string(s.content[file][s.offset(n.Pos()):s.offset(n.End())])
}

func (s *source) offset(p token.Pos) int { return s.fset.Position(p).Offset }

// insertion is text that is put into a file. Insertions are never within one
// another's text, only within one another's expressions.
type insertion struct {
	at, from, to int // from and to are the node that it wraps
	open         bool
	order        int
	text         string
}

// write is a file with all insertions.
func write(content []byte, list []insertion) []byte {
	slices.SortStableFunc(list, func(a, b insertion) int {
		switch {
		case a.at != b.at:
			return a.at - b.at
		case a.open != b.open && a.open: // what ends here comes before what begins
			return 1
		case a.open != b.open:
			return -1
		case a.open && a.to != b.to: // the larger node begins first
			return b.to - a.to
		case !a.open && a.from != b.from: // and ends last
			return b.from - a.from
		case a.open:
			return a.order - b.order
		default:
			return b.order - a.order
		}
	})
	var out []byte
	last := 0
	for _, i := range list {
		out = append(append(out, content[last:i.at]...), i.text...)
		last = i.at
	}
	return append(out, content[last:]...)
}

// run is the output of a command.
func run(dir, name string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	c := exec.Command(name, args...)
	c.Dir, c.Stderr = dir, &stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %v: %w\n%s", name, args, err, stderr.Bytes())
	}
	return out, nil
}
