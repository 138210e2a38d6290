package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// screen prints what the demo does, for people. Colour only repeats what the
// words say.
type screen struct {
	w     io.Writer
	color bool
	began time.Time
	steps int
}

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	dim   = "\x1b[2m"
	bold  = "\x1b[1m"
)

func (s *screen) paint(color, text string) string {
	if !s.color || text == "" {
		return text
	}
	return color + text + "\x1b[0m"
}

// step begins a part.
func (s *screen) step(format string, args ...any) {
	s.steps++
	title := fmt.Sprintf("%d. ", s.steps) + fmt.Sprintf(format, args...)
	clock := fmt.Sprintf("%5.1f s", time.Since(s.began).Seconds())
	gap := max(1, 88-utf8.RuneCountInString(title)-len(clock))
	fmt.Fprintf(s.w, "\n%s%s%s\n", s.paint(bold, title), strings.Repeat(" ", gap), s.paint(dim, clock))
}

// say prints lines of the demo's own.
func (s *screen) say(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintln(s.w, strings.TrimRight("   "+line, " \n"))
	}
}

// prompt prints a command line that is about to run.
func (s *screen) prompt(line string) {
	fmt.Fprintf(s.w, "   %s\n", s.paint(bold, "$ "+line))
}

// output prints what a command has said.
func (s *screen) output(text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "+"):
			line = s.paint(green, line)
		case strings.HasPrefix(trimmed, "-"):
			line = s.paint(red, line)
		}
		fmt.Fprintln(s.w, strings.TrimRight("     "+line, " "))
	}
}

// line is one line of a table; ok is the verdict in its last column.
type line struct {
	cells []string
	ok    bool
	id    string // of the request, if there is one
}

// table prints aligned columns. The last one is ok or FAIL.
func (s *screen) table(header string, lines []line) {
	names := strings.Split(header, ",")
	widths := make([]int, len(names))
	fit := func(cells []string) {
		for i, c := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	fit(names)
	for _, l := range lines {
		fit(l.cells)
	}
	join := func(cells []string) string {
		var b strings.Builder
		for i, c := range cells {
			b.WriteString(c + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
		}
		return b.String()
	}
	fmt.Fprintf(s.w, "   %s\n", s.paint(dim, strings.TrimRight(join(names), " ")))
	for _, l := range lines {
		mark := s.paint(green, "ok")
		if !l.ok {
			mark = s.paint(red, "FAIL")
		}
		fmt.Fprintf(s.w, "   %s%s\n", join(l.cells), mark)
	}
}
