package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

//go:embed equivalent.txt
var equivalentText string

// share is how many of the mutants that are not equivalent must be caught.
const share = 0.95

type check struct {
	root, only              string
	checks, parallel, every int
	limit                   time.Duration

	binary string
	tests  string // their folder
}

func (c *check) run() error {
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if c.root, err = filepath.Abs(c.root); err != nil {
		return err
	}
	mutants, err := c.build(dir)
	if err != nil {
		return err
	}
	if out, ok := c.passes(0); !ok {
		return fmt.Errorf("the judges disagree without any mutant:\n%s", out)
	}
	reasons, err := equivalents(mutants)
	if err != nil {
		return err
	}
	var some []mutant
	for i, m := range mutants {
		if i%c.every == 0 && strings.Contains(m.name, c.only) {
			some = append(some, m)
		}
	}
	caught := c.try(some)
	return report(some, caught, reasons)
}

// build writes the mutants and makes the one test binary.
func (c *check) build(dir string) ([]mutant, error) {
	var mutants []mutant
	replace := map[string]string{}
	put := func(path string, text []byte) error {
		at := filepath.Join(dir, fmt.Sprint(len(replace))+".go")
		replace[path] = at
		return os.WriteFile(at, text, 0o600)
	}
	for _, pkg := range []string{"controlplane/compile", "xds"} {
		s, err := read(c.root, pkg)
		if err != nil {
			return nil, err
		}
		m := &mutator{source: s, mutants: mutants, edits: map[string][]insertion{}, names: map[string]int{}, seen: map[ast.Expr]bool{}}
		for _, name := range lowering()[pkg] {
			m.mutate(name)
			if err := put(filepath.Join(c.root, pkg, name), write(s.content[name], m.edits[name])); err != nil {
				return nil, err
			}
		}
		mutants = m.mutants
		text := "package " + s.pkg.Name() + "\n" + runtime
		if pkg == "xds" {
			text += predicates
		}
		if err := put(filepath.Join(c.root, pkg, "zt_mutants.go"), []byte(text)); err != nil {
			return nil, err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return nil, err
	}
	c.binary, c.tests = filepath.Join(dir, "judges"), filepath.Join(c.root, "controlplane/zttest/rbactest")
	_, err = run(c.root, "go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", filepath.Join(dir, "overlay.json"), "-o", c.binary, "./controlplane/zttest/rbactest")
	return mutants, err
}

// passes tells whether the judges find nothing.
func (c *check) passes(number int) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	var out []byte
	for _, args := range [][]string{
		{"-test.run=^TestDecisions$", "-test.failfast"},
		{"-test.run=^TestRandom$", "-rapid.seed=1", fmt.Sprintf("-rapid.checks=%d", c.checks), "-rapid.shrinktime=0s", "-rapid.nofailfile"},
	} {
		command := exec.CommandContext(ctx, c.binary, args...)
		command.Dir = c.tests
		command.Env = append(os.Environ(), fmt.Sprintf("ZT_MUTANT=%d", number), "GOMAXPROCS=1")
		var err error
		if out, err = command.CombinedOutput(); err != nil {
			return string(out), false
		}
	}
	return string(out), true
}

// try is which of the mutants are caught.
func (c *check) try(mutants []mutant) []bool {
	caught := make([]bool, len(mutants))
	next := make(chan int)
	var wg sync.WaitGroup
	for range c.parallel {
		wg.Go(func() {
			for i := range next {
				_, ok := c.passes(mutants[i].number)
				if caught[i] = !ok; ok {
					fmt.Fprintf(os.Stderr, "%d of %d: lives: %s\n", i+1, len(mutants), mutants[i].name)
				}
			}
		})
	}
	for i := range mutants {
		next <- i
	}
	close(next)
	wg.Wait()
	return caught
}

func report(mutants []mutant, caught []bool, reasons map[string]string) error {
	var errs []error
	counted, equivalent := 0, 0
	for i, m := range mutants {
		switch _, known := reasons[m.name]; {
		case caught[i] && known:
			errs = append(errs, fmt.Errorf("said to be equivalent, but caught: %s", m.name))
		case caught[i]:
			counted++
		case known:
			equivalent++
		default:
			fmt.Printf("survivor %s: %s\n", m.line, m.name)
		}
	}
	different := len(mutants) - equivalent
	fmt.Printf("%d mutants, %d equivalent, %d of %d others caught (%.1f%%)\n", len(mutants), equivalent, counted, different, 100*float64(counted)/float64(different))
	if float64(counted) < share*float64(different) {
		errs = append(errs, fmt.Errorf("fewer than %.0f%% are caught", 100*share))
	}
	return errors.Join(errs...)
}

// equivalents are the reasons of equivalent.txt, by name: a line for each mutant,
// below a line that begins with "#" and says why.
func equivalents(mutants []mutant) (map[string]string, error) {
	reasons := map[string]string{}
	var errs []error
	reason := ""
	for lines := bufio.NewScanner(strings.NewReader(equivalentText)); lines.Scan(); {
		line := lines.Text()
		switch {
		case line == "":
		case strings.HasPrefix(line, "#"):
			reason = strings.TrimSpace(line[1:])
		case reasons[line] != "" || reason == "":
			errs = append(errs, fmt.Errorf("equivalent.txt: twice, or without a reason: %s", line))
		case !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == line }):
			errs = append(errs, fmt.Errorf("equivalent.txt: there is no mutant %s", line))
		default:
			reasons[line] = reason
		}
	}
	return reasons, errors.Join(errs...)
}
