package ztmesh_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// TestDocsExamples holds every YAML example of the documentation to the spec: it
// is valid as it stands, and its own tests pass.
func TestDocsExamples(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	examples := 0
	for _, page := range append(pages, "README.md") {
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
	if examples < 5 {
		t.Errorf("only %d examples were found", examples)
	}
}

// TestDocsLinks finds links to pages that are not there.
func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	adrs, err := filepath.Glob("docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(append(pages, adrs...), "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			target := filepath.Join(filepath.Dir(page), string(m[1]))
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}
