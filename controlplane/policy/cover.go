package policy

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// errTooLarge is returned when a question about patterns has too many cases to be
// answered.
var errTooLarge = errors.New("too many patterns with \"*\" overlap to tell")

// maxSteps bounds how many patterns are advanced by a segment in one question.
const maxSteps = 1 << 20

// uncovered is a canonical path that target matches and none of paths does; found
// is false when there is none.
//
// The patterns are read side by side, segment by segment. After n segments a
// pattern is either lost or at its own n-th place, or in its rest, so what matters
// of a path so far is which patterns are left. Each set of them is looked at once,
// and from it one path goes on for every segment that some pattern tells from
// others, and one for a segment that none of them names.
func uncovered(target Path, paths []Path) (path string, found bool, err error) {
	c := &cover{patterns: make([][]string, 0, len(paths)+1), seen: map[string]bool{}, steps: maxSteps}
	c.patterns = append(c.patterns, target.segments())
	alive := make([]int, len(paths))
	for i, p := range paths {
		alive[i] = i + 1
		c.patterns = append(c.patterns, p.segments())
	}
	segments, found := c.gap(nil, alive)
	if c.steps <= 0 && !found {
		return "", false, errTooLarge
	}
	return "/" + strings.Join(segments, "/"), found, nil
}

// cover is one question: is patterns[0] covered by the others?
type cover struct {
	patterns [][]string
	seen     map[string]bool
	steps    int
}

// gap goes on from the segments so far, which the target and the patterns alive
// can all begin with.
func (c *cover) gap(segments []string, alive []int) (path []string, found bool) {
	n := len(segments)
	for _, i := range alive {
		if c.at(i, n) == anyRest {
			return nil, false
		}
	}
	if c.steps -= len(alive) + 1; c.steps <= 0 || c.known(segments, alive) {
		return nil, false
	}
	target := c.at(0, n)
	ends := n > 0 && (target == anyRest || n == len(c.patterns[0]))
	if ends && !slices.ContainsFunc(alive, func(i int) bool { return n == len(c.patterns[i]) }) {
		return segments, true
	}
	for _, s := range c.choices(segments, alive) {
		var left []int
		for _, i := range alive {
			if n < len(c.patterns[i]) && fits(c.patterns[i][n], s) {
				left = append(left, i)
			}
		}
		if path, found := c.gap(append(slices.Clip(segments), s), left); found {
			return path, true
		}
	}
	return nil, false
}

// at is what pattern i has after n segments: anyRest from there on, or nothing
// behind its end.
func (c *cover) at(i, n int) string {
	p := c.patterns[i]
	if last := len(p) - 1; n >= last && p[last] == anyRest {
		return anyRest
	}
	if n < len(p) {
		return p[n]
	}
	return ""
}

// known tells whether gap was asked before about a path of this length and end,
// with the same patterns alive.
func (c *cover) known(segments []string, alive []int) bool {
	n := len(segments)
	key := strconv.AppendInt(nil, int64(n), 10)
	if n > 0 && segments[n-1] == "" {
		key = append(key, '/') // nothing may follow
	}
	for _, i := range alive {
		key = strconv.AppendInt(append(key, ','), int64(i), 10)
	}
	if c.seen[string(key)] {
		return true
	}
	c.seen[string(key)] = true
	return false
}

// choices is the segments that may come next, one for each that makes a
// difference. An empty segment stands last; "//" alone has two.
func (c *cover) choices(segments []string, alive []int) []string {
	n := len(segments)
	rest := c.at(0, n) == anyRest
	if !rest && n == len(c.patterns[0]) {
		return nil
	}
	if n > 0 && segments[n-1] == "" {
		if n == 1 && rest {
			return []string{""}
		}
		return nil
	}
	if want := c.at(0, n); !rest && want != anySegment {
		return []string{want}
	}
	var out []string
	for _, i := range alive {
		if s := c.at(i, n); s != "" && s != anySegment && n < len(c.patterns[i]) {
			out = append(out, s)
		}
	}
	out = set(out)
	out = append(out, unnamed(out))
	if rest {
		out = append(out, "")
	}
	return out
}

// fits tells whether a segment is what a pattern has in its place.
func fits(want, segment string) bool {
	return want == segment || want == anySegment && segment != "" || want == anyRest
}

// unnamed is a segment that is none of names.
func unnamed(names []string) string {
	s := "x"
	for slices.Contains(names, s) {
		s += "x"
	}
	return s
}
