package spec

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// YAML is d as a user would write it, in canonical order, ending in a line feed.
func YAML(d *Document) string {
	doc := normalized(d.Document).ProtoReflect()
	root := &yaml.Node{Kind: yaml.MappingNode}
	root.Content = append(root.Content,
		text("apiVersion"), text(APIVersion),
		text("kind"), text(d.GetKind()),
		text("metadata"), mapping(d.GetMetadata().ProtoReflect()))
	if fd := specField(d.GetKind()); fd != nil && doc.Has(fd) {
		root.Content = append(root.Content, text("spec"), mapping(doc.Get(fd).Message()))
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		// The nodes are mappings, lists and scalars of valid UTF-8 only.
		panic(fmt.Sprintf("spec: print %s: %v", d.Key(), err))
	}
	return b.String()
}

func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case strings.ContainsAny(s, "\t\n") || strings.TrimSpace(s) != s:
		// Plain and block scalars do not keep these in all places.
		n.Style = yaml.DoubleQuotedStyle
	case slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(s)):
		// Texts here, but booleans to readers of YAML 1.1.
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// mapping is m with its fields in the order of their numbers.
func mapping(m protoreflect.Message) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); m.Has(fd) {
			n.Content = append(n.Content, text(fd.JSONName()), value(m.Get(fd), fd))
		}
	}
	return n
}

func value(v protoreflect.Value, fd protoreflect.FieldDescriptor) *yaml.Node {
	switch {
	case fd.IsMap():
		n := &yaml.Node{Kind: yaml.MappingNode}
		var keys []string
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k.String())
			return true
		})
		slices.Sort(keys)
		for _, k := range keys {
			n.Content = append(n.Content, text(k), single(v.Map().Get(protoreflect.ValueOfString(k).MapKey()), fd.MapValue()))
		}
		return n
	case fd.IsList():
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.List().Len() {
			n.Content = append(n.Content, single(v.List().Get(i), fd))
		}
		if fd.Message() == nil {
			n.Style = yaml.FlowStyle
		}
		return n
	}
	return single(v, fd)
}

func single(v protoreflect.Value, fd protoreflect.FieldDescriptor) *yaml.Node {
	switch {
	case isMessage(fd, durationName):
		return text(duration(v.Message().Interface().(*durationpb.Duration).AsDuration()))
	case isMessage(fd, timestampName):
		at := v.Message().Interface().(*timestamppb.Timestamp).AsTime()
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!timestamp", Value: at.Format(time.RFC3339Nano)}
	case isMessage(fd, stringsName):
		values := fd.Message().Fields().ByName("values")
		return value(v.Message().Get(values), values)
	case fd.Message() != nil:
		return mapping(v.Message())
	case fd.Kind() == protoreflect.BoolKind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case fd.Kind() == protoreflect.Uint32Kind:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatUint(v.Uint(), 10)}
	}
	return text(v.String())
}

// duration is d without the units that are zero: 2h, not 2h0m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
