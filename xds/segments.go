package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// maxSegments bounds a path of kind Pattern. One more than 17 would make the
// expressions below larger than Envoy's limit for one, 100 instructions.
const maxSegments = 16

// The expressions of the segment trie, which read the ":path" header after it was
// normalised. Each of them matches the whole header, the query included, and
// leaves "=" and what it is about; where it does not match the header stays as it
// is, which begins with "/". So no path can pass for a segment that it does not
// have: for /a/b?c/d,
//
//	s1 "=a"  s2 "=b"  s3 "/a/b?c/d"   the n-th segment, not empty
//	t1 "=/b" t2 "="   t3 "/a/b?c/d"   all that follows n segments, not empty
//
// \C is any byte: a query need not be UTF-8.
const (
	segmentBytes = `[!-.0->@-~]+` // ASCII without "/", "?", space and control characters
	tailBytes    = `[!->@-~]*`    // and with "/"
)

func segmentExpr(n int) string {
	return fmt.Sprintf(`^(?:/%s){%d}/(%s)(?:[/?]\C*)?$`, segmentBytes, n-1, segmentBytes)
}

func tailExpr(n int) string {
	return fmt.Sprintf(`^(?:/%s){%d}((?:/%s)?)(?:[?]\C*)?$`, segmentBytes, n, tailBytes)
}

func segmentState(n int) string { return "zt.s" + strconv.Itoa(n) }
func tailState(n int) string    { return "zt.t" + strconv.Itoa(n) }

const (
	segmentMetadata = "zt.path" // the namespace of dynamic metadata
	segmentMark     = "="
)

// segmentRule reads one segment or tail into metadata.
func segmentRule(key, expr string) *headertometadatav3.Config_Rule {
	return &headertometadatav3.Config_Rule{
		Header: ":path",
		OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{
			MetadataNamespace: segmentMetadata,
			Key:               key,
			RegexValueRewrite: &typematcherv3.RegexMatchAndSubstitute{
				Pattern:      &typematcherv3.RegexMatcher{Regex: expr},
				Substitution: segmentMark + `\1`,
			},
		},
	}
}

// segment is a node of the trie of patterns: what the first n segments are. Only
// patterns that have a "*" before their end stand in it, and each only down to its
// last "*"; what follows that is compared as a whole.
type segment struct {
	literal map[string]*segment
	any     *segment              // "*"
	exact   map[string]*methodSet // tails
	prefix  map[string]*methodSet
	rest    methodSet // any tail: "/a/*/**"
}

// at is the node below n where the first segments of a pattern lead.
func (n *segment) at(segments []string) *segment {
	for _, s := range segments {
		switch {
		case s == "*":
			if n.any == nil {
				n.any = &segment{}
			}
			n = n.any
		default:
			if n.literal == nil {
				n.literal = map[string]*segment{}
			}
			if n.literal[s] == nil {
				n.literal[s] = &segment{}
			}
			n = n.literal[s]
		}
	}
	return n
}

func (n *segment) add(r *Rule, p pattern) {
	n = n.at(p.segments)
	switch {
	case p.rest && p.tail == "":
		n.rest.add(r)
	case p.rest:
		methods(&n.exact, segmentMark+p.tail).add(r)
		methods(&n.prefix, segmentMark+p.tail+"/").add(r)
	default:
		methods(&n.exact, segmentMark+p.tail).add(r)
	}
}

// pattern is a path of kind Pattern, taken apart behind its last "*".
type pattern struct {
	segments []string // down to the last "*"
	tail     string   // what follows: "" or "/b/c"
	rest     bool     // and then anything
}

func newPattern(value string) pattern {
	var p pattern
	value, p.rest = strings.CutSuffix(value, "/**")
	segments := strings.Split(value, "/")[1:]
	n := len(segments)
	for n > 0 && segments[n-1] != "*" {
		n--
	}
	p.segments = segments[:n]
	if n < len(segments) {
		p.tail = "/" + strings.Join(segments[n:], "/")
	}
	return p
}

// plain is p as one of the kinds that need no trie, if it is one: without "*", or
// with one only as the last segment.
func (p Path) plain() (Path, bool) {
	if p.Kind != Pattern {
		return p, true
	}
	if !slices.Contains(strings.Split(p.Value, "/"), "*") {
		if value, ok := strings.CutSuffix(p.Value, "/**"); ok {
			return Path{Value: cmp.Or(value, "/"), Kind: Rest}, true
		}
		return Path{Value: p.Value, Kind: Exact}, true
	}
	if value, ok := strings.CutSuffix(p.Value, "*"); ok && strings.HasSuffix(value, "/") && !slices.Contains(strings.Split(value, "/"), "*") {
		return Path{Value: value, Kind: OneSegment}, true
	}
	return Path{}, false
}

// segments lowers a node whose n segments have matched.
func (l *lowering) segments(s *segment, n int) *onMatch {
	next := l.methods(&s.rest)
	next = l.b.byPrefix(l.b.stateInput(tailState(n)), l.methodMap(s.prefix), next)
	next = l.b.byExact(l.b.stateInput(tailState(n)), l.methodMap(s.exact), next)
	if s.any != nil {
		next = l.b.byPrefix(l.b.stateInput(segmentState(n+1)), map[string]*onMatch{segmentMark: l.segments(s.any, n+1)}, next)
	}
	literals := make(map[string]*onMatch, len(s.literal))
	for _, text := range slices.Sorted(maps.Keys(s.literal)) {
		literals[segmentMark+text] = l.segments(s.literal[text], n+1)
	}
	return l.b.byExact(l.b.stateInput(segmentState(n+1)), literals, next)
}
