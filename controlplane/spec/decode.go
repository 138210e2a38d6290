package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// decoder turns the nodes of one document into its protobuf.
type decoder struct {
	*reader
	offset int // lines of the file before the piece
	doc    *Document
}

// document reads one document whose text begins after offset lines, reports its
// problems and returns it, or nil when it has no identity.
func (r *reader) document(root *yaml.Node, offset int) *Document {
	d := &decoder{reader: r, offset: offset, doc: &Document{Document: &ztv1.Document{}, file: r.name}}
	if !d.clean(root, "", 1) {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		what := describe(root)
		if root.Kind == yaml.ScalarNode && root.Tag == "!!str" {
			what = "a text" // of a file that is no spec: it may be a key, or a token
		}
		d.fault(root, codeNotDocument, "", "", "this is %s", what)
		return nil
	}
	d.spot("", root)
	if !d.envelope(root) || r.problems.full() {
		return nil
	}
	slices.SortStableFunc(d.doc.spots, func(a, b spot) int { return cmp.Compare(a.path, b.path) })
	r.problems = append(r.problems, d.doc.judge(schemaProblems)...)
	r.problems = append(r.problems, d.doc.judge(ruleProblems)...)
	if k := d.doc.Key(); specField(k.Kind) == nil || !isLabel(k.Namespace) || !isLabel(k.Name) {
		return nil
	}
	return d.doc
}

// judge is the problems that stage finds in d, without those about a place that
// an earlier stage has found a problem in: they would only follow from it.
func (d *Document) judge(stage func(*Document) Problems) Problems {
	found := slices.DeleteFunc(stage(d), func(p Problem) bool { return d.faulty(p.Path) })
	for _, p := range found {
		d.faults = append(d.faults, p.Path)
	}
	return found
}

// faulty tells whether a known problem is at path, in it, or around it.
func (d *Document) faulty(path string) bool {
	within := func(inner, outer string) bool {
		rest, ok := strings.CutPrefix(inner, outer)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	return slices.ContainsFunc(d.faults, func(f string) bool { return within(f, path) || within(path, f) })
}

// fault reports a problem at n.
func (d *decoder) fault(n *yaml.Node, code, path, hint, format string, args ...any) {
	if d.problems.full() {
		return
	}
	d.add(code, n.Line+d.offset, n.Column, path, hint, fmt.Sprintf(format, args...))
	d.doc.faults = append(d.doc.faults, path)
}

// spot remembers where the value at path is.
func (d *decoder) spot(path string, n *yaml.Node) {
	shared, ok := d.paths[path]
	if !ok {
		shared = path
		d.paths[path] = path
	}
	d.doc.spots = append(d.doc.spots, spot{shared, int32(n.Line + d.offset), int32(n.Column)})
}

// clean reports what no document may hold, whatever its fields: aliases and
// anchors, tags, keys that stand twice, control characters in escapes, depth.
// It is false when the document is not worth reading further.
func (d *decoder) clean(n *yaml.Node, path string, depth int) bool {
	if depth > maxDepth {
		d.fault(n, codeTooDeep, path, "", "values are nested more than %d deep", maxDepth)
		return false
	}
	if n.Anchor != "" {
		d.fault(n, codeAlias, path, "", "there is the anchor %s", show("&"+n.Anchor))
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fault(n, codeTag, path, "", "there is the tag %s", show(n.Tag))
	}
	ok := true
	switch n.Kind {
	case yaml.AliasNode:
		d.fault(n, codeAlias, path, "", "there is the alias %s", show("*"+n.Value))
	case yaml.ScalarNode:
		if i := badText(n.Value); i >= 0 {
			d.fault(n, codeControl, path, "", "the text has the character %+q", []rune(n.Value[i:])[0])
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			if ok = d.clean(item, index(path, i), depth+1) && ok; d.problems.full() {
				return false
			}
		}
	case yaml.MappingNode:
		seen := make(map[string]int, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			at := join(path, keyName(key))
			line, twice := seen[key.Value]
			switch {
			case key.Kind != yaml.ScalarNode && !refused(key):
				d.fault(key, codeWrongType, at, "", "the key is %s, not a text", describe(key))
				ok = d.clean(key, at, depth+1) && ok
			case key.Tag == "!!merge":
				d.fault(key, codeAlias, at, "", "there is a merge key")
				continue
			case twice && !refused(key):
				d.fault(key, codeDuplicateKey, at, "", "%s stands already in line %d", show(key.Value), line+d.offset)
			default:
				d.clean(key, at, depth+1) // a scalar or an alias: it has no depth
				seen[key.Value] = key.Line
			}
			ok = d.clean(value, at, depth+1) && ok
			if d.problems.full() {
				return false
			}
		}
	}
	return ok
}

// pairs calls f for each key of the mapping n that clean has not refused.
func (d *decoder) pairs(n *yaml.Node, f func(key, value *yaml.Node)) {
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content) && !d.problems.full(); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || refused(key) || key.Tag == "!!merge" || seen[key.Value] {
			continue
		}
		seen[key.Value] = true
		f(key, n.Content[i+1])
	}
}

// refused tells whether clean has reported n, so that its value is not judged.
func refused(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || n.Style&yaml.TaggedStyle != 0
}

// envelope reads apiVersion, kind, metadata and spec. It is false when the
// document is of another world or kind, so that more problems would be noise.
func (d *decoder) envelope(root *yaml.Node) bool {
	doc := d.doc.ProtoReflect()
	md := doc.Descriptor()
	written := map[string]*yaml.Node{}
	names := []string{"apiVersion", "kind", "metadata", "spec"}
	d.pairs(root, func(key, value *yaml.Node) { written[key.Value] = value })
	if v := written["apiVersion"]; v != nil && v.Value != APIVersion && !refused(v) {
		d.fault(v, codeAPIVersion, "apiVersion", "", "the apiVersion is %s", describe(v))
		return false
	}
	d.pairs(root, func(key, value *yaml.Node) {
		if !slices.Contains(names, key.Value) {
			d.fault(key, codeUnknownField, key.Value, didYouMean(key.Value, names), "a document has no field %s", show(key.Value))
			return
		}
		d.spot(key.Value, value)
		if key.Value != "spec" {
			d.field(value, doc, fieldNamed(md, key.Value), key.Value)
		}
	})
	for _, name := range names {
		if written[name] == nil && !d.doc.faulty(name) {
			d.fault(root, codeMissing, name, "", "%s is missing", name)
		}
	}
	kind := d.doc.GetKind()
	fd := specField(kind)
	switch {
	case fd != nil:
	case slices.Contains(laterKinds, kind):
		d.fault(written["kind"], codeUnsupported, "kind", "", "the kind %s is not supported yet", kind)
		return false
	case kind != "":
		d.fault(written["kind"], codeUnknownKind, "kind", didYouMean(kind, kinds), "there is no kind %s", show(kind))
		return false
	default:
		if v := written["kind"]; v != nil && !d.doc.faulty("kind") {
			d.fault(v, codeUnknownKind, "kind", "", "the kind is empty")
		}
		return false
	}
	if v := written["spec"]; v != nil {
		d.value(v, "spec", "a mapping", func() { d.message(v, doc.Mutable(fd).Message(), "spec") })
	}
	return true
}

// message reads the mapping n into m.
func (d *decoder) message(n *yaml.Node, m protoreflect.Message, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, path, "a mapping")
		return
	}
	md := m.Descriptor()
	d.pairs(n, func(key, value *yaml.Node) {
		name, at := key.Value, join(path, keyName(key))
		fd := fieldNamed(md, name)
		switch {
		case fd != nil:
			d.spot(at, value)
			d.field(value, m, fd, at)
		case slices.Contains(laterFields[md.Name()], name):
			d.fault(key, codeUnsupported, at, "", "%s is not supported yet", show(name))
		default:
			hint := didYouMean(name, fieldNames(md))
			if hint == "" {
				hint = "The fields here are " + strings.Join(fieldNames(md), ", ") + "."
			}
			d.fault(key, codeUnknownField, at, hint, "there is no field %s", show(name))
		}
	})
}

// value calls read unless n is refused or null.
func (d *decoder) value(n *yaml.Node, path, want string, read func()) {
	switch {
	case refused(n):
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		d.fault(n, codeNull, path, "", "there is no value; the field takes %s", want)
	default:
		read()
	}
}

// field reads n into the field fd of m.
func (d *decoder) field(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, path string) {
	d.value(n, path, wanted(fd), func() {
		switch {
		case fd.IsMap():
			d.mapOf(n, m.Mutable(fd).Map(), fd.MapValue(), path)
		case fd.IsList():
			d.list(n, m.Mutable(fd).List(), fd, path)
		case isMessage(fd, durationName):
			if v, ok := d.duration(n, path); ok {
				m.Set(fd, protoreflect.ValueOfMessage(v.ProtoReflect()))
			}
		case isMessage(fd, timestampName):
			if v, ok := d.timestamp(n, path); ok {
				m.Set(fd, protoreflect.ValueOfMessage(v.ProtoReflect()))
			}
		case fd.Message() != nil:
			d.message(n, m.Mutable(fd).Message(), path)
		default:
			v, ok := d.scalar(n, fd.Kind(), path)
			switch {
			case ok && fd.Kind() == protoreflect.StringKind && v.String() == "":
				d.fault(n, codeMissing, path, "Write a value; leave out a field that is not needed.", "%s is empty", lastOf(path))
			case ok:
				m.Set(fd, v)
			}
		}
	})
}

// The messages that are written as something else than a mapping.
const (
	durationName  = "google.protobuf.Duration"
	timestampName = "google.protobuf.Timestamp"
	stringsName   = "zt.v1alpha1.Strings"
)

func isMessage(fd protoreflect.FieldDescriptor, name protoreflect.FullName) bool {
	return fd.Message() != nil && fd.Message().FullName() == name
}

// list reads the sequence n.
func (d *decoder) list(n *yaml.Node, l protoreflect.List, fd protoreflect.FieldDescriptor, path string) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, path, "a list")
		return
	}
	if len(n.Content) == 0 {
		d.fault(n, codeEmptyList, path, "", "the list is empty")
	}
	if len(n.Content) > 256 {
		// The schema says so too, but only after every item has been read and
		// judged; it is left to do so for lists that are short.
		if most := maxItems(fd); most > 0 && len(n.Content) > most {
			d.fault(n, codeTooLong, path, "", "the list has %d items, more than %d", len(n.Content), most)
			return
		}
	}
	for i, item := range n.Content {
		if d.problems.full() {
			return
		}
		at := index(path, i)
		d.spot(at, item)
		// A refused item keeps its place, so that the indexes of the rest hold.
		v := l.NewElement()
		d.value(item, at, wantedItem(fd), func() {
			if fd.Message() != nil {
				d.message(item, v.Message(), at)
			} else if s, ok := d.scalar(item, fd.Kind(), at); ok {
				v = s
			}
		})
		l.Append(v)
	}
}

// mapOf reads the mapping n, whose values are texts or lists of texts.
func (d *decoder) mapOf(n *yaml.Node, m protoreflect.Map, fd protoreflect.FieldDescriptor, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, path, "a mapping")
		return
	}
	if len(n.Content) == 0 && strings.HasPrefix(path, "spec.") {
		d.fault(n, codeEmptyList, path, "", "the mapping is empty")
	}
	d.pairs(n, func(key, value *yaml.Node) {
		at := join(path, keyName(key))
		d.spot(at, value)
		k, ok := d.scalar(key, protoreflect.StringKind, at)
		if !ok {
			return
		}
		d.value(value, at, wanted(fd), func() {
			if isMessage(fd, stringsName) {
				list := m.Mutable(k.MapKey()).Message()
				values := list.Descriptor().Fields().ByName("values")
				d.list(value, list.Mutable(values).List(), values, at)
			} else if v, ok := d.scalar(value, protoreflect.StringKind, at); ok {
				m.Set(k.MapKey(), v)
			}
		})
	})
}

// scalar reads n as a value of kind, which is one of those of spec.proto.
func (d *decoder) scalar(n *yaml.Node, kind protoreflect.Kind, path string) (v protoreflect.Value, ok bool) {
	switch kind {
	case protoreflect.StringKind:
		if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
			return protoreflect.ValueOfString(n.Value), badText(n.Value) < 0
		}
		d.wrongType(n, path, "a text")
	case protoreflect.BoolKind:
		if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" && (n.Value == "true" || n.Value == "false") {
			return protoreflect.ValueOfBool(n.Value == "true"), true
		}
		d.wrongType(n, path, "true or false")
	case protoreflect.Uint32Kind:
		digits := n.Value != "" && strings.Trim(n.Value, "0123456789") == "" && (n.Value[0] != '0' || n.Value == "0")
		negative := n.Tag == "!!int" && strings.HasPrefix(n.Value, "-")
		if n.Kind != yaml.ScalarNode || n.Tag == "!!str" || !digits && !negative {
			d.wrongType(n, path, "a decimal number")
			break
		}
		u, err := strconv.ParseUint(n.Value, 10, 32)
		if err != nil {
			d.fault(n, codeRange, path, "", "%s is out of range", show(n.Value))
			break
		}
		return protoreflect.ValueOfUint32(uint32(u)), true
	default:
		panic("spec: spec.proto has a field of kind " + kind.String() + ", which the decoder does not read")
	}
	return protoreflect.Value{}, false
}

// duration reads n as Go writes durations.
func (d *decoder) duration(n *yaml.Node, path string) (proto.Message, bool) {
	if n.Kind != yaml.ScalarNode {
		d.wrongType(n, path, "a duration")
		return nil, false
	}
	v, err := time.ParseDuration(n.Value)
	if err != nil || n.Tag != "!!str" {
		d.fault(n, codeDuration, path, "", "%s is not a duration", show(n.Value))
		return nil, false
	}
	return durationpb.New(v), true
}

// timestamp reads n as RFC 3339 writes points in time. YAML takes such a text
// for a date where it is not quoted.
func (d *decoder) timestamp(n *yaml.Node, path string) (proto.Message, bool) {
	if n.Kind != yaml.ScalarNode {
		d.wrongType(n, path, "a time")
		return nil, false
	}
	v, err := parseTime(n.Value)
	if err != nil || n.Tag != "!!str" && n.Tag != "!!timestamp" {
		d.fault(n, codeTimestamp, path, "", "%s is not a time", show(n.Value))
		return nil, false
	}
	return timestamppb.New(v), true
}

func (d *decoder) wrongType(n *yaml.Node, path, want string) {
	hint := ""
	switch {
	case n.Kind == yaml.ScalarNode && want == "a text":
		hint = "Quote it: " + show(n.Value)
	case n.Kind == yaml.ScalarNode && want == "a list":
		hint = "Write a list: [" + n.Value + "]"
		if len(n.Value) > 64 {
			hint = "Write a list: [...]"
		}
	case want == "a decimal number":
		hint = "Write it in decimal digits, without quotes, sign, leading zeros or separators."
	}
	d.fault(n, codeWrongType, path, hint, "this is %s; the field takes %s", describe(n), want)
}

// wanted is what the field fd takes, in words.
func wanted(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return "a mapping"
	case fd.IsList(), isMessage(fd, stringsName):
		return "a list"
	}
	return wantedItem(fd)
}

func wantedItem(fd protoreflect.FieldDescriptor) string {
	switch {
	case isMessage(fd, durationName):
		return "a duration"
	case isMessage(fd, timestampName):
		return "a time"
	case fd.Message() != nil:
		return "a mapping"
	case fd.Kind() == protoreflect.BoolKind:
		return "true or false"
	case fd.Kind() == protoreflect.StringKind:
		return "a text"
	}
	return "a decimal number"
}

// describe is what n is, in words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "the number " + show(n.Value)
	case "!!bool":
		return "the boolean " + show(n.Value)
	case "!!timestamp":
		return "the date " + show(n.Value)
	case "!!null":
		return "nothing"
	}
	return "the text " + show(n.Value)
}

// keyName is the key n in a path, cut to a readable length.
func keyName(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return "?"
	}
	if quoted := show(n.Value); len(n.Value) > 64 || len(quoted) != len(n.Value)+2 {
		return quoted
	}
	return n.Value
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
