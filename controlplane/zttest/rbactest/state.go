package rbactest

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"

	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	headermetav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
)

// setState is the filter set_filter_state, of both levels.
func (s *stream) setState(values []*setstatev3.FilterStateValue) error {
	for _, v := range values {
		if v.GetFactoryKey() != "envoy.string" {
			return fmt.Errorf("%s is made by %q", v.GetObjectKey(), v.GetFactoryKey())
		}
		f := v.GetFormatString()
		text, err := s.format(f.GetTextFormatSource().GetInlineString(), f.GetOmitEmptyValues())
		if err != nil {
			return fmt.Errorf("%s: %w", v.GetObjectKey(), err)
		}
		if text == "" && v.GetSkipIfEmpty() {
			continue
		}
		s.state[v.GetObjectKey()] = text
	}
	return nil
}

var command = regexp.MustCompile(`%([A-Z_]+)(?:\((.*?)\))?%`)

// format expands the command operators of a format string. What is absent is "-",
// or nothing if omitted.
func (s *stream) format(format string, omit bool) (string, error) {
	var out strings.Builder
	for format != "" {
		at := strings.IndexByte(format, '%')
		if at < 0 {
			out.WriteString(format)
			break
		}
		out.WriteString(format[:at])
		format = format[at:]
		m := command.FindStringSubmatch(format)
		if m == nil || !strings.HasPrefix(format, m[0]) {
			return "", fmt.Errorf("the format %q is unknown", format)
		}
		v, ok, err := s.operator(m[1], m[2])
		if err != nil {
			return "", err
		}
		if !ok && !omit {
			v = "-"
		}
		out.WriteString(v)
		format = format[len(m[0]):]
	}
	return out.String(), nil
}

func (s *stream) operator(name, argument string) (value string, ok bool, err error) {
	switch {
	case name == "PATH" && argument == "NQ:PATH":
		path, ok := s.header(":path")
		path, _, _ = strings.Cut(path, "?")
		return path, ok, nil
	case name == "REQ" && s.http:
		if err := modelled(strings.ToLower(argument)); err != nil {
			return "", false, err
		}
		v, ok := s.header(argument)
		return v, ok, nil
	case name == "START_TIME" && argument == "%s":
		return strconv.FormatInt(s.req.Time.Unix(), 10), true, nil
	case name == "DYNAMIC_METADATA":
		keys := strings.Split(argument, ":")
		switch v := lookup(s.metadata[keys[0]], keys[1:]).(type) {
		case absent, nil:
			return "", false, nil
		case string:
			return v, true, nil
		default:
			b, err := json.Marshal(v)
			return string(b), true, err
		}
	case name == "ROUTE_NAME" && argument == "":
		return s.routed, s.routed != "", nil
	case name == "DOWNSTREAM_PEER_URI_SAN":
		return s.req.Peer, s.req.Peer != "", nil
	}
	return "", false, fmt.Errorf("the operator %s(%s) is unknown", name, argument)
}

// headerToMetadata is the filter of that name. A rewritten value that is empty is
// not set, nor is one of 8 KiB; one whose expression does not match stays as it is.
func (s *stream) headerToMetadata(c *headermetav3.Config) error {
	added := map[string]map[string]any{}
	for _, rule := range c.GetRequestRules() {
		if err := modelled(strings.ToLower(rule.GetHeader())); err != nil {
			return err
		}
		value, present := s.header(rule.GetHeader())
		if present && rule.GetRemove() {
			s.removeHeader(rule.GetHeader())
		}
		kv := rule.GetOnHeaderPresent()
		if !present {
			kv = rule.GetOnHeaderMissing()
		}
		if kv == nil {
			continue
		}
		if kv.GetValue() != "" {
			value = kv.GetValue()
		} else if rw := kv.GetRegexValueRewrite(); rw != nil {
			re, err := s.proxy.regexp(rw.GetPattern().GetRegex())
			if err != nil {
				return err
			}
			value = re.ReplaceAllString(value, backReference.ReplaceAllString(strings.ReplaceAll(rw.GetSubstitution(), "$", "$$"), "$${$1}"))
		}
		if value == "" || len(value) >= 8<<10 {
			continue
		}
		if kv.GetType() != headermetav3.Config_STRING || kv.GetMetadataNamespace() == "" {
			return fmt.Errorf("%s becomes metadata %q of type %s", rule.GetHeader(), kv.GetMetadataNamespace(), kv.GetType())
		}
		if added[kv.GetMetadataNamespace()] == nil {
			added[kv.GetMetadataNamespace()] = map[string]any{}
		}
		added[kv.GetMetadataNamespace()][kv.GetKey()] = value
	}
	for namespace, values := range added {
		if s.metadata[namespace] == nil {
			s.metadata[namespace] = map[string]any{}
		}
		maps.Copy(s.metadata[namespace], values)
	}
	return nil
}

// backReference is RE2's form of a group in a substitution.
var backReference = regexp.MustCompile(`\\([0-9])`)
