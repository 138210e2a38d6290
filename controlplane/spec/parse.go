package spec

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// File is YAML or JSON as the user wrote it: any number of documents.
type File struct {
	Name    string // for messages only
	Content []byte
}

// Parse reads files, strictly, and returns the documents in the order of the
// text, and every problem: of the bytes, of YAML, of the schema, of each document
// by itself, and documents that stand twice. What joins documents is Check's.
//
// With problems the documents are good for nothing but Check, which then finds
// the rest: they include those that have problems, as far as they have an
// identity, so that references to them are not reported as well.
func Parse(files []File) ([]*Document, Problems) {
	return ParseBy(files, func(n int, do func(i int)) {
		for i := range n {
			do(i)
		}
	})
}

// ParseBy is Parse with its work in parts: each(n, do) calls do with every number
// below n, in any order and at the same time if it likes, and returns when all calls
// have. What ParseBy returns does not depend on how.
func ParseBy(files []File, each func(n int, do func(i int))) ([]*Document, Problems) {
	total := 0
	for _, f := range files {
		if total += len(f.Content); total > maxTotal {
			return nil, Problems{{
				Code: codeTooLarge, File: f.Name, Hint: hintOf(codeTooLarge),
				Message: fmt.Sprintf("the files together are larger than %d MiB", maxTotal>>20),
			}}
		}
	}
	b := &book{first: map[Key]*Document{}, each: each}
	for i, f := range files {
		b.file(i, f)
	}
	b.read()
	return b.documents, b.problems.capped()
}

// How much of the text is read at a time: work for a few processors, and little of
// it in vain where the reading stops at a problem.
const (
	partPages = 32
	waveParts = 64
	waveBytes = 2 << 20
)

// book is the state of one ParseBy: the pages that wait to be read, and what those
// before them say.
type book struct {
	each      func(n int, do func(i int))
	waiting   []page
	bytes     int // of the pages that wait
	count     int // of documents seen, good or bad
	documents []*Document
	first     map[Key]*Document
	problems  Problems
	closed    int // the rest of the file of this number is not read; counts from 1
}

// page is a piece of a file, and what it says.
type page struct {
	piece
	reader
	file int  // its number
	last bool // the rest of the file is not to be read
}

// file puts the pieces of a file among the pages that wait.
func (b *book) file(number int, f File) {
	if looksUTF16(f.Content) {
		p := page{file: number, reader: reader{name: f.Name}, last: true}
		p.add(codeUTF16, 1, 1, "", "", "this is UTF-16 or UTF-32")
		b.waiting = append(b.waiting, p)
		return
	}
	pieces(f.Content, func(p piece) bool {
		b.waiting = append(b.waiting, page{piece: p, file: number, reader: reader{name: f.Name}})
		if b.bytes += len(p.text); b.bytes >= waveBytes || len(b.waiting) == waveParts*partPages {
			b.read()
		}
		return !b.ended(number)
	})
}

// ended tells that no more of a file is to be read.
func (b *book) ended(number int) bool { return b.problems.full() || b.closed == number+1 }

// read reads the pages that wait, and takes in what they say in their order.
func (b *book) read() {
	parts := slices.Collect(slices.Chunk(b.waiting, partPages))
	b.each(len(parts), func(i int) {
		paths := map[string]string{}
		for n := range parts[i] {
			parts[i][n].read(paths)
		}
	})
	for i := range b.waiting {
		if p := &b.waiting[i]; !b.ended(p.file) {
			b.take(p)
		}
	}
	clear(b.waiting)
	b.waiting, b.bytes = b.waiting[:0], 0
}

// take takes in what a page says.
func (b *book) take(p *page) {
	if p.text != nil {
		b.count++
	}
	if b.count > maxDocuments && len(p.text) <= maxDocument {
		p.doc, p.problems, p.last = nil, nil, true
		p.add(codeTooManyDocuments, p.line, 1, "", "", fmt.Sprintf("this is document %d", b.count))
	}
	b.problems = append(b.problems, p.problems...)
	if p.last {
		b.closed = p.file + 1
	}
	d := p.doc
	if d == nil {
		return
	}
	if first := b.first[d.Key()]; first != nil {
		file, line, _ := first.At("")
		b.problems = append(b.problems, d.problem(codeDuplicateDocument, "", "",
			"%s stands already in %s, line %d", d.Key(), file, line))
		return
	}
	b.first[d.Key()] = d
	b.documents = append(b.documents, d)
}

// read reads a page unless it breaks a limit. It is the last of its file then: its
// size is no accident.
func (p *page) read(paths map[string]string) {
	if p.text == nil {
		return
	}
	p.paths = paths
	p.last = !p.bounded(p.piece)
}

// reader reads one page.
type reader struct {
	name     string // of the file
	doc      *Document
	problems Problems
	paths    map[string]string // each path once: documents share them
}

// add reports a problem of the file at line and column.
func (r *reader) add(code string, line, column int, path, hint, message string) {
	if !r.problems.full() {
		r.problems = append(r.problems, Problem{code, r.name, line, column, path, message, cmp.Or(hint, hintOf(code))})
	}
}

// bounded reads a piece unless it breaks a limit.
func (r *reader) bounded(p piece) bool {
	if len(p.text) > maxDocument {
		r.add(codeDocumentTooLarge, p.line, 1, "", "", fmt.Sprintf("the document is larger than %d bytes", maxDocument))
		return false
	}
	switch marks, nesting := weigh(p.text); {
	case marks > maxMarks:
		r.add(codeTooManyValues, p.line, 1, "", "", fmt.Sprintf("the document has %d lines and separators", marks))
	case nesting > maxParseDepth:
		r.add(codeTooDeep, p.line, 1, "", "", fmt.Sprintf("brackets are nested %d deep", nesting))
	default:
		if !blank(p.text) {
			r.piece(p)
		}
		return true
	}
	return false
}

// piece reads the text of one document.
func (r *reader) piece(p piece) {
	if bad, ok := checkText(p); !ok {
		r.add(bad.Code, bad.Line, bad.Column, "", "", bad.Message)
		return
	}
	if line := directive(p.text); line >= 0 {
		r.add(codeTag, p.line+line, 1, "", "", "there is a directive")
		return
	}
	root, err := parseYAML(plainJSON(p.text))
	if err != nil {
		line, message := yamlError(err)
		r.add(codeNotYAML, p.line+max(line-1, 0), 0, "", "", message)
		return
	}
	if root != nil {
		r.doc = r.document(root, p.line-1)
	}
}

// maxParseDepth bounds brackets before the YAML library recurses into them. It
// leaves room for brackets in quoted text; values are held to maxDepth later.
const maxParseDepth = 8 * maxDepth

// parseYAML is the root of the one document in text, or nil when there is none.
func parseYAML(text []byte) (root *yaml.Node, err error) {
	defer func() {
		// The library panics on some input that it should refuse.
		if p := recover(); p != nil {
			root, err = nil, errors.New("the YAML library gives up on this document")
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fmt.Errorf("yaml: line %d: a second document without a line \"---\" before it", more.Line)
		}
		return nil, err
	}
	root = doc.Content[0]
	if empty(root) {
		return nil, nil
	}
	return root, nil
}

// empty tells whether n is a null that nobody wrote.
func empty(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == "" && n.Anchor == "" && n.Style == 0
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// yamlError is the line, or 0, and the message in an error of the YAML library.
func yamlError(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1]) // it is digits; a line that overflows is unknown
		message = message[len(m[0]):]
	}
	return line, message
}

// directive is the index of the line of text that is a directive ("%YAML 1.2"),
// or -1. Directives stand before everything else of a document.
func directive(text []byte) int {
	n := 0
	for line := range bytes.Lines(text) {
		switch trimmed := bytes.TrimSpace(line); {
		case line[0] == '%':
			return n
		case len(trimmed) > 0 && trimmed[0] != '#':
			return -1
		}
		n++
	}
	return -1
}
