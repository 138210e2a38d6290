package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/identity"
)

// maxSpecBytes is what a server takes in one apply.
const maxSpecBytes = 64 << 20

// fileFlag gives cmd its repeatable -f.
func fileFlag(cmd *cobra.Command, paths *[]string, required bool) {
	cmd.Flags().StringArrayVarP(paths, "file", "f", nil, "`FILE`, folder (with all below it) or - for stdin; repeatable")
	if required {
		if err := cmd.MarkFlagRequired("file"); err != nil {
			panic(err) // the flag stands one line above
		}
	}
}

// readSpec reads the files that -f names: *.yaml, *.yml and *.json of folders,
// hidden ones left out, in the order of their names.
func (a *app) readSpec(paths []string) ([]spec.File, error) {
	var out []spec.File
	var total int
	add := func(name string, r io.Reader) error {
		content, err := io.ReadAll(io.LimitReader(r, int64(maxSpecBytes-total)+1))
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if total += len(content); total > maxSpecBytes {
			return fmt.Errorf("the files are larger than %d MiB together", maxSpecBytes>>20)
		}
		out = append(out, spec.File{Name: name, Content: content})
		return nil
	}
	for _, p := range paths {
		if p == "-" {
			if err := add("stdin", a.in); err != nil {
				return nil, err
			}
			continue
		}
		names, err := specFiles(p)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := addFile(name, add); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func addFile(name string, add func(string, io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return add(name, f)
}

func specFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var names []string
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != path && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
		case !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)):
			names = append(names, p)
		}
		return nil
	})
	if err == nil && len(names) == 0 {
		err = withHint(fmt.Errorf("%s has no spec files", path), "a spec file ends in .yaml, .yml or .json")
	}
	return names, err
}

// mustBeNew refuses a file that is there already, before a server makes the
// credential that is to be written to it.
func mustBeNew(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return withHint(fmt.Errorf("%s is there already", path), "name another file, or remove this one first")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeNew writes a file with a credential in it: mode 0600, never over another
// file.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// replaceChanged is identity.WriteFile, unless the file says so already: who watches it is
// not woken for nothing.
func replaceChanged(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return identity.WriteFile(path, content)
}
