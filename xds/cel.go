package xds

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/parser"
	celpb "cel.dev/expr"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	typev3 "github.com/cncf/xds/go/xds/type/v3"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/proto"
)

// parseCEL is an expression as Envoy takes it: parsed, and without the positions
// of its source.
func parseCEL(text string) (*exprpb.Expr, error) {
	p, err := parser.NewParser(parser.Macros(parser.HasMacro))
	if err != nil {
		return nil, err
	}
	tree, problems := p.Parse(common.NewTextSource(text))
	if len(problems.GetErrors()) > 0 {
		return nil, errors.New(problems.ToDisplayString())
	}
	return ast.ExprToProto(tree.Expr())
}

// cel is a predicate that an expression is true. One that errs is false, so it
// must never stand below a negation, nor guard a denial.
func (b *builder) cel(text string) *predicate {
	e, err := parseCEL(text)
	if err != nil {
		b.errs = append(b.errs, fmt.Errorf("cel %q: %w", text, err))
		return single(nil)
	}
	wire, err := proto.Marshal(e)
	if err != nil {
		b.errs = append(b.errs, err)
	}
	same := &celpb.Expr{} // the same message by its newer name
	if err := proto.Unmarshal(wire, same); err != nil {
		b.errs = append(b.errs, err)
	}
	return b.custom(b.extension("attributes", &matcherv3.HttpAttributesCelMatchInput{}), "envoy.matching.matchers.cel_matcher",
		&matcherv3.CelMatcher{ExprMatch: &typev3.CelExpression{CelExprParsed: &celpb.ParsedExpr{Expr: same}}})
}

// clock is the expression of the conditions that read the proxy's clock; empty if
// there is none. It is judged at the time that a request, or a connection, begins:
//
//	until 2027-01-01T00:00:00Z    request.time < timestamp("2027-01-01T00:00:00Z")
//	mon 22:00-06:00 in UTC        (minute >= 1320 && day in [1] || minute < 360 && day in [2])
//	maxAge 5m                     auth_time > -1.0e18 && timestamp(int(auth_time)) + duration("300s") >= request.time
//
// where minute and day are of request.time in the window's zone. That auth_time is
// compared with a number first makes it err when it is none: int() would take
// "1700000000" for one.
func (c *Conditions) clock() string {
	var all []string
	if !c.Until.IsZero() {
		all = append(all, fmt.Sprintf("request.time < timestamp(%q)", c.Until.UTC().Format(time.RFC3339Nano)))
	}
	if len(c.Windows) > 0 {
		var some []string
		for _, w := range c.Windows {
			some = append(some, w.expr())
		}
		all = append(all, "("+strings.Join(some, " || ")+")")
	}
	if c.Users != nil && c.Users.MaxAge > 0 {
		at := fmt.Sprintf(`metadata.filter_metadata[%q][%q]["auth_time"]`, tokenMetadata, payloadKey(c.Users.Provider))
		all = append(all, fmt.Sprintf(`%[1]s > -1.0e18 && timestamp(int(%[1]s)) + duration("%[2]ds") >= request.time`,
			at, int64(c.Users.MaxAge/time.Second)))
	}
	return strings.Join(all, " && ")
}

func (w Window) expr() string {
	minute := fmt.Sprintf("request.time.getHours(%[1]q) * 60 + request.time.getMinutes(%[1]q)", w.Zone)
	from := minute + " >= " + strconv.Itoa(w.Start) + w.on(0)
	before := minute + " < " + strconv.Itoa(w.End)
	if w.End > w.Start {
		return "(" + from + " && " + before + ")"
	}
	return "(" + from + " || " + before + w.on(1) + ")"
}

// on is the test of the day on which the window starts, so many days ago.
func (w Window) on(ago int) string {
	if w.Days == nil {
		return ""
	}
	var days []string
	for _, d := range w.Days {
		days = append(days, strconv.Itoa((int(d)+ago)%7))
	}
	slices.Sort(days)
	return fmt.Sprintf(" && request.time.getDayOfWeek(%q) in [%s]", w.Zone, strings.Join(slices.Compact(days), ", "))
}
