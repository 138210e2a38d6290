package journal

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// join is a line: the body with its place in the chain.
//
//	{"kind":"node"} → {"kind":"node","line":2,"prev":"9f2c..."}
func join(body []byte, after Head) []byte {
	b := bytes.TrimSuffix(body, []byte("}"))
	if len(b) > 1 {
		b = append(slices.Clone(b), ',')
	}
	return fmt.Appendf(b, `"line":%d,"prev":"%s"}`, after.Lines+1, after.Hash)
}

var lineKey, prevKey = []byte(`"line":`), []byte(`,"prev":"`)

// split is the reverse of join; ok is false for what join does not make.
func split(line []byte) (body []byte, number uint64, prev string, ok bool) {
	at := bytes.LastIndex(line, lineKey)
	if at < 1 || line[0] != '{' || !bytes.HasSuffix(line, []byte(`"}`)) {
		return nil, 0, "", false
	}
	place, found := bytes.CutSuffix(line[at+len(lineKey):], []byte(`"}`))
	digits, hash, cut := bytes.Cut(place, prevKey)
	number, err := strconv.ParseUint(string(digits), 10, 64)
	if !found || !cut || err != nil || len(hash) != 0 && len(hash) != 64 {
		return nil, 0, "", false
	}
	if _, err := hex.DecodeString(string(hash)); err != nil {
		return nil, 0, "", false
	}
	body = append(bytes.TrimSuffix(slices.Clone(line[:at]), []byte(",")), '}')
	again := join(body, Head{number - 1, string(hash)})
	return body, number, string(hash), bytes.Equal(again, line)
}

// Body is what Append was given for a line; nil if it is none.
func Body(line []byte) []byte {
	body, _, _, _ := split(line)
	return body
}

// checkLine wants a line that follows head.
func checkLine(b []byte, head Head, check func([]byte) error) error {
	bad := func(reason string) error { return &LineError{head.Lines + 1, reason} }
	body, number, prev, ok := split(b)
	switch {
	case !ok && json.Valid(b):
		return bad("not as it was written")
	case !ok:
		return bad("not a record")
	case number != head.Lines+1:
		return bad(fmt.Sprintf("says that it is line %d", number))
	case prev != head.Hash:
		return bad("does not follow the line before")
	}
	if check == nil {
		if !json.Valid(body) {
			return bad("not a record")
		}
		return nil
	}
	if err := check(body); err != nil {
		return bad(err.Error())
	}
	return nil
}

// Verify reads the lines that follow a head, and returns the head of the last; or a
// *LineError that names the first bad line. An unfinished last line is bad. check is
// that of Config.
func Verify(r io.Reader, after Head, check func(body []byte) error) (Head, error) {
	head, _, torn, err := verify(r, after, check)
	if err == nil && torn {
		err = &LineError{head.Lines + 1, "is not finished"}
	}
	if err != nil {
		return Head{}, err
	}
	return head, nil
}

// verify returns the head and the size in bytes of the finished lines, and whether an
// unfinished one follows.
func verify(r io.Reader, head Head, check func([]byte) error) (_ Head, size int64, torn bool, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		b, err := in.ReadBytes('\n')
		if err == io.EOF {
			return head, size, len(b) > 0, nil
		}
		if err != nil {
			return Head{}, 0, false, err
		}
		size += int64(len(b))
		b = b[:len(b)-1]
		if err := checkLine(b, head, check); err != nil {
			return Head{}, 0, false, err
		}
		head = Head{head.Lines + 1, hashOf(b)}
	}
}

func segmentPath(path string, first, last uint64) string {
	return fmt.Sprintf("%s.%020d-%020d", path, first, last)
}

// segmentLines are the lines that the name of a segment says.
func segmentLines(path, name string) (first, last uint64, ok bool) {
	f, l, cut := strings.Cut(strings.TrimPrefix(name, path+"."), "-")
	first, ferr := strconv.ParseUint(f, 10, 64)
	last, lerr := strconv.ParseUint(l, 10, 64)
	return first, last, cut && ferr == nil && lerr == nil && segmentPath(path, first, last) == name
}

func letGoPath(path string) string { return path + ".letgo" }

// load reads what is on the disk, and makes the newest segment if it is not there.
func (j *Journal) load() error {
	letGo, err := readLetGo(j.cfg.Path)
	if err != nil {
		return err
	}
	j.letGo, j.head, j.ended, j.f = letGo, letGo, nil, nil
	names, err := filepath.Glob(escape(j.cfg.Path) + ".*-*")
	if err != nil {
		return err
	}
	slices.Sort(names) // by first line
	for _, name := range names {
		first, last, ok := segmentLines(j.cfg.Path, name)
		switch {
		case !ok:
		case last <= letGo.Lines: // a crash came between the word and the deed
			err = os.Remove(name)
		default:
			err = j.loadEnded(name, first, last)
		}
		if err != nil {
			return err
		}
	}
	return j.loadNewest()
}

// SetAside moves the files of a journal that is not open to a folder, which it makes.
func SetAside(path, folder string) error {
	names, err := filepath.Glob(escape(path) + ".*-*")
	if err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	for _, name := range append(names, path, letGoPath(path)) {
		_, _, ok := segmentLines(path, name)
		if !ok && name != path && name != letGoPath(path) {
			continue
		}
		if err := os.Rename(name, filepath.Join(folder, filepath.Base(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}

func (j *Journal) loadEnded(name string, first, last uint64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// What its lines say was checked when it was the newest, and cannot have changed
	// within the chain.
	head, size, torn, err := verify(f, j.head, func([]byte) error { return nil })
	switch {
	case err != nil:
		return err
	case torn:
		return &LineError{head.Lines + 1, "is not finished"}
	case first != j.head.Lines+1:
		return &LineError{j.head.Lines + 1, "is gone"}
	case last != head.Lines:
		return &LineError{head.Lines + 1, fmt.Sprintf("is gone: there were %d lines", last)}
	}
	j.ended = append(j.ended, segment{name, first, head, size, info.ModTime()})
	j.head = head
	return nil
}

func (j *Journal) loadNewest() error {
	f, err := os.OpenFile(j.cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	j.f, j.first = f, j.head.Lines+1
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %v, must be a file of mode 0600", j.cfg.Path, info.Mode())
	}
	head, size, _, err := verify(f, j.head, j.cfg.Check)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	j.head, j.size, j.synced = head, size, head.Lines
	return errors.Join(f.Sync(), syncDir(filepath.Dir(j.cfg.Path)))
}

// escape makes a path that filepath.Glob takes as it is.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func readLetGo(path string) (h Head, err error) {
	b, err := os.ReadFile(letGoPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, nil
	}
	if err != nil {
		return Head{}, err
	}
	if err := json.Unmarshal(b, &h); err != nil || h.Lines == 0 || len(h.Hash) != 64 {
		return Head{}, fmt.Errorf("%s is damaged", letGoPath(path))
	}
	return h, nil
}

// writeLetGo says in one step up to where lines are let go.
func writeLetGo(path string, h Head) error {
	name := letGoPath(path)
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
