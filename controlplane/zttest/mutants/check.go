package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"maps"
	"os"
	"os/exec"
	"path"
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
	root, only, again       string
	checks, parallel, every int
	limit                   time.Duration

	judges []judge // by whom mutants are tried, one after the other
}

// judge is some tests of one package.
type judge struct {
	name, pkg string
	args      []string
	binary    string
}

// panel is the judges, those that cost least first.
func (c *check) panel() []judge {
	judges := []judge{
		{name: "decision scripts", pkg: "controlplane/zttest/rbactest", args: []string{"-test.run=^TestDecisions$"}},
		{name: "tests of compile", pkg: "controlplane/compile", args: []string{"-test.run=^Test(Golden|ProposedProtocol)$"}},
		{name: "tests of xds", pkg: "xds", args: []string{
			"-test.run=^Test(Golden|OrderCarriesNoMeaning|PolicyEditTouchesOnlyPolicy|Consistent|SmallResources|PeersOfNobody)$",
		}},
	}
	if c.checks > 0 {
		judges = append(judges, judge{name: "random requests", pkg: "controlplane/zttest/rbactest", args: []string{
			"-test.run=^TestRandom$", "-rapid.seed=1", fmt.Sprintf("-rapid.checks=%d", c.checks), "-rapid.shrinktime=0s", "-rapid.nofailfile",
		}})
	}
	return judges
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
	if by, out := c.caughtBy(0); by != "" {
		return fmt.Errorf("%s fail without any mutant:\n%s", by, out)
	}
	reasons, err := equivalents(mutants)
	if err != nil {
		return err
	}
	again := ""
	if c.again != "" {
		text, err := os.ReadFile(c.again)
		if err != nil {
			return err
		}
		again = string(text) + "\n"
	}
	var some []mutant
	for i, m := range mutants {
		if i%c.every == 0 && strings.Contains(m.name, c.only) && (again == "" || strings.Contains(again, m.name+"\n")) {
			some = append(some, m)
		}
	}
	caught := c.try(some)
	fmt.Printf("%d of %d mutants tried\n", len(some), len(mutants))
	return report(some, caught, reasons)
}

// build writes the mutants and makes the test binaries.
func (c *check) build(dir string) ([]mutant, error) {
	var mutants []mutant
	replace := map[string]string{}
	put := func(file string, text []byte) error {
		at := filepath.Join(dir, fmt.Sprint(len(replace))+".go")
		replace[file] = at
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
	c.judges = c.panel()
	for i := range c.judges {
		j := &c.judges[i]
		j.binary = filepath.Join(dir, path.Base(j.pkg))
		_, err := run(c.root, "go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", filepath.Join(dir, "overlay.json"), "-o", j.binary, "./"+j.pkg)
		if err != nil {
			return nil, err
		}
	}
	return mutants, nil
}

// caughtBy is the judge that finds something, and what; empty if none does.
func (c *check) caughtBy(number int) (judge, found string) {
	for _, j := range c.judges {
		if out, ok := c.passes(j, number); !ok {
			return j.name, out
		}
	}
	return "", ""
}

// passes tells whether a judge finds nothing.
func (c *check) passes(j judge, number int) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), c.limit)
	defer cancel()
	command := exec.CommandContext(ctx, j.binary, append(j.args, "-test.failfast")...)
	command.Dir = filepath.Join(c.root, j.pkg)
	command.Env = append(os.Environ(), fmt.Sprintf("ZT_MUTANT=%d", number), "GOMAXPROCS=1")
	out, err := command.CombinedOutput()
	return string(out), err == nil
}

// try is by which judge each of the mutants is caught.
func (c *check) try(mutants []mutant) []string {
	caught := make([]string, len(mutants))
	next := make(chan int)
	var wg sync.WaitGroup
	for range c.parallel {
		wg.Go(func() {
			for i := range next {
				if caught[i], _ = c.caughtBy(mutants[i].number); caught[i] == "" {
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

func report(mutants []mutant, caught []string, reasons map[string]string) error {
	var errs []error
	counted, equivalent := 0, 0
	by := map[string]int{}
	for i, m := range mutants {
		switch _, known := reasons[m.name]; {
		case caught[i] != "" && known:
			errs = append(errs, fmt.Errorf("said to be equivalent, but caught by %s: %s", caught[i], m.name))
		case caught[i] != "":
			counted++
			by[caught[i]]++
		case known:
			equivalent++
		default:
			fmt.Printf("survivor %s: %s\n", m.line, m.name)
		}
	}
	different := len(mutants) - equivalent
	fmt.Printf("%d mutants, %d equivalent, %d of %d others caught (%.1f%%)\n", len(mutants), equivalent, counted, different, 100*float64(counted)/float64(different))
	for _, judge := range slices.Sorted(maps.Keys(by)) {
		fmt.Printf("  %d by %s\n", by[judge], judge)
	}
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
