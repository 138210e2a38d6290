package ztmesh_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestDocsExamples holds every YAML example of the documentation to the spec: it
// is valid as it stands, and its own tests pass.
func TestDocsExamples(t *testing.T) {
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	examples := 0
	for _, page := range docsPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			examples++
			docs, problems := spec.Parse([]spec.File{{Name: page, Content: m[1]}})
			problems = spec.Join(problems, spec.Check(docs, "shop.example"))
			if len(problems) > 0 {
				t.Errorf("%s:\n%s%v", page, m[1], problems)
				continue
			}
			ix := policy.New("shop.example", docs)
			if failed := policy.TestProblems(policy.RunTests(ix, docs, time.Now())); len(failed) > 0 {
				t.Errorf("%s:\n%s%v", page, m[1], failed)
			}
		}
	}
	if examples < 15 {
		t.Errorf("only %d examples were found", examples)
	}
}

// TestDocsLinks finds links to pages, and to headings of pages, that are not there.
func TestDocsLinks(t *testing.T) {
	code := regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	link := regexp.MustCompile(`\]\(([^)#: ]*)(#[^) ]*)?\)`)
	for _, page := range docsPages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(code.ReplaceAll(text, nil), -1) {
			target := page
			if len(m[1]) > 0 {
				target = filepath.Join(filepath.Dir(page), string(m[1]))
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if anchor := string(m[2]); anchor != "" && !slices.Contains(anchors(t, target), anchor) {
				t.Errorf("%s links to %s%s, and there is no such heading", page, m[1], anchor)
			}
		}
	}
}

// TestDecisionsAreListed: the index of docs/adr has a line of each page, by its title.
func TestDecisionsAreListed(t *testing.T) {
	index, err := os.ReadFile("docs/adr/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("docs/adr/0*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages, %v", err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		title, _, _ := strings.Cut(string(text), "\n")
		file := filepath.Base(page)
		title, ok := strings.CutPrefix(title, "# "+file[:4]+": ")
		if line := fmt.Sprintf("- [%s](%s): %s", file[:4], file, title); !ok || !strings.Contains(string(index), line) {
			t.Errorf("%s begins with its number and title, as # %s: TITLE, and docs/adr/README.md has the line\n%s", page, file[:4], line)
		}
	}
}

// TestReference holds the reference to the schema: every field of every kind is
// there, and each kind has a page.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("docs/spec/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	messages := ztv1.File_zt_v1alpha1_spec_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		_, section, found := strings.Cut(string(text), "\n## "+string(m.Name())+"\n")
		if !found {
			t.Errorf("there is no section %s", m.Name())
			continue
		}
		section, _, _ = strings.Cut(section, "\n## ")
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			if f.ContainingOneof() == nil && m.Name() != "Strings" && !strings.Contains(section, "| `"+f.JSONName()+"` |") {
				t.Errorf("%s.%s is missing", m.Name(), f.JSONName())
			}
		}
	}
	kinds := messages.ByName("Document").Oneofs().ByName("spec").Fields()
	for i := range kinds.Len() {
		kind := string(kinds.Get(i).Message().Name())
		if !strings.Contains(string(text), "["+kind+"](#"+strings.ToLower(kind)+")") {
			t.Errorf("the kind %s is not linked", kind)
		}
	}
}

// docsPages is every page for people.
func docsPages(t *testing.T) []string {
	t.Helper()
	pages := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
	for _, pattern := range []string{"docs/*.md", "docs/spec/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	return pages
}

// anchors is the links to the headings of a page, as GitHub makes them.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(string(m[1])), "")
		out = append(out, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return out
}
