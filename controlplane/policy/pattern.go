package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Path is what a rule says of a canonical path.
type Path struct {
	Pattern string
	Kind    PathKind
}

// PathKind is how a Path's pattern is compared.
type PathKind uint8

// The kinds of Path. A path has one kind only: Pattern is for what the others
// cannot say.
const (
	Exact   PathKind = iota // the pattern itself
	Rest                    // "/a": /a, /a/ and all below it; "/": everything
	Pattern                 // "/a/*/c": "*" is one non-empty segment, a last "**" is any rest
)

const (
	anySegment = "*"
	anyRest    = "**"
)

// maxSegment bounds what stands for "*", and what follows the last one where that
// is compared: Envoy notes no longer part of a path (8 KiB, with a mark of its own),
// and what it does not note it does not match.
const maxSegment = 8<<10 - 2

// newPath reads a path as a grant writes it. "{name}" is "*".
func newPath(text string) Path {
	segments := strings.Split(text, "/")
	wild := false
	for i, s := range segments {
		if len(s) > 2 && s[0] == '{' && s[len(s)-1] == '}' {
			segments[i] = anySegment
		}
		wild = wild || segments[i] == anySegment
	}
	last := len(segments) - 1
	switch {
	case wild:
		return Path{Pattern: strings.Join(segments, "/"), Kind: Pattern}
	case segments[last] == anyRest:
		return Path{Pattern: cmp.Or(strings.Join(segments[:last], "/"), "/"), Kind: Rest}
	}
	return Path{Pattern: text, Kind: Exact}
}

// newPaths reads a list of paths: sorted, none twice; nil for none.
func newPaths(list []string) []Path {
	var out []Path
	for _, text := range list {
		out = append(out, newPath(text))
	}
	slices.SortFunc(out, Path.compare)
	return slices.Compact(out)
}

func (p Path) compare(o Path) int {
	return cmp.Or(cmp.Compare(p.Pattern, o.Pattern), cmp.Compare(p.Kind, o.Kind))
}

// String is p as a grant writes it.
func (p Path) String() string {
	if p.Kind == Rest {
		return strings.TrimSuffix(p.Pattern, "/") + "/" + anyRest
	}
	return p.Pattern
}

// Matches tells whether the canonical path is one that p speaks of.
func (p Path) Matches(path string) bool {
	switch p.Kind {
	case Exact:
		return path == p.Pattern
	case Rest:
		return p.Pattern == "/" || path == p.Pattern || strings.HasPrefix(path, p.Pattern+"/")
	case Pattern:
		return matchSegments(p.Pattern, path)
	}
	return false
}

// matchSegments compares segment by segment. Both begin with "/".
func matchSegments(pattern, path string) bool {
	for {
		if pattern == "" || path == "" {
			return pattern == path || pattern == "/"+anyRest
		}
		var want, got string
		want, pattern = cutSegment(pattern)
		if want == anyRest {
			return true
		}
		got, path = cutSegment(path)
		if want != got && (want != anySegment || got == "") {
			return false
		}
		if want == anySegment && (len(got) > maxSegment || len(path) > maxSegment && compared(pattern)) {
			return false
		}
	}
}

// compared tells whether the rest of a pattern behind a "*" is compared as a whole.
func compared(rest string) bool {
	return rest != "/"+anyRest && !strings.Contains(rest+"/", "/"+anySegment+"/")
}

// cutSegment takes "/segment" off s, which begins with "/".
func cutSegment(s string) (segment, rest string) {
	s = s[1:]
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// segments is the pattern of p as a list: "*" is any non-empty one, a last "**"
// any rest.
func (p Path) segments() []string { return strings.Split(p.String()[1:], "/") }

// Intersects tells whether some canonical path is one of both.
func (p Path) Intersects(o Path) bool {
	_, ok := commonPath(p, o)
	return ok
}

// commonPath is a path that both match, if there is one.
func commonPath(p, o Path) (path string, ok bool) {
	a, b := p.segments(), o.segments()
	var out []string
	for {
		switch {
		case len(a) == 0 && len(b) == 0:
			return "/" + strings.Join(out, "/"), true
		case len(a) > 0 && a[0] == anyRest:
			return finish(out, b)
		case len(b) > 0 && b[0] == anyRest:
			return finish(out, a)
		case len(a) == 0 || len(b) == 0:
			return "", false
		}
		switch {
		case a[0] == anySegment && b[0] == anySegment:
			out = append(out, "x")
		case a[0] == anySegment && b[0] != "":
			out = append(out, b[0])
		case b[0] == anySegment && a[0] != "", a[0] == b[0]:
			out = append(out, a[0])
		default:
			return "", false
		}
		a, b = a[1:], b[1:]
	}
}

// finish is a path that begins with out and goes on as rest says, which any rest
// is content with.
func finish(out, rest []string) (string, bool) {
	for _, s := range rest {
		switch s {
		case anySegment:
			out = append(out, "x")
		case anyRest:
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/"), true
}
