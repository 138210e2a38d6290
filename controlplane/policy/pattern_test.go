package policy

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawPath draws a pattern over a small alphabet.
func drawPath(t *rapid.T, name string) Path {
	segments := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "*"}), 0, 3).Draw(t, name)
	switch rapid.IntRange(0, 3).Draw(t, name+" end") {
	case 0:
		segments = append(segments, "**")
	case 1:
		segments = append(segments, "")
	}
	if len(segments) == 0 {
		segments = []string{""}
	}
	return newPath("/" + strings.Join(segments, "/"))
}

// canonicalPaths is every canonical path of at most five segments of a, b and c:
// patterns have at most four, and c is named by none of them.
func canonicalPaths() []string {
	out := []string{"/", "//"}
	level := []string{""}
	for range 5 {
		var next []string
		for _, p := range level {
			for _, s := range []string{"/a", "/b", "/c"} {
				next = append(next, p+s)
				out = append(out, p+s, p+s+"/")
			}
		}
		level = next
	}
	return out
}

// oracle is the meaning of a pattern as a regular expression.
func oracle(p Path) *regexp.Regexp {
	expr := regexp.QuoteMeta(p.String())
	if base, rest := strings.CutSuffix(expr, `/\*\*`); rest {
		expr = base + "(?:/.*)?"
		if base == "" {
			expr = "/.*"
		}
	}
	return regexp.MustCompile("^" + strings.ReplaceAll(expr, `\*`, "[^/]+") + "$")
}

func TestNewPath(t *testing.T) {
	for text, want := range map[string]Path{
		"/":             {"/", Exact},
		"/a/b":          {"/a/b", Exact},
		"/a/":           {"/a/", Exact},
		"/a/**":         {"/a", Rest},
		"/**":           {"/", Rest},
		"/a/*":          {"/a/*", Pattern},
		"/a/{id}/b":     {"/a/*/b", Pattern},
		"/{x}/**":       {"/*/**", Pattern},
		"/pkg.S/*":      {"/pkg.S/*", Pattern},
		"/a/{}":         {"/a/{}", Exact},
		"/orders/{a}/*": {"/orders/*/*", Pattern},
	} {
		got := newPath(text)
		if got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
		if again := newPath(got.String()); again != got {
			t.Errorf("%s: %+v is written %s, which is %+v", text, got, got, again)
		}
	}
}

func TestPathMatches(t *testing.T) {
	most := strings.Repeat("s", maxSegment)
	for _, c := range []struct{ pattern, matches, others string }{
		{"/a/**", "/a /a/ /a/b /a/b/c", "/ // /ab /b/a"},
		{"/**", "/ // /a /a/b/", ""},
		{"/a/*", "/a/b", "/a /a/ /a/b/ /a/b/c /b/b"},
		{"/a/*/", "/a/b/", "/a/b /a//"},
		{"/a/*/c", "/a/b/c", "/a//c /a/c /a/b/c/ /a/b/b/c"},
		{"/*/**", "/a /a/ /a/b/c", "/ //"},
		{"/a/*/**", "/a/b /a/b/ /a/b/c", "/a /a/"},
		{"/*", "/a", "/ // /a/ /a/b"},
		{"/a", "/a", "/a/ /A /"},
		{"/*/c", "/" + most + "/c", "/" + most + "s/c"},
		{"/*", "/" + most, "/" + most + "s"},
		{"/*/**", "/x/" + most, "/" + most + "s/"},
		{"/*/b/**", "/x/b/" + most[3:], "/x/b/" + most[2:]},
		{"/*/*/**", "/x/y/" + most, ""},
		{"/a/**", "/a/" + most + "s", ""},
	} {
		p := newPath(c.pattern)
		for _, path := range strings.Fields(c.matches) {
			if !p.Matches(path) {
				t.Errorf("%s does not match %s", p, path)
			}
		}
		for _, path := range strings.Fields(c.others) {
			if p.Matches(path) {
				t.Errorf("%s matches %s", p, path)
			}
		}
	}
}

// TestPathsByEnumeration holds Matches to a regular expression, and what two
// patterns have in common, and what many leave of one, to going through all paths.
func TestPathsByEnumeration(t *testing.T) {
	paths := canonicalPaths()
	disjoint, gaps, covered := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		target := drawPath(t, "target")
		var others []Path
		for range rapid.IntRange(0, 6).Draw(t, "others") {
			others = append(others, drawPath(t, "other"))
		}
		is := map[Path][]bool{}
		for _, p := range append(slices.Clone(others), target) {
			expr := oracle(p)
			matches := make([]bool, len(paths))
			for i, path := range paths {
				matches[i] = expr.MatchString(path)
				if p.Matches(path) != matches[i] {
					t.Fatalf("%s matches %s: got %v", p, path, !matches[i])
				}
			}
			is[p] = matches
		}
		left := slices.Clone(is[target])
		for _, o := range others {
			common := ""
			for i, path := range paths {
				if is[target][i] && is[o][i] {
					common, left[i] = path, false
				}
			}
			got, ok := commonPath(target, o)
			if ok != (common != "") || ok && !(target.Matches(got) && o.Matches(got)) || o.Intersects(target) != ok {
				t.Fatalf("%s and %s: got %q, %v, want like %q", target, o, got, ok, common)
			}
			if !ok {
				disjoint++
			}
		}
		got, found, err := uncovered(target, others)
		if err != nil || found != slices.Contains(left, true) {
			t.Fatalf("%s less %v: got %q, %v, %v", target, others, got, found, err)
		}
		if !found {
			covered++
			return
		}
		gaps++
		if !target.Matches(got) || slices.ContainsFunc(others, func(p Path) bool { return p.Matches(got) }) {
			t.Fatalf("%s less %v: got %s", target, others, got)
		}
		if again, ok := NormalizePath(got); !ok || again != got {
			t.Fatalf("%s less %v: %s is not canonical", target, others, got)
		}
	})
	if disjoint == 0 || gaps == 0 || covered == 0 {
		t.Errorf("%d disjoint pairs, %d gaps, %d covered", disjoint, gaps, covered)
	}
}

// TestUncoveredIsBounded: many patterns are cheap, and those whose overlaps are
// too many are given up, never guessed.
func TestUncoveredIsBounded(t *testing.T) {
	var many []Path
	for i := range 10_000 {
		many = append(many, newPath("/orders/"+strings.Repeat("a", i%7)+string(rune('a'+i%26))+"/*"))
	}
	if _, found, err := uncovered(newPath("/orders/*/*"), many); !found || err != nil {
		t.Errorf("got %v, %v", found, err)
	}
	// Each pattern is lost or not by itself, so every subset of them is left by some
	// path; and all paths are covered, so none is an answer.
	all := slices.Repeat([]string{"*"}, 16)
	hard := []Path{newPath("/" + strings.Join(all, "/"))}
	for i := range 14 {
		for _, s := range []string{"a", "b", "c"} {
			segments := slices.Clone(all)
			segments[i], segments[15] = s, "d"
			hard = append(hard, newPath("/"+strings.Join(segments, "/")))
		}
	}
	if path, found, err := uncovered(hard[0], hard); found || !errors.Is(err, errTooLarge) {
		t.Errorf("got %q, %v, %v", path, found, err)
	}
}
