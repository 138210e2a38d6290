package spec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one mistake of the user, as a value.
type Problem struct {
	// Code is stable, such as "ZT1102"; Codes lists them all.
	Code string
	// File is the File.Name that was given to Parse. For a stored document,
	// which has no file, it is the document's key: "Grant shop/web-reads-orders".
	File string
	// Line and Column count from 1, Column in characters; 0 when unknown.
	Line, Column int
	// Path is where in the document, such as "spec.to.services[0]"; empty for a
	// whole file or document.
	Path string
	// Message says what is wrong, Hint what to write instead.
	Message, Hint string
}

// Error is the problem in one line: "a.yaml:3:9: ZT1102 spec.form: message (hint)".
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(p.Code)
	if p.Path != "" {
		b.WriteString(" " + p.Path)
	}
	b.WriteString(": " + p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is every problem found, sorted by file, line, column and code. Empty
// means none; a nil Problems in an error variable is not a nil error, so use Err.
type Problems []Problem

// Error is one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Err is nil when there are no problems, otherwise ps.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// Join is all of sets, sorted, and what is said twice only once. It joins what
// Parse and Check have found.
func Join(sets ...Problems) Problems { return slices.Concat(sets...).sorted() }

// sorted orders ps and drops what is said twice. That the work stopped comes last.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(strings.Count(a.Code, codeTooManyProblems), strings.Count(b.Code, codeTooManyProblems)),
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Message, b.Message),
		)
	})
	return slices.Compact(ps)
}

// maxProblems is where looking for more stops: nobody reads them, and a large
// bad input must stay cheap.
const maxProblems = 1000

// full tells whether looking for more problems has no use.
func (ps Problems) full() bool { return len(ps) >= maxProblems }

// capped is ps, cut at maxProblems with a last one that says so.
func (ps Problems) capped() Problems {
	if !ps.full() {
		return ps.sorted()
	}
	out := ps[:maxProblems].sorted()
	last := out[len(out)-1]
	return append(out, Problem{
		Code: codeTooManyProblems, File: last.File, Line: last.Line, Column: last.Column,
		Message: fmt.Sprintf("stopped after %d problems; there may be more", maxProblems),
		Hint:    hintOf(codeTooManyProblems),
	})
}

// show quotes what the user wrote, cut to a readable length.
func show(s string) string {
	const most = 64
	if n := strings.ToValidUTF8(s, "\uFFFD"); len(n) > most {
		s = strings.ToValidUTF8(n[:most], "") + "…"
	}
	return strconv.Quote(s)
}
