package main

import (
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// showChanges prints one line for each document, and for one that changes what
// is different in it:
//
//   - Grant shop/web-reads-orders
//     ~ Workload shop/orders
//     @@ -5,3 +5,3 @@
//     serves:
//     -- {name: http, port: 8080, protocol: http}
//     +- {name: http, port: 8081, protocol: http}
//   - Grant shop/old
func (a *app) showChanges(changes []*ztv1.Change) {
	count := map[string]int{}
	for _, c := range changes {
		count[c.Action]++
		name := printable(c.Kind + " " + c.Namespace + "/" + c.Name)
		switch c.Action {
		case "add":
			fmt.Fprintln(a.out, a.paint(green, "+ "+name))
		case "remove":
			fmt.Fprintln(a.out, a.paint(red, "- "+name))
		default:
			fmt.Fprintln(a.out, a.paint(bold, "~ "+name))
			a.showDiff(c.Before, c.After)
		}
	}
	if len(changes) == 0 {
		fmt.Fprintln(a.out, "no changes")
		return
	}
	fmt.Fprintf(a.out, "%d added, %d changed, %d removed\n", count["add"], count["change"], count["remove"])
}

// showDiff prints the hunks of a unified diff, indented.
func (a *app) showDiff(before, after string) {
	text := string(diff.Diff("before", []byte(before), "after", []byte(after)))
	_, hunks, _ := strings.Cut(text, "\n@@")
	if hunks == "" {
		return
	}
	for _, line := range strings.Split(strings.TrimSuffix("@@"+hunks, "\n"), "\n") {
		line = printable(line)
		switch {
		case strings.HasPrefix(line, "+"):
			line = a.paint(green, line)
		case strings.HasPrefix(line, "-"):
			line = a.paint(red, line)
		}
		fmt.Fprintln(a.out, "    "+line)
	}
}
