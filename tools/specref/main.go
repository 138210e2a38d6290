// Command specref writes the reference of the spec: every kind, with the fields,
// types, defaults and limits that spec.proto gives them. It reads a descriptor
// set with comments, as `buf build` makes it, and writes Markdown.
//
//	specref < set.binpb > reference.md
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "specref:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	set, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	r, err := load(set)
	if err != nil {
		return err
	}
	_, err = out.Write(r.markdown())
	return err
}

// rulesName is the extension of the fields' options that has their rules.
const rulesName = "buf.validate.field"

// reference is spec.proto.
type reference struct {
	file  protoreflect.FileDescriptor
	kinds map[protoreflect.Name]bool
}

// load reads a descriptor set twice: the rules of the fields are an extension,
// which the set itself describes.
func load(set []byte) (*reference, error) {
	plain, err := files(set, nil)
	if err != nil {
		return nil, err
	}
	types := dynamicpb.NewTypes(plain)
	if _, err := types.FindExtensionByName(rulesName); err != nil {
		return nil, fmt.Errorf("find the rules of fields: %w", err)
	}
	full, err := files(set, types)
	if err != nil {
		return nil, err
	}
	file, err := full.FindFileByPath("zt/v1alpha1/spec.proto")
	if err != nil {
		return nil, err
	}
	document := file.Messages().ByName("Document")
	if document == nil {
		return nil, errors.New("there is no message Document")
	}
	r := &reference{file: file, kinds: map[protoreflect.Name]bool{}}
	kinds := document.Oneofs().ByName("spec").Fields()
	for i := range kinds.Len() {
		r.kinds[kinds.Get(i).Message().Name()] = true
	}
	return r, nil
}

func files(set []byte, types *dynamicpb.Types) (*protoregistry.Files, error) {
	options := proto.UnmarshalOptions{}
	if types != nil {
		options.Resolver = types
	}
	s := &descriptorpb.FileDescriptorSet{}
	if err := options.Unmarshal(set, s); err != nil {
		return nil, fmt.Errorf("read the descriptor set: %w", err)
	}
	return protodesc.NewFiles(s)
}

// listType is written as a plain list, so it has no fields to a user.
const listType = "Strings"

const preface = `# Reference of the spec

Every kind with its fields, as ` + "`proto/zt/v1alpha1/spec.proto`" + ` has them. What they mean together
is in [spec.md](../spec.md) and on the pages of the kinds. This page is generated: edit the
comments of the .proto file and run ` + "`make generate`" + `.

How values are written:

| type | in YAML |
|---|---|
| duration | ` + "`90s`, `30m`, `2h`, `1h30m`" + ` |
| time | RFC 3339, to the second: ` + "`\"2030-01-31T18:00:00Z\"`" + ` |
| reference | ` + "`name`" + ` of the same namespace, or ` + "`namespace/name`" + ` |
| list | a list; an empty one is an error, never "all" |
| PEM, JWK Set | text, best as a block (` + "`\\|`" + `) |

`

func (r *reference) markdown() []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	b.WriteString("Kinds:")
	sep := " "
	messages := r.file.Messages()
	for i := range messages.Len() {
		if name := messages.Get(i).Name(); r.kinds[name] {
			fmt.Fprintf(&b, "%s%s", sep, link(name))
			sep = ", "
		}
	}
	b.WriteString(".\n")
	for i := range messages.Len() {
		r.message(&b, messages.Get(i))
	}
	return b.Bytes()
}

func (r *reference) message(b *bytes.Buffer, m protoreflect.MessageDescriptor) {
	fmt.Fprintf(b, "\n## %s\n", m.Name())
	fmt.Fprintln(b, escape(r.comment(m)))
	if r.kinds[m.Name()] {
		page := kebab(string(m.Name())) + ".md"
		fmt.Fprintf(b, "\nMore: [%s](%s).\n", page, page)
	}
	if m.Name() == listType {
		return
	}
	b.WriteString("\n| field | type | default | limits | meaning |\n|---|---|---|---|---|\n")
	fields := m.Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.ContainingOneof() != nil {
			continue
		}
		meaning, byDefault := cutDefault(r.comment(f))
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", f.JSONName(), r.typeOf(f), escape(byDefault), limits(f), cell(meaning))
	}
	oneofs := m.Oneofs()
	for i := range oneofs.Len() {
		o := oneofs.Get(i)
		fmt.Fprintf(b, "| `%s` | the message of the kind |  | required | %s |\n", o.Name(), cell(r.comment(o)))
	}
}

// comment is the leading comment of d, its lines joined; those that are indented
// stay lines of their own, and those that are indented far continue one.
func (r *reference) comment(d protoreflect.Descriptor) string {
	text := r.file.SourceLocations().ByDescriptor(d).LeadingComments
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, far):
			b.WriteByte('\n')
			line = strings.TrimSpace(line)
		case b.Len() > 0:
			b.WriteByte(' ')
		}
		b.WriteString(strings.TrimSpace(line))
	}
	return b.String()
}

const far = "        "

// cutDefault takes the sentence that begins with "Default" out of a comment.
func cutDefault(comment string) (rest, byDefault string) {
	before, after, found := strings.Cut(" "+comment, " Default")
	if !found || after == "" || after[0] != ' ' && after[0] != ':' {
		return comment, ""
	}
	byDefault, after, _ = strings.Cut(after+" ", ". ")
	byDefault = strings.TrimSuffix(strings.TrimSpace(strings.TrimPrefix(byDefault, ":")), ".")
	return strings.TrimSpace(strings.TrimSpace(before) + " " + after), byDefault
}

func (r *reference) typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return "map of text to " + r.single(f.MapValue())
	case f.IsList():
		return "list of " + r.single(f)
	}
	return r.single(f)
}

func (r *reference) single(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		return "text"
	case protoreflect.BoolKind:
		return "boolean"
	case protoreflect.Uint32Kind:
		return "number"
	case protoreflect.MessageKind:
		switch f.Message().FullName() {
		case "google.protobuf.Duration":
			return "duration"
		case "google.protobuf.Timestamp":
			return "time"
		}
		if f.Message().ParentFile() == r.file {
			return link(f.Message().Name())
		}
	default:
	}
	panic("specref: no name for the type of " + string(f.FullName()))
}

func link(name protoreflect.Name) string {
	return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(string(name)))
}

// cell is text in a row of a table.
func cell(s string) string {
	lines := strings.Split(escape(s), "\n")
	for i, line := range lines[1:] {
		if word, rest, ok := strings.Cut(line, " "); ok {
			line = "`" + word + "`: " + strings.TrimSpace(rest)
		}
		lines[i+1] = line
	}
	return strings.Join(lines, "<br>")
}

// escape lets text outside of backticks stand in Markdown as it is.
func escape(s string) string {
	var b strings.Builder
	code := false
	for _, c := range s {
		switch {
		case c == '`':
			code = !code
		case c == '|':
			b.WriteByte('\\')
		case !code && (c == '*' || c == '_'):
			b.WriteByte('\\')
		case !code && c == '<':
			b.WriteString("&lt;")
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// kebab is "identity-provider" for "IdentityProvider".
func kebab(s string) string {
	var b strings.Builder
	for i, c := range s {
		if c >= 'A' && c <= 'Z' {
			if i > 0 {
				b.WriteByte('-')
			}
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}
