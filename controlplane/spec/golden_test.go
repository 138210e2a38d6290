package spec_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ztmesh/ztmesh/controlplane/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenTrustDomain is the cluster's in all golden cases.
const goldenTrustDomain = "shop.example"

const (
	wantProblems  = "want.problems"
	wantDocuments = "want.yaml"
)

// TestGolden reads each testdata/*.txtar: files NAME.yaml or NAME.json as they
// are, NAME.gen as lines of a count and a Go string to be repeated so often.
// Files under stored/ are what the cluster holds already. want.problems is what
// Parse and Check say together; want.yaml is the documents when they say nothing.
func TestGolden(t *testing.T) {
	for _, path := range goldenPaths(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files, stored := inputs(t, ar)
			got := verdict(t, files, stored)
			kept := &txtar.Archive{Comment: ar.Comment}
			want := map[string]string{}
			for _, f := range ar.Files {
				if strings.HasPrefix(f.Name, "want.") {
					want[f.Name] = string(f.Data)
				} else {
					kept.Files = append(kept.Files, f)
				}
			}
			if *update {
				for _, name := range []string{wantProblems, wantDocuments} {
					if got[name] != "" {
						kept.Files = append(kept.Files, txtar.File{Name: name, Data: []byte(got[name])})
					}
				}
				if err := os.WriteFile(path, txtar.Format(kept), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got (rewrite with -update):\n%s", diff)
			}
		})
	}
}

func goldenPaths(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden cases: %v", err)
	}
	return paths
}

// inputs is the files of a golden case, and those that are stored.
func inputs(t testing.TB, ar *txtar.Archive) (files, stored []spec.File) {
	t.Helper()
	for _, f := range ar.Files {
		content := f.Data
		if strings.HasSuffix(f.Name, ".gen") {
			content = generate(t, string(f.Data))
		}
		switch {
		case strings.HasPrefix(f.Name, "want."):
		case strings.HasPrefix(f.Name, "stored/"):
			stored = append(stored, spec.File{Name: f.Name, Content: content})
		default:
			files = append(files, spec.File{Name: f.Name, Content: content})
		}
	}
	return files, stored
}

func generate(t testing.TB, recipe string) []byte {
	t.Helper()
	var b bytes.Buffer
	for line := range strings.Lines(recipe) {
		count, quoted, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			t.Fatal(err)
		}
		s, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%s: %v", quoted, err)
		}
		b.WriteString(strings.Repeat(s, n))
	}
	return b.Bytes()
}

// verdict is what a golden case must say, by the name of its section.
func verdict(t testing.TB, files, stored []spec.File) map[string]string {
	t.Helper()
	old, problems := spec.Parse(stored)
	if problems.Err() != nil {
		t.Fatalf("the stored files have problems:\n%v", problems)
	}
	docs, problems := spec.Parse(files)
	written := len(docs)
	for _, d := range old {
		if slices.ContainsFunc(docs, func(n *spec.Document) bool { return n.Key() == d.Key() }) {
			continue
		}
		decoded, err := spec.Decode(spec.Canonical(d))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, decoded)
	}
	problems = spec.Join(problems, spec.Check(docs, goldenTrustDomain))
	got := map[string]string{}
	if len(problems) > 0 {
		var b strings.Builder
		for _, p := range shortened(problems) {
			fmt.Fprintf(&b, "%s:%d:%d %s %s\n  %s\n  %s\n", p.File, p.Line, p.Column, p.Code, p.Path, p.Message, p.Hint)
		}
		got[wantProblems] = b.String()
		return got
	}
	var b strings.Builder
	for i, d := range docs[:written] {
		if i > 0 {
			b.WriteString("---\n")
		}
		b.WriteString(spec.YAML(d))
	}
	got[wantDocuments] = b.String()
	return got
}

// shortened leaves the first and the last of many problems.
func shortened(ps spec.Problems) spec.Problems {
	const most = 120
	if len(ps) <= most {
		return ps
	}
	return append(ps[:1:1], ps[len(ps)-1])
}

// TestEveryCodeHasACase keeps the table and the golden cases together.
func TestEveryCodeHasACase(t *testing.T) {
	var all strings.Builder
	for _, path := range goldenPaths(t) {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			if f.Name == wantProblems {
				all.Write(f.Data)
			}
		}
	}
	seen := map[string]bool{}
	for _, c := range spec.Codes() {
		if !strings.Contains(all.String(), " "+c.Code+" ") {
			t.Errorf("%s (%s) is in no golden case", c.Code, c.Meaning)
		}
		if seen[c.Code] {
			t.Errorf("%s stands twice in the table", c.Code)
		}
		if c.Meaning == "" || c.Hint == "" {
			t.Errorf("%s has no meaning or no hint", c.Code)
		}
		seen[c.Code] = true
	}
	for word := range strings.FieldsSeq(all.String()) {
		if strings.HasPrefix(word, "ZT1") && !seen[word] {
			t.Errorf("the golden cases have %s, which is not in the table", word)
		}
	}
}

// TestProblemsPage keeps docs/problems.md equal to the table.
func TestProblemsPage(t *testing.T) {
	const page = "../../docs/problems.md"
	var b strings.Builder
	b.WriteString("# Problems\n\n" +
		"What `ztctl validate` and `ztctl apply` refuse in a spec, by code. Codes are stable: one is never given\n" +
		"another meaning. This page is generated from the table in `controlplane/spec/codes.go`; `go test\n" +
		"./controlplane/spec -update` rewrites it.\n")
	groups := map[string]string{
		"ZT10": "Bytes and YAML", "ZT11": "The form of a document", "ZT12": "The set of documents, and the mesh",
		"ZT13": "Workload", "ZT14": "Grant", "ZT15": "References", "ZT16": "Assertion",
		"ZT17": "Service", "ZT18": "IdentityProvider", "ZT19": "Segment, Block and Exception",
	}
	last := ""
	for _, c := range spec.Codes() {
		if group := c.Code[:4]; group != last {
			if groups[group] == "" {
				t.Fatalf("no heading for the codes %s", group)
			}
			b.WriteString("\n## " + groups[group] + "\n\n| code | what is wrong | what to do |\n|---|---|---|\n")
			last = group
		}
		cell := strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*").Replace
		b.WriteString("| " + c.Code + " | " + cell(c.Meaning) + " | " + cell(c.Hint) + " |\n")
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("%s is not current (rewrite with -update):\n%s", page, diff)
	}
}
