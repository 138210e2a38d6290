package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// label is the pattern of names (RFC 1123).
const label = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`

// limits is what the rules of a field say, in words. A rule that it has no words
// for is an error of this program: the page must leave nothing out.
func limits(f protoreflect.FieldDescriptor) string {
	rules, ok := rulesOf(f)
	if !ok {
		return ""
	}
	var out []string
	required := false
	rules.Range(func(rule protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if rule.Name() == "required" {
			required = v.Bool()
			return true
		}
		of := v.Message()
		switch rule.Name() {
		case "string":
			words, needed := text(of)
			required = required || needed
			out = append(out, words...)
		case "repeated":
			required = required || number(of, "min_items") > 0
			out = append(out, count(of, "items"))
		case "map":
			out = append(out, count(of, "pairs"))
		case "uint32":
			required = required || number(of, "gte") > 0
			out = append(out, fmt.Sprintf("%d to %d", number(of, "gte"), number(of, "lte")))
		case "duration":
			out = append(out, span(of, "gte")+" to "+span(of, "lte"))
		default:
			panic(fmt.Sprintf("specref: no words for the rule %s of %s", rule.Name(), f.FullName()))
		}
		return true
	})
	if required {
		out = append([]string{"required"}, out...)
	}
	return strings.Join(out, "; ")
}

// rulesOf is the option (buf.validate.field) of a field. The set's own type of it
// is not that of the options, so it is found by name.
func rulesOf(f protoreflect.FieldDescriptor) (rules protoreflect.Message, ok bool) {
	f.Options().ProtoReflect().Range(func(option protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if ok = option.FullName() == rulesName; ok {
			rules = v.Message()
		}
		return !ok
	})
	return rules, ok
}

// text is the rules of a text, and whether they refuse an empty one.
func text(of protoreflect.Message) (out []string, required bool) {
	if list := of.Get(field(of, "in")).List(); list.Len() > 0 {
		var values []string
		required = true
		for i := range list.Len() {
			if s := list.Get(i).String(); s != "" {
				values = append(values, "`"+s+"`")
			} else {
				required = false
			}
		}
		return []string{strings.Join(values, ", ")}, required
	}
	required = number(of, "min_len") > 0 || number(of, "len") > 0
	if n := number(of, "len"); n > 0 {
		out = append(out, fmt.Sprintf("%d characters", n))
	}
	if n := number(of, "max_len"); n > 0 {
		out = append(out, fmt.Sprintf("at most %d characters", n))
	}
	switch p := of.Get(field(of, "pattern")).String(); p {
	case "":
	case label:
		out = append(out, "DNS label")
	default:
		out = append(out, "`"+strings.ReplaceAll(p, "|", `\|`)+"`")
	}
	return out, required
}

func count(of protoreflect.Message, what string) string {
	most := number(of, protoreflect.Name("max_"+what))
	if what == "pairs" {
		what = "keys"
	}
	if most == 1 {
		what = strings.TrimSuffix(what, "s")
	}
	return fmt.Sprintf("at most %d %s", most, what)
}

func number(of protoreflect.Message, name protoreflect.Name) uint64 {
	switch v := of.Get(field(of, name)).Interface().(type) {
	case uint32:
		return uint64(v)
	case uint64:
		return v
	}
	panic("specref: " + string(name) + " is no number")
}

// span is a duration as a user writes it: "2h", not "2h0m0s".
func span(of protoreflect.Message, name protoreflect.Name) string {
	m := of.Get(field(of, name)).Message()
	d := time.Duration(m.Get(field(m, "seconds")).Int())*time.Second + time.Duration(m.Get(field(m, "nanos")).Int())
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

func field(m protoreflect.Message, name protoreflect.Name) protoreflect.FieldDescriptor {
	f := m.Descriptor().Fields().ByName(name)
	if f == nil {
		panic(fmt.Sprintf("specref: %s has no %s", m.Descriptor().FullName(), name))
	}
	return f
}
