package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// mutant is one change of the lowering. Its name does not depend on lines, so
// that it outlives edits elsewhere.
type mutant struct {
	number int
	name   string // "xds/tree.go paths: never: p.Value == \"/\""
	line   string
}

// mutator puts every mutant of a package into its source, each behind its number.
type mutator struct {
	*source
	mutants []mutant
	edits   map[string][]insertion
	names   map[string]int

	file, function string
	seen           map[ast.Expr]bool // do not wrap
}

// wrap puts a call around a node: before is up to and with the "(" and the
// number, which stands for %d.
func (m *mutator) wrap(n ast.Node, what, before, after string) {
	number := len(m.mutants) + 1
	name := fmt.Sprintf("%s/%s %s: %s: %s", m.dir, m.file, m.function, what, strings.Join(strings.Fields(m.text(m.file, n)), " "))
	if m.names[name]++; m.names[name] > 1 {
		name = fmt.Sprintf("%s #%d", name, m.names[name])
	}
	m.mutants = append(m.mutants, mutant{number, name, m.fset.Position(n.Pos()).String()})
	from, to := m.offset(n.Pos()), m.offset(n.End())
	m.edits[m.file] = append(m.edits[m.file],
		insertion{from, from, to, true, number, strings.ReplaceAll(before, "%d", fmt.Sprint(number))},
		insertion{to, from, to, false, number, after})
}

// file mutates every function of a file that lowers.
func (m *mutator) mutate(name string) {
	m.file = name
	for _, d := range m.files[name].Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		m.function = f.Name.Name
		if f.Recv != nil {
			recv := strings.TrimLeft(m.text(name, f.Recv.List[0].Type), "*")
			if recv == "validation" {
				continue // refuses what is not canonical; lowers nothing
			}
			m.function = recv + "." + m.function
		}
		if beside(m.function) != "" {
			continue
		}
		ast.Inspect(f.Body, m.node)
	}
}

func (m *mutator) node(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncLit:
		r := n.Type.Results
		return r == nil || m.text(m.file, r.List[0].Type) != "int" // an order, which judges nothing
	case *ast.IfStmt:
		if m.guards(n.Cond) {
			m.condition(n.Cond)
		}
	case *ast.SwitchStmt:
		m.cases(n)
	case *ast.RangeStmt:
		m.loop(n)
	case *ast.BlockStmt:
		m.statements(n.List)
	case *ast.CaseClause:
		m.statements(n.Body)
	case *ast.BinaryExpr:
		m.binary(n)
	case *ast.CompositeLit:
		m.literal(n)
	case *ast.CallExpr:
		if m.isRoom(n) {
			return false
		}
		m.call(n)
	case *ast.SelectorExpr:
		m.constant(n)
	case *ast.Ident:
		if n.Name == "true" || n.Name == "false" {
			m.wrap(n, "not", "ztNot(%d, ", ")")
		}
		m.constant(n)
	case *ast.BasicLit:
		m.basic(n)
	case *ast.IndexExpr, *ast.IndexListExpr:
		return m.info.Types[n.(ast.Expr)].IsValue() // not instantiations
	}
	return true
}

// guards tells whether a condition may be about what is judged: not whether there
// is an error, which rejects everything, or whether there is anything to do.
func (m *mutator) guards(e ast.Expr) bool {
	b, ok := e.(*ast.BinaryExpr)
	if !ok {
		return m.text(m.file, e) != "!ok"
	}
	x, y := m.text(m.file, b.X), m.text(m.file, b.Y)
	return x != "err" && !(strings.HasPrefix(x, "len(") && y == "0") && !(b.Op == token.EQL && y == "nil" && strings.HasSuffix(x, "]"))
}

// condition: what it guards is always done, or never.
func (m *mutator) condition(e ast.Expr) {
	m.wrap(e, "always", "ztAlways(%d, ", ")")
	m.wrap(e, "never", "ztNever(%d, ", ")")
}

func (m *mutator) cases(s *ast.SwitchStmt) {
	for _, c := range s.Body.List {
		for _, e := range c.(*ast.CaseClause).List {
			switch t := m.info.Types[e]; {
			case s.Tag == nil:
				m.condition(e)
			case t.Value != nil && !zero(t.Value):
				m.seen[e] = true
				m.wrap(e, "no case", "ztZero(%d, ", ")")
			}
		}
	}
}

// loop leaves out the first element, or all others.
func (m *mutator) loop(r *ast.RangeStmt) {
	switch m.info.TypeOf(r.X).Underlying().(type) {
	case *types.Slice:
		m.wrap(r.X, "without first", "ztRest(%d, ", ")")
		m.wrap(r.X, "only first", "ztFirst(%d, ", ")")
	case *types.Map:
		m.wrap(r.X, "without one", "ztWithout(%d, ", ")")
	case *types.Basic:
		if m.info.Types[r.X].Value == nil {
			m.wrap(r.X, "one less", "ztLess(%d, ", ")")
		}
	}
}

// statements drops one that has an effect.
func (m *mutator) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if c, ok := s.X.(*ast.CallExpr); ok && (m.text(m.file, c.Fun) == "panic" || strings.HasPrefix(m.text(m.file, c.Fun), "slices.Sort")) {
				continue
			}
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE || m.file == "canonical.go" || strings.HasPrefix(m.text(m.file, s.Lhs[0]), "b.errs") || m.isRoom(s.Rhs[0]) {
				continue
			}
		case *ast.IncDecStmt:
		default:
			continue
		}
		m.wrap(s, "drop", "if !ztIs(%d) { ", " }")
	}
}

// isRoom tells whether an expression makes room for what is to come, which judges
// nothing: how much there is, and whether it is there before.
func (m *mutator) isRoom(e ast.Expr) bool {
	c, ok := e.(*ast.CallExpr)
	return ok && slices.Contains([]string{"make", "slices.Grow"}, m.text(m.file, c.Fun))
}

// binary drops one side of a conjunction or disjunction, a piece of text, or is
// off by one.
func (m *mutator) binary(e *ast.BinaryExpr) {
	switch e.Op {
	case token.LAND:
		m.wrap(e.X, "drop from and", "ztAlways(%d, ", ")")
		m.wrap(e.Y, "drop from and", "ztAlways(%d, ", ")")
	case token.LOR:
		m.wrap(e.X, "drop from or", "ztNever(%d, ", ")")
		m.wrap(e.Y, "drop from or", "ztNever(%d, ", ")")
	case token.ADD, token.SUB:
		t, ok := m.info.TypeOf(e).Underlying().(*types.Basic)
		if !ok || m.info.Types[e].Value != nil {
			return
		}
		if t.Info()&types.IsInteger != 0 {
			m.wrap(e, "one more", "ztMore(%d, ", ")")
			m.wrap(e, "one less", "ztLess(%d, ", ")")
			return
		}
		for _, side := range []ast.Expr{e.X, e.Y} {
			if lit, ok := side.(*ast.BasicLit); ok {
				m.wrap(lit, "drop text", "ztZero(%d, ", ")")
			}
		}
	}
}

// literal drops elements of lists and maps, and fields.
func (m *mutator) literal(c *ast.CompositeLit) {
	elided := c.Type == nil
	switch t := m.info.TypeOf(c).Underlying().(type) {
	case *types.Slice:
		for i := range c.Elts {
			if !elided {
				m.wrap(c, fmt.Sprintf("without %d", i), fmt.Sprintf("ztDrop(%%d, %d, ", i), ")")
			}
		}
	case *types.Map:
		for _, e := range c.Elts {
			if kv := e.(*ast.KeyValueExpr); !elided {
				m.wrap(c, "without "+m.text(m.file, kv.Key), "ztDelete(%d, "+m.text(m.file, kv.Key)+", ", ")")
			}
		}
	case *types.Struct:
		for _, e := range c.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				m.field(t, kv)
			}
		}
	}
}

// field ignores a field, unless it is one that judges nothing.
func (m *mutator) field(t *types.Struct, kv *ast.KeyValueExpr) {
	name := kv.Key.(*ast.Ident).Name
	m.seen[kv.Key] = true
	i := 0
	for t.Field(i).Name() != name {
		i++
	}
	v := m.info.Types[kv.Value]
	if types.IsInterface(t.Field(i).Type()) || v.IsNil() || v.Value != nil && zero(v.Value) || slices.Contains(silent(), name) {
		return
	}
	if b, ok := t.Field(i).Type().(*types.Basic); ok && v.Value != nil {
		m.wrap(kv.Value, "without "+name, "ztZero["+b.Name()+"](%d, ", ")")
		return
	}
	m.wrap(kv.Value, "without "+name, "ztZero(%d, ", ")")
}

func zero(v constant.Value) bool {
	switch v.Kind() {
	case constant.String:
		return constant.StringVal(v) == ""
	case constant.Int:
		return constant.Sign(v) == 0
	case constant.Bool:
		return !constant.BoolVal(v)
	}
	return false
}

// instead is what stands in the place of a function.
func instead() map[string]string {
	return map[string]string{
		"equals": "beginsWith", "beginsWith": "equals", "contains": "equals", "allOf": "someOf", "someOf": "allOf",
		"byExact": "byPrefix", "byPrefix": "byExact",
		"not": "ztSame", "ignoringCase": "ztSame",
	}
}

// call takes another function, negates a predicate, or drops what comes next.
func (m *mutator) call(c *ast.CallExpr) {
	tv := m.info.Types[c.Fun]
	if tv.IsBuiltin() {
		if m.text(m.file, c.Fun) == "append" && m.text(m.file, c.Args[0]) != "b.errs" {
			m.wrap(c, "append less", "ztLast(%d, ", ")")
		}
		return
	}
	if !tv.IsValue() {
		return // a conversion
	}
	name, before := m.text(m.file, c.Fun), ""
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		name, before = name[i+1:], name[:i+1]
	}
	if other, ok := instead()[name]; ok && m.dir == "xds" {
		if other == "ztSame" {
			before = ""
		}
		m.wrap(c.Fun, "instead "+other, "ztOr(%d, "+before+other+", ", ")")
	}
	if m.kind(c) == "predicate" && name != "not" {
		m.wrap(c, "negate", "ztNegate(%d, ", ")")
	}
	for _, a := range c.Args {
		if m.kind(a) == "onMatch" && !m.info.Types[a].IsNil() {
			m.wrap(a, "drop next", "ztZero(%d, ", ")")
		}
	}
}

// kind is what a pointer to a matcher's message is called in xds.
func (m *mutator) kind(e ast.Expr) string {
	t := m.info.TypeOf(e)
	if t == nil {
		return ""
	}
	switch types.TypeString(t, func(*types.Package) string { return "" }) {
	case "*.Matcher_MatcherList_Predicate", "*Matcher_MatcherList_Predicate", "*predicate", "*.predicate":
		return "predicate"
	case "*.Matcher_OnMatch", "*Matcher_OnMatch", "*onMatch", "*.onMatch":
		return "onMatch"
	}
	return ""
}

// constant swaps verdicts and kinds.
func (m *mutator) constant(e ast.Expr) {
	swap := map[string]string{
		"RBAC_ALLOW": "RBAC_DENY", "RBAC_DENY": "RBAC_ALLOW", "Exact": "Rest", "Rest": "Exact", "Pattern": "Exact",
		"OneSegment": "Rest", "StringClaim": "ListClaim", "ListClaim": "StringClaim", "BooleanClaim": "StringClaim",
	}
	name, before := m.text(m.file, e), ""
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		name, before = name[i+1:], name[:i+1]
	}
	if sel, ok := e.(*ast.SelectorExpr); ok {
		m.seen[sel.Sel] = true
	}
	if other, ok := swap[name]; ok && !m.seen[e] && m.info.Types[e].Value != nil {
		m.wrap(e, "instead "+other, "ztOr(%d, "+before+other+", ", ")")
	}
}

// basic changes an operator within an expression's text, and is off by one.
func (m *mutator) basic(l *ast.BasicLit) {
	switch {
	case l.Kind == token.INT:
		if b, ok := m.info.TypeOf(l).(*types.Basic); ok && b.Kind() == types.Int {
			m.wrap(l, "one more", "ztMore(%d, ", ")")
		}
	case l.Kind == token.STRING:
		for _, op := range [][2]string{
			{" < ", " <= "}, {" >= ", " > "}, {" > ", " >= "}, {" || ", " && "}, {" && ", " || "}, {" * 60", " * 59"}, {" + ", " - "},
		} {
			if other := strings.Replace(l.Value, op[0], op[1], 1); other != l.Value {
				m.wrap(l, "text"+op[0]+"is"+op[1], "ztOr(%d, "+other+", ", ")")
			}
		}
	}
}
