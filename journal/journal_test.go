package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/journal"
)

// small makes a segment of some four lines.
const small = 400

func open(t *testing.T, path string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(journal.Config{Path: path, SegmentBytes: small})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func fill(t *testing.T, j *journal.Journal, n int) {
	t.Helper()
	for i := range n {
		if _, err := j.Append(fmt.Appendf(nil, `{"n":%d,"text":"a \"line\":1,\"prev\":\"\" within"}`, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// of returns a closed journal of n lines in several segments, their paths in order (the
// newest last), and its head.
func of(t *testing.T, n int) (path string, parts []string, head journal.Head) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "j[1]*.log") // a name that means something to globs
	j := open(t, path)
	fill(t, j, n)
	head = j.Head()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return path, segments(t, path), head
}

func segments(t *testing.T, path string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := filepath.Join(filepath.Dir(path), e.Name()); name != path && !strings.HasSuffix(name, ".letgo") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return append(out, path)
}

// collect returns the lines that are kept and what they go on from.
func collect(t *testing.T, j *journal.Journal) (from journal.Head, lines [][]byte) {
	t.Helper()
	err := j.Each(func(h journal.Head) error { from = h; return nil }, func(line []byte) error {
		lines = append(lines, append(slices.Clone(line), '\n'))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return from, lines
}

// TestSegments: the chain goes on from file to file, and over restarts.
func TestSegments(t *testing.T) {
	path, parts, head := of(t, 20)
	if len(parts) < 4 {
		t.Fatalf("only %d segments", len(parts))
	}
	j := open(t, path)
	if j.Head() != head || head.Lines != 20 {
		t.Fatalf("opened at %+v, want %+v", j.Head(), head)
	}
	fill(t, j, 10)
	from, lines := collect(t, j)
	if got, err := journal.Verify(bytes.NewReader(bytes.Join(lines, nil)), from, nil); err != nil || got != j.Head() || got.Lines != 30 {
		t.Errorf("%+v, %v, want %+v", got, err, j.Head())
	}
	if err := j.LeadsThrough(head); err != nil {
		t.Error(err)
	}
	for _, line := range lines {
		body := journal.Body(bytes.TrimSuffix(line, []byte("\n")))
		if !bytes.HasPrefix(body, []byte(`{"n":`)) || !bytes.HasSuffix(body, []byte(`within"}`)) {
			t.Fatalf("body %s", body)
		}
	}
}

// TestSegmentsDamaged: what is changed, cut or taken away in any of the files is named.
func TestSegmentsDamaged(t *testing.T) {
	change := func(t *testing.T, name string, f func([]byte) []byte) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func(t *testing.T, path string, parts []string){
		"a bit of an ended segment": func(t *testing.T, _ string, parts []string) {
			change(t, parts[1], func(b []byte) []byte { b[8] ^= 1; return b })
		},
		"the end of an ended segment": func(t *testing.T, _ string, parts []string) {
			change(t, parts[1], func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] })
		},
		"half a line of an ended segment": func(t *testing.T, _ string, parts []string) {
			change(t, parts[1], func(b []byte) []byte { return b[:len(b)-3] })
		},
		"a segment": func(t *testing.T, _ string, parts []string) { must(t, os.Remove(parts[1])) },
		"the first": func(t *testing.T, _ string, parts []string) { must(t, os.Remove(parts[0])) },
		"two, swapped": func(t *testing.T, path string, parts []string) {
			must(t, os.Rename(parts[0], path+".x"))
			must(t, os.Rename(parts[1], parts[0]))
			must(t, os.Rename(path+".x", parts[1]))
		},
		"the word of what was let go": func(t *testing.T, path string, _ []string) {
			must(t, os.WriteFile(path+".letgo", []byte(`{"lines":3}`), 0o600))
		},
		"a lie of what was let go": func(t *testing.T, path string, _ []string) {
			must(t, os.WriteFile(path+".letgo", fmt.Appendf(nil, `{"lines":3,"hash":%q}`, strings.Repeat("a", 64)), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, parts, _ := of(t, 20)
			damage(t, path, parts)
			j, err := journal.Open(journal.Config{Path: path, SegmentBytes: small})
			if err == nil {
				t.Errorf("opened at %+v", j.Head())
				j.Close()
			}
		})
	}
	// The last segment gone, or an end cut off whole lines: only who knows the head sees it.
	path, _, head := of(t, 20)
	must(t, os.Remove(path))
	j := open(t, path)
	var bad *journal.LineError
	if err := j.LeadsThrough(head); !errors.As(err, &bad) {
		t.Errorf("leads through what is gone: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLetGo: whole segments go, the chain goes on from what they led to, also over a
// restart, and after a crash between the word and the deed.
func TestLetGo(t *testing.T) {
	path, parts, head := of(t, 20)
	first, err := os.ReadFile(parts[0])
	must(t, err)
	j := open(t, path)
	if got := j.Spare(1<<20, 0, time.Now()); got != 0 {
		t.Errorf("%d lines are too many below the bound", got)
	}
	if got, all := j.Spare(1<<20, time.Nanosecond, time.Now().Add(time.Hour)), j.Spare(0, 0, time.Now()); got != all || all < 12 {
		t.Errorf("%d lines are too old, %d are not in the newest segment", got, all)
	}
	must(t, j.LetGo(1)) // not a whole segment
	if j.LetGoOf().Lines != 0 {
		t.Errorf("let go: %+v", j.LetGoOf())
	}
	must(t, j.LetGo(j.Spare(2*small, 0, time.Now())))
	letGo := j.LetGoOf()
	from, lines := collect(t, j)
	if from != letGo || letGo.Lines == 0 || uint64(len(lines)) != 20-letGo.Lines {
		t.Fatalf("let go %+v, lines go on from %+v, and are %d", letGo, from, len(lines))
	}
	if got, err := journal.Verify(bytes.NewReader(bytes.Join(lines, nil)), from, nil); err != nil || got != head {
		t.Errorf("%+v, %v", got, err)
	}
	for was, want := range map[journal.Head]error{head: nil, letGo: nil, {Lines: letGo.Lines - 1}: journal.ErrLetGo} {
		if err := j.LeadsThrough(was); !errors.Is(err, want) {
			t.Errorf("through %+v: %v", was, err)
		}
	}
	if err := j.LeadsThrough(journal.Head{Lines: letGo.Lines, Hash: head.Hash}); err == nil {
		t.Error("leads through another line in the place of the last that was let go")
	}
	must(t, j.Close())
	must(t, os.WriteFile(parts[0], first, 0o600)) // as if it had not been removed yet
	j = open(t, path)
	if j.LetGoOf() != letGo || j.Head() != head {
		t.Errorf("opened at %+v after %+v", j.Head(), j.LetGoOf())
	}
	if got := segments(t, path); got[0] == parts[0] {
		t.Error("what was let go is still there")
	}
	fill(t, j, 3)
}

// TestRecover: after a failed write the journal takes nothing, until what is there was
// read again.
func TestRecover(t *testing.T) {
	path, _, _ := of(t, 3)
	j := open(t, path)
	// A directory in the place of the next segment: the newest cannot be ended.
	for i := uint64(1); i < 12; i++ {
		must(t, os.MkdirAll(fmt.Sprintf("%s.%020d-%020d/in", path, 1, i), 0o700))
	}
	var err error
	for err == nil {
		_, err = j.Append([]byte(`{"n":0}`))
	}
	if _, again := j.Append([]byte(`{"n":1}`)); again == nil {
		t.Fatal("it takes lines after an error")
	}
	head := j.Head()
	for i := uint64(1); i < 12; i++ {
		must(t, os.RemoveAll(fmt.Sprintf("%s.%020d-%020d", path, 1, i)))
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"half a li`)
	must(t, errors.Join(err, f.Close()))
	must(t, j.Recover())
	if j.Head() != head {
		t.Errorf("recovered at %+v, want %+v", j.Head(), head)
	}
	fill(t, j, 5)
	if h, err := j.Durable(); err != nil || h.Lines != head.Lines+5 {
		t.Errorf("%+v, %v", h, err)
	}
	must(t, j.Close())
	if err := j.Recover(); err == nil {
		t.Error("a closed journal recovers")
	}
}

// TestConcurrently: many append, sync, read and let go at once, across segments.
func TestConcurrently(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "j"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				line, err := j.Append([]byte(`{"a":1}`))
				if err == nil {
					err = j.Sync(line)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			if err := j.LetGo(j.Spare(4*small, 0, time.Now())); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for range 50 {
			head := j.LetGoOf()
			var all bytes.Buffer
			err := j.Each(func(h journal.Head) error { head = h; return nil }, func(line []byte) error {
				all.Write(line)
				return all.WriteByte('\n')
			})
			if errors.Is(err, journal.ErrLetGo) {
				continue
			}
			if err == nil {
				_, err = journal.Verify(&all, head, nil)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if j.Head().Lines != 400 {
		t.Errorf("%d lines", j.Head().Lines)
	}
}
