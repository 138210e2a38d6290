package rbactest

import (
	"fmt"
	"strings"

	xcorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	fractionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/runtime_fraction/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// match evaluates a matcher; nil means that nothing matched. A subtree that was
// entered and finds nothing is as if its key had not been there: a list goes on
// to its next field, a prefix map to its next shorter prefix, and at last to
// on_no_match.
func (s *stream) match(m *matcherv3.Matcher) (*rbacv3.Action, error) {
	var action *rbacv3.Action
	var err error
	switch t := m.GetMatcherType().(type) {
	case *matcherv3.Matcher_MatcherList_:
		action, err = s.matchList(t.MatcherList)
	case *matcherv3.Matcher_MatcherTree_:
		action, err = s.matchTree(t.MatcherTree)
	case nil:
	default:
		return nil, fmt.Errorf("a matcher is a %T", t)
	}
	if action != nil || err != nil || m.GetOnNoMatch() == nil {
		return action, err
	}
	return s.onMatch(m.GetOnNoMatch())
}

func (s *stream) onMatch(o *matcherv3.Matcher_OnMatch) (*rbacv3.Action, error) {
	switch t := o.GetOnMatch().(type) {
	case *matcherv3.Matcher_OnMatch_Matcher:
		return s.match(t.Matcher)
	case *matcherv3.Matcher_OnMatch_Action:
		m, err := s.proxy.decode(t.Action.GetTypedConfig())
		if err != nil {
			return nil, err
		}
		action, ok := m.(*rbacv3.Action)
		if !ok {
			return nil, fmt.Errorf("an action is a %T", m)
		}
		return action, nil
	default:
		return nil, fmt.Errorf("what a match does is a %T", t)
	}
}

func (s *stream) matchList(l *matcherv3.Matcher_MatcherList) (*rbacv3.Action, error) {
	for _, f := range l.GetMatchers() {
		ok, err := s.predicate(f.GetPredicate())
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if action, err := s.onMatch(f.GetOnMatch()); action != nil || err != nil {
			return action, err
		}
	}
	return nil, nil
}

func (s *stream) matchTree(t *matcherv3.Matcher_MatcherTree) (*rbacv3.Action, error) {
	in, err := s.input(t.GetInput())
	if err != nil {
		return nil, err
	}
	if in.custom {
		return nil, fmt.Errorf("the input %s is no string, which a map needs", t.GetInput().GetName())
	}
	if !in.present {
		return nil, nil
	}
	switch t := t.GetTreeType().(type) {
	case *matcherv3.Matcher_MatcherTree_ExactMatchMap:
		if o := t.ExactMatchMap.GetMap()[in.text]; o != nil {
			return s.onMatch(o)
		}
		return nil, nil
	case *matcherv3.Matcher_MatcherTree_PrefixMatchMap:
		m := t.PrefixMatchMap.GetMap()
		for n := len(in.text); n >= 0; n-- {
			o := m[in.text[:n]]
			if o == nil {
				continue
			}
			if action, err := s.onMatch(o); action != nil || err != nil {
				return action, err
			}
		}
		return nil, nil
	default:
		return nil, fmt.Errorf("a matcher tree is a %T", t)
	}
}

func (s *stream) predicate(p *matcherv3.Matcher_MatcherList_Predicate) (bool, error) {
	switch t := p.GetMatchType().(type) {
	case *matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_:
		return s.single(t.SinglePredicate)
	case *matcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		ok, err := s.predicate(t.NotMatcher)
		return !ok, err
	case *matcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		for _, p := range t.AndMatcher.GetPredicate() {
			if ok, err := s.predicate(p); !ok || err != nil {
				return false, err
			}
		}
		return true, nil
	case *matcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		for _, p := range t.OrMatcher.GetPredicate() {
			if ok, err := s.predicate(p); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	default:
		return false, fmt.Errorf("a predicate is a %T", t)
	}
}

func (s *stream) single(p *matcherv3.Matcher_MatcherList_Predicate_SinglePredicate) (bool, error) {
	in, err := s.input(p.GetInput())
	if err != nil {
		return false, err
	}
	switch t := p.GetMatcher().(type) {
	case *matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch:
		if in.custom {
			return false, fmt.Errorf("the input %s is no string", p.GetInput().GetName())
		}
		if !in.present {
			return false, nil
		}
		return s.proxy.matchString(t.ValueMatch, in.text)
	case *matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch:
		return s.customMatch(t.CustomMatch, in)
	default:
		return false, fmt.Errorf("a predicate matches by %T", t)
	}
}

// customMatch knows the input matchers that are no string matchers.
func (s *stream) customMatch(x *xcorev3.TypedExtensionConfig, in input) (bool, error) {
	m, err := s.proxy.decode(x.GetTypedConfig())
	if err != nil {
		return false, err
	}
	switch m := m.(type) {
	case *fractionv3.RuntimeFraction:
		f := m.GetRuntimeFraction()
		if f.GetDefaultValue().GetDenominator() != typev3.FractionalPercent_HUNDRED {
			return false, fmt.Errorf("the runtime key %s has another denominator than 100", f.GetRuntimeKey())
		}
		share, set := s.proxy.Runtime[f.GetRuntimeKey()]
		if !set {
			share = float64(f.GetDefaultValue().GetNumerator())
		}
		if share != 0 && share != 100 {
			return false, fmt.Errorf("the runtime key %s lets some pass", f.GetRuntimeKey())
		}
		return in.present && share == 100, nil
	case *ipv3.Ip:
		return in.present && containsIP(m.GetCidrRanges(), in.text), nil
	case *metadatav3.Metadata:
		if !in.custom {
			return false, fmt.Errorf("%s matches metadata, and its input is text", x.GetName())
		}
		ok, err := s.proxy.matchValue(m.GetValue(), in.value)
		return ok != m.GetInvert(), err
	case *matcherv3.CelMatcher:
		if !in.cel {
			return false, fmt.Errorf("%s is CEL, and its input is not its attributes", x.GetName())
		}
		return s.celMatcher(m)
	default:
		return false, fmt.Errorf("%s is a %T", x.GetName(), m)
	}
}

func fold(s string, ignoreCase bool) string {
	if ignoreCase {
		return strings.ToLower(s)
	}
	return s
}
