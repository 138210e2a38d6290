package identity_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/identity"
)

func openJournal(t *testing.T, path string) *identity.Journal {
	t.Helper()
	j, err := identity.OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func intent(n int) identity.Issuance {
	return identity.Issuance{Time: start.Add(time.Duration(n) * time.Second), Kind: "workload", Subject: web, Serial: fmt.Sprintf("%x", n+1)}
}

// journalOf returns the bytes of a journal with n lines, and its head.
func journalOf(t *testing.T, n int) (string, []byte, identity.Head) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, path)
	for i := range n {
		if err := j.Append(intent(i)); err != nil {
			t.Fatal(err)
		}
	}
	head := j.Head()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, b, head
}

func TestJournal(t *testing.T) {
	path, b, head := journalOf(t, 3)
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if got, err := identity.VerifyJournal(bytes.NewReader(b), identity.Head{}); err != nil || got != head || head.Lines != 3 {
		t.Errorf("head %+v, %v, want %+v", got, err, head)
	}
	j := openJournal(t, path)
	if j.Head() != head {
		t.Errorf("opened at %+v, want %+v", j.Head(), head)
	}
	if err := errors.Join(j.Append(intent(3)), j.Close()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, j.Append(intent(4)), "closed")
	more, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(more, b) {
		t.Errorf("lines were rewritten: %v", err)
	}
	if got, err := identity.VerifyJournal(bytes.NewReader(more), identity.Head{}); err != nil || got.Lines != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = identity.OpenJournal(path)
	wantErr(t, err, "must be a file of mode 0600")
}

func TestJournalNamesTheFirstBadLine(t *testing.T) {
	_, b, head := journalOf(t, 5)
	lines := bytes.SplitAfter(b, []byte("\n"))[:5]
	edit := func(f func([][]byte) [][]byte) []byte { return bytes.Join(f(slices.Clone(lines)), nil) }
	change := func(l []byte, from, to string) []byte { return bytes.Replace(l, []byte(from), []byte(to), 1) }
	for _, tt := range []struct {
		name string
		b    []byte
		line uint64
	}{
		{"changed", edit(func(l [][]byte) [][]byte { l[1] = change(l[1], "/web", "/wob"); return l }), 3},
		{"changed with a space", edit(func(l [][]byte) [][]byte { l[1] = change(l[1], ":", ": "); return l }), 2},
		{"left out", edit(func(l [][]byte) [][]byte { return append(l[:1], l[2:]...) }), 2},
		{"the first left out", edit(func(l [][]byte) [][]byte { return l[1:] }), 1},
		{"twice", edit(func(l [][]byte) [][]byte { return slices.Insert(l, 2, l[1]) }), 3},
		{"swapped", edit(func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l }), 3},
		{"not JSON", edit(func(l [][]byte) [][]byte { l[3] = []byte("x\n"); return l }), 4},
		{"an empty line", edit(func(l [][]byte) [][]byte { l[4] = []byte("\n"); return l }), 5},
		{"another field", edit(func(l [][]byte) [][]byte { l[0] = change(l[0], "{", `{"x":1,`); return l }), 1},
		{"numbered wrongly", edit(func(l [][]byte) [][]byte { return [][]byte{change(l[0], `"line":1`, `"line":2`)} }), 1},
		{"unfinished", b[:len(b)-1], 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := identity.VerifyJournal(bytes.NewReader(tt.b), identity.Head{})
			var bad *identity.JournalError
			if !errors.As(err, &bad) || bad.Line != tt.line {
				t.Errorf("got %v, want line %d", err, tt.line)
			}
			if tt.name == "unfinished" {
				return
			}
			path := filepath.Join(t.TempDir(), "journal")
			if err := os.WriteFile(path, tt.b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := identity.OpenJournal(path); !errors.As(err, &bad) {
				t.Errorf("opened: %v", err)
			}
		})
	}
	// Every single bit counts, except in the last line: that one the head holds.
	for i := range b[:len(b)-len(lines[4])] {
		if _, err := identity.VerifyJournal(bytes.NewReader(flip(b, i)), identity.Head{}); err == nil {
			t.Fatalf("a flipped bit at %d is not seen", i)
		}
	}
	cut, err := identity.VerifyJournal(bytes.NewReader(bytes.Join(lines[:4], nil)), identity.Head{})
	if err != nil || cut == head {
		t.Errorf("lines cut off the end: %+v, %v", cut, err)
	}
}

// A crash in the middle of a write: the unfinished line goes, all others stay.
func TestJournalAfterACrash(t *testing.T) {
	path, b, _ := journalOf(t, 3)
	second := bytes.IndexByte(b, '\n') + 1
	second += bytes.IndexByte(b[second:], '\n') + 1
	for end := second; end < len(b); end++ {
		if err := os.WriteFile(path, b[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		if end%17 != 0 && end != second && end != len(b)-1 {
			continue
		}
		j := openJournal(t, path)
		if j.Head().Lines != 2 {
			t.Fatalf("cut at %d: %d lines", end, j.Head().Lines)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b[:second]) {
			t.Fatalf("cut at %d: what was unfinished is still there: %v", end, err)
		}
		if err := errors.Join(j.Append(intent(2)), j.Close()); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("cut at %d: not as if it had not happened: %v", end, err)
		}
	}
}

func TestJournalConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := openJournal(t, path)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 25 {
				if err := j.Append(intent(w*100 + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if head, err := identity.VerifyJournal(f, identity.Head{}); err != nil || head != j.Head() || head.Lines != 200 {
		t.Errorf("%+v, %v, want %+v", head, err, j.Head())
	}
}

// The journal as the intent log of real issuing; a full disk stops it.
func TestJournalStopsSigning(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "journal"))
	s := identity.Signing{Now: func() time.Time { return start }, Log: j.Append}
	root, err := identity.NewRoot(trustDomain, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.IssueAdmin(newKey(t).Public(), "ada"); err != nil {
		t.Fatal(err)
	}
	if j.Head().Lines != 2 {
		t.Errorf("%d lines for two certificates", j.Head().Lines)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if chain, err := root.IssueAdmin(newKey(t).Public(), "ada"); err == nil || chain != nil {
		t.Error("signed without a record")
	}
}
