package spec

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
)

// maxCEL bounds the characters of an expression, maxCELDepth the nesting. There
// is no loop in the language that ParseCEL takes, so they bound its cost too.
const (
	maxCEL      = 2048
	maxCELDepth = 24
)

// Expr is an expression of the Common Expression Language that ParseCEL has
// taken. It is immutable; any goroutine may evaluate it.
type Expr struct {
	text    string
	spoken  []string // variables and headers ("request.headers.x-team"), sorted
	program cel.Program
}

// String is the expression as it was written.
func (e *Expr) String() string { return e.text }

// SpeaksOf tells whether the expression reads a variable, or a header by the name
// "request.headers.x-team".
func (e *Expr) SpeaksOf(name string) bool { return slices.Contains(e.spoken, name) }

// Eval is the value for vars, which has the variables of CELVariables by name,
// request.headers as map[string]string, request.time as time.Time and the rest
// as string. What errs does not match; a missing variable errs.
func (e *Expr) Eval(vars map[string]any) (bool, error) {
	out, _, err := e.program.Eval(vars)
	if err != nil {
		return false, fmt.Errorf("evaluate %s: %w", show(e.text), err)
	}
	b, ok := out.Value().(bool)
	if !ok {
		return false, fmt.Errorf("evaluate %s: the value is %s, not a boolean", show(e.text), out.Type().TypeName())
	}
	return b, nil
}

// CELVariables are what an expression may speak of.
func CELVariables() []string {
	names := make([]string, len(celVariables))
	for i, v := range celVariables {
		names[i] = v.name
	}
	return names
}

const celCaller = "connection.uri_san_peer_certificate"

var celVariables = []struct {
	name string
	kind *cel.Type
}{
	{"request.method", cel.StringType},
	{"request.url_path", cel.StringType}, // without the query, normalized
	{"request.query", cel.StringType},
	{"request.host", cel.StringType},
	{"request.headers", cel.MapType(cel.StringType, cel.StringType)}, // names in lower case
	{"request.time", cel.TimestampType},                              // when it began
	{celCaller, cel.StringType},                                      // the caller's SPIFFE ID
}

// celFunctions are the functions that an expression may use, each with its
// overloads; none named is all of them. Envoy evaluates every one of them as
// cel-go does. What makes strings, matches regular expressions, converts or
// loops is left out: Envoy has it off, or its cost is not bounded.
var celFunctions = map[string][]string{
	operators.LogicalAnd: nil, operators.LogicalOr: nil, operators.LogicalNot: nil, operators.Conditional: nil,
	operators.Equals: nil, operators.NotEquals: nil,
	operators.Less:          {overloads.LessInt64, overloads.LessString, overloads.LessTimestamp, overloads.LessDuration},
	operators.LessEquals:    {overloads.LessEqualsInt64, overloads.LessEqualsString, overloads.LessEqualsTimestamp, overloads.LessEqualsDuration},
	operators.Greater:       {overloads.GreaterInt64, overloads.GreaterString, overloads.GreaterTimestamp, overloads.GreaterDuration},
	operators.GreaterEquals: {overloads.GreaterEqualsInt64, overloads.GreaterEqualsString, overloads.GreaterEqualsTimestamp, overloads.GreaterEqualsDuration},
	operators.Add: {
		overloads.AddInt64, overloads.AddDurationDuration, overloads.AddDurationTimestamp, overloads.AddTimestampDuration,
	},
	operators.Subtract: {
		overloads.SubtractInt64, overloads.SubtractDurationDuration, overloads.SubtractTimestampDuration, overloads.SubtractTimestampTimestamp,
	},
	operators.Multiply: {overloads.MultiplyInt64},
	operators.Divide:   {overloads.DivideInt64},
	operators.Modulo:   {overloads.ModuloInt64},
	operators.Negate:   {overloads.NegateInt64},
	operators.In:       {overloads.InList, overloads.InMap},
	operators.Index:    {overloads.IndexMap},

	overloads.Size: {
		overloads.SizeString, overloads.SizeStringInst, overloads.SizeList, overloads.SizeListInst,
	},
	overloads.StartsWith: nil, overloads.EndsWith: nil, overloads.Contains: nil,
	overloads.TypeConvertTimestamp: {overloads.StringToTimestamp},
	overloads.TypeConvertDuration:  {overloads.StringToDuration},

	overloads.TimeGetFullYear:   {overloads.TimestampToYear, overloads.TimestampToYearWithTz},
	overloads.TimeGetMonth:      {overloads.TimestampToMonth, overloads.TimestampToMonthWithTz},
	overloads.TimeGetDayOfYear:  {overloads.TimestampToDayOfYear, overloads.TimestampToDayOfYearWithTz},
	overloads.TimeGetDate:       {overloads.TimestampToDayOfMonthOneBased, overloads.TimestampToDayOfMonthOneBasedWithTz},
	overloads.TimeGetDayOfMonth: {overloads.TimestampToDayOfMonthZeroBased, overloads.TimestampToDayOfMonthZeroBasedWithTz},
	overloads.TimeGetDayOfWeek:  {overloads.TimestampToDayOfWeek, overloads.TimestampToDayOfWeekWithTz},
	overloads.TimeGetHours:      {overloads.TimestampToHours, overloads.TimestampToHoursWithTz},
	overloads.TimeGetMinutes:    {overloads.TimestampToMinutes, overloads.TimestampToMinutesWithTz},
	overloads.TimeGetSeconds:    {overloads.TimestampToSeconds, overloads.TimestampToSecondsWithTz},
}

// celEnv is the one environment of all expressions.
var celEnv = newCELEnv()

func newCELEnv() *cel.Env {
	subset := &env.LibrarySubset{IncludeMacros: []string{operators.Has}}
	for name, ids := range celFunctions {
		f := &env.Function{Name: name}
		for _, id := range ids {
			f.Overloads = append(f.Overloads, &env.Overload{ID: id})
		}
		subset.IncludeFunctions = append(subset.IncludeFunctions, f)
	}
	options := []cel.EnvOption{
		cel.StdLib(cel.StdLibSubset(subset)),
		cel.ParserExpressionSizeLimit(maxCEL),
		cel.ParserRecursionLimit(4 * maxCELDepth),
		cel.ASTValidators(cel.ValidateHomogeneousAggregateLiterals()),
	}
	for _, v := range celVariables {
		options = append(options, cel.Variable(v.name, v.kind))
	}
	e, err := cel.NewCustomEnv(options...)
	if err != nil {
		panic("spec: the environment of expressions: " + err.Error())
	}
	return e
}

// ParseCEL reads an expression and checks its types. The error says what to
// change, in one line.
func ParseCEL(text string) (*Expr, error) {
	if len(text) > maxCEL {
		return nil, fmt.Errorf("the expression has %d bytes, more than %d", len(text), maxCEL)
	}
	checked, issues := celEnv.Compile(text)
	if list := issues.Errors(); len(list) > 0 {
		at := list[0]
		return nil, fmt.Errorf("%s (character %d)", oneLine(at.Message), at.Location.Column()+1)
	}
	if checked.OutputType() != types.BoolType {
		return nil, fmt.Errorf("the expression is of type %s, not bool", checked.OutputType())
	}
	spoken := map[string]bool{}
	if err := celProblem(checked.NativeRep().Expr(), spoken, 1); err != nil {
		return nil, err
	}
	program, err := celEnv.Program(checked)
	if err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	return &Expr{text, sortedKeys(spoken), program}, nil
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// celHeaders is the variable of which only single headers, named as they are, may
// be spoken: Envoy's map has more in it than the application is sent.
const celHeaders = "request.headers"

// celHeader is the header that e speaks of, and what else there is to look at;
// false if it speaks of none.
func celHeader(e celast.Expr) (name celast.Expr, field string, ok bool) {
	isHeaders := func(e celast.Expr) bool { return e.Kind() == celast.IdentKind && e.AsIdent() == celHeaders }
	switch e.Kind() {
	case celast.SelectKind:
		return nil, e.AsSelect().FieldName(), isHeaders(e.AsSelect().Operand())
	case celast.CallKind:
		args := e.AsCall().Args()
		switch e.AsCall().FunctionName() {
		case operators.Index:
			return args[1], "", isHeaders(args[0])
		case operators.In:
			return args[0], "", isHeaders(args[1])
		}
	}
	return nil, "", false
}

// celProblem is what e has that Envoy would not take, or would take otherwise. It
// adds the variables and headers of which e speaks.
func celProblem(e celast.Expr, spoken map[string]bool, depth int) error {
	if name, field, ok := celHeader(e); ok {
		if name != nil && name.Kind() == celast.LiteralKind {
			field, _ = name.AsLiteral().Value().(string)
		}
		if why := headerProblem(field, false); why != "" {
			return fmt.Errorf("request.headers is asked for %s, which %s", show(field), why)
		}
		spoken[celHeaders+"."+field] = true
		return nil
	}

	if depth > maxCELDepth {
		return fmt.Errorf("the expression is nested more than %d deep", maxCELDepth)
	}
	var parts []celast.Expr
	switch e.Kind() {
	case celast.LiteralKind:
		switch e.AsLiteral().Type() {
		case types.BoolType, types.IntType, types.StringType:
		default:
			return fmt.Errorf("there is a literal of type %s; write booleans, integers and strings", e.AsLiteral().Type().TypeName())
		}
	case celast.IdentKind:
		if e.AsIdent() == celHeaders {
			return errors.New("request.headers is used as a whole; ask for one header by its name")
		}
		spoken[e.AsIdent()] = true
	case celast.SelectKind:
		parts = []celast.Expr{e.AsSelect().Operand()}
	case celast.ListKind:
		parts = e.AsList().Elements()
	case celast.CallKind:
		call := e.AsCall()
		if err := callProblem(call); err != nil {
			return err
		}
		if parts = call.Args(); call.IsMemberFunction() {
			parts = append(parts[:len(parts):len(parts)], call.Target())
		}
	default:
		return errors.New("there is a map, message or loop; use comparisons and functions")
	}
	for _, p := range parts {
		if err := celProblem(p, spoken, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// celDuration is a duration that cel-go and Envoy read alike.
var celDuration = regexp.MustCompile(`^-?([0-9]{1,9}(\.[0-9]{1,9})?(h|m|s|ms))+$`)

// callProblem holds times, durations and zones to literals that are well formed.
func callProblem(call celast.CallExpr) error {
	name := call.FunctionName()
	zoned := call.IsMemberFunction() && strings.HasPrefix(name, "get") && len(call.Args()) == 1
	if !zoned && name != overloads.TypeConvertTimestamp && name != overloads.TypeConvertDuration {
		return nil
	}
	literal, ok := "", false
	if arg := call.Args()[0]; arg.Kind() == celast.LiteralKind {
		literal, ok = arg.AsLiteral().Value().(string)
	}
	switch {
	case !ok:
		return fmt.Errorf("%s takes a text as it is, not an expression", name)
	case zoned && !ZoneKnown(literal):
		return fmt.Errorf("there is no time zone %s", show(literal))
	case name == overloads.TypeConvertTimestamp:
		_, err := parseTime(literal)
		return err
	case name == overloads.TypeConvertDuration:
		if _, err := time.ParseDuration(literal); err != nil || !celDuration.MatchString(literal) {
			return fmt.Errorf("%s is not a duration such as \"90s\" or \"1h30m\"", show(literal))
		}
	}
	return nil
}

// timestamp is the form of a point in time (RFC 3339, section 5.6), to the
// second: what a proxy compares has no fraction.
var timestamp = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})$`)

// parseTime reads a point in time as a user writes it.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !timestamp.MatchString(s) || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
		return time.Time{}, fmt.Errorf("%s is not a time such as \"2030-01-31T18:00:00Z\"", show(s))
	}
	return t.UTC(), nil
}
