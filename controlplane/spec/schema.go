package spec

import (
	"errors"
	"strconv"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// schemaProblems is what the annotations of spec.proto refuse in d.
func schemaProblems(d *Document) Problems {
	err := protovalidate.Validate(d.Document)
	var refused *protovalidate.ValidationError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &refused):
		// The rules are compiled in; they cannot be wrong for one document only.
		panic("spec: the rules of spec.proto do not run: " + err.Error())
	}
	var ps Problems
	said := map[string]bool{}
	for _, v := range refused.Violations {
		if ps.full() {
			break
		}
		path := userPath(d.ProtoReflect().Descriptor(), v.Proto.GetField().GetElements())
		if said[path] {
			continue // "" is both too short and of the wrong form
		}
		said[path] = true
		code, hint, message := schemaCode(v)
		if code != codeMissing && !d.wrote(path) {
			code, hint = codeMissing, ""
		}
		if code == codeMissing {
			message = "is missing or empty"
		}
		ps = append(ps, d.problem(code, path, hint, "%s %s", lastOf(path), message))
	}
	return ps
}

// schemaCode is the problem code, hint and message of one violation. The rule's
// id is that of protovalidate: type, dot, rule.
func schemaCode(v *protovalidate.Violation) (code, hint, message string) {
	message = v.Proto.GetMessage()
	id := v.Proto.GetRuleId()
	group, rule, _ := strings.Cut(id, ".")
	switch {
	case id == "required", rule == "min_len", rule == "min_items":
		return codeMissing, "", message
	case rule == "max_len", rule == "max_items", rule == "max_pairs":
		return codeTooLong, "", message
	case rule == "pattern":
		message = "is " + show(v.FieldValue.String()) + ", which is not of the form required"
		if v.FieldDescriptor.Name() == "trust_domain" {
			return codeBadName, trustDomainHint, message
		}
		return codeBadName, "", message
	case rule == "in":
		allowed := listed(v.RuleValue.List())
		message = "is " + show(v.FieldValue.String()) + ", not one of " + strings.Join(allowed, ", ")
		return codeBadValue, didYouMean(v.FieldValue.String(), allowed), message
	case group == "uint32", group == "duration":
		return codeRange, "", message
	}
	return codeBadValue, "", message
}

const trustDomainHint = "A trust domain: at most 247 of a-z, 0-9 and inner hyphens, dots and underscores."

// listed is the texts of l that a user may write: an empty one stands for none.
func listed(l protoreflect.List) []string {
	var out []string
	for i := range l.Len() {
		if s := l.Get(i).String(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// userPath is the path of a violation as the user wrote it: members of the oneof
// are all "spec", and a Strings is its list.
func userPath(md protoreflect.MessageDescriptor, elements []*validate.FieldPathElement) string {
	path := ""
	for _, e := range elements {
		name, list := e.GetFieldName(), md != nil && md.FullName() == stringsName
		if md != nil {
			if fd := md.Fields().ByName(protoreflect.Name(name)); fd != nil {
				name = fd.JSONName()
				if fd.ContainingOneof() != nil {
					name = string(fd.ContainingOneof().Name())
				}
				if md = fd.Message(); fd.IsMap() {
					md = fd.MapValue().Message()
				}
			}
		}
		if !list {
			path = join(path, name)
		}
		switch e.GetSubscript().(type) {
		case *validate.FieldPathElement_Index:
			path = index(path, int(e.GetIndex()))
		case *validate.FieldPathElement_StringKey:
			path = join(path, e.GetStringKey())
		}
	}
	return path
}

// maxItems is how many items the list fd may have, or 0 for any number.
func maxItems(fd protoreflect.FieldDescriptor) int {
	rules, err := protovalidate.ResolveFieldRules(fd)
	if err != nil {
		panic("spec: the rules of " + string(fd.FullName()) + ": " + err.Error())
	}
	return int(rules.GetRepeated().GetMaxItems())
}

// lastOf is the last name in path, for a message: "serves[0].port" gives "port".
func lastOf(path string) string {
	last := path[strings.LastIndexByte(path, '.')+1:]
	if i := strings.IndexByte(last, '['); i > 0 {
		if n, err := strconv.Atoi(strings.TrimSuffix(last[i+1:], "]")); err == nil {
			return last[:i] + " " + strconv.Itoa(n+1)
		}
	}
	return last
}
