package rbactest

import (
	"fmt"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	typematcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// absent is a value that is not there, which matches nothing, null neither.
type absent struct{}

// lookup follows keys through objects.
func lookup(root map[string]any, path []string) any {
	var v any = root
	if root == nil {
		return absent{}
	}
	for _, key := range path {
		object, ok := v.(map[string]any)
		if !ok {
			return absent{}
		}
		if v, ok = object[key]; !ok {
			return absent{}
		}
	}
	return v
}

// sourced is metadata of the request; that of a route is not modelled.
func (s *stream) sourced(m *rbacv3.SourcedMetadata) (bool, error) {
	if m.GetMetadataSource() != rbacv3.MetadataSource_DYNAMIC {
		return false, fmt.Errorf("metadata of %s", m.GetMetadataSource())
	}
	return s.matchMetadata(m.GetMetadataMatcher())
}

// matchMetadata is envoy.type.matcher.v3.MetadataMatcher.
func (s *stream) matchMetadata(m *typematcherv3.MetadataMatcher) (bool, error) {
	var path []string
	for _, seg := range m.GetPath() {
		path = append(path, seg.GetKey())
	}
	ok, err := s.proxy.matchValue(m.GetValue(), lookup(s.metadata[m.GetFilter()], path))
	return ok != m.GetInvert(), err
}

// matchValue is envoy.type.matcher.v3.ValueMatcher.
func (p *Proxy) matchValue(m *typematcherv3.ValueMatcher, v any) (bool, error) {
	switch t := m.GetMatchPattern().(type) {
	case *typematcherv3.ValueMatcher_NullMatch_:
		return v == nil, nil
	case *typematcherv3.ValueMatcher_StringMatch:
		text, ok := v.(string)
		if !ok {
			return false, nil
		}
		return p.matchEnvoyString(t.StringMatch, text)
	case *typematcherv3.ValueMatcher_BoolMatch:
		b, ok := v.(bool)
		return ok && b == t.BoolMatch, nil
	case *typematcherv3.ValueMatcher_PresentMatch:
		_, gone := v.(absent)
		return !gone == t.PresentMatch, nil // null is there
	case *typematcherv3.ValueMatcher_DoubleMatch:
		n, ok := v.(float64)
		if !ok {
			return false, nil
		}
		switch d := t.DoubleMatch.GetMatchPattern().(type) {
		case *typematcherv3.DoubleMatcher_Range:
			return d.Range.GetStart() <= n && n < d.Range.GetEnd(), nil
		case *typematcherv3.DoubleMatcher_Exact:
			return n == d.Exact, nil
		default:
			return false, fmt.Errorf("a number matches by %T", d)
		}
	case *typematcherv3.ValueMatcher_ListMatch:
		items, ok := v.([]any)
		if !ok {
			return false, nil
		}
		for _, item := range items {
			if ok, err := p.matchValue(t.ListMatch.GetOneOf(), item); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	case *typematcherv3.ValueMatcher_OrMatch:
		for _, or := range t.OrMatch.GetValueMatchers() {
			if ok, err := p.matchValue(or, v); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	default:
		return false, fmt.Errorf("a value matches by %T", t)
	}
}
