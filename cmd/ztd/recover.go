package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/controlplane"
)

func recoverCommand(stdout, stderr io.Writer) *cobra.Command {
	var how controlplane.RecoverConfig
	var report, yes bool
	var output string
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Go on from this server alone when the quorum is lost for ever",
		Long: `recover makes the cluster go on from this server, which must not run, when so many
voting servers are lost for ever that no quorum will be there again. Everything in
the log here stays. What only the lost servers had acknowledged is lost, and what was
taken away there is back.

First it compares: every other member must answer, or be known by a report that was
brought from it (--survivor), or be given up by name (--lost). If one of them has more
than this server, or if a quorum is there after all, nothing is done. It tells what
may be lost and asks; --yes answers, --dry-run only tells.

Afterwards this server runs alone, under a new id. All servers of before are refused,
also those that come back: join them anew (ztd join --replace), and until then do not
let them run, since they would serve proxies what they know. Join tokens are void.
Interrupted, it can be run again; ztd run says so if it must be.`,
		Example: `  ztd recover --report --data-dir /var/lib/ztd > report.json     # on another survivor
  ztd recover --data-dir /var/lib/ztd --survivor report.json --lost 4f0c… --dry-run
  ztd recover --data-dir /var/lib/ztd --survivor report.json --lost 4f0c… && ztd run --data-dir /var/lib/ztd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("output %q is neither text nor json", output)
			}
			c, log, err := setUp(cmd, stderr)
			if err != nil {
				return err
			}
			if report {
				s, err := controlplane.Report(c.server(log))
				if err != nil {
					return err
				}
				return printJSON(stdout, s)
			}
			if !yes {
				how.Confirm = func(r controlplane.Recovered) error { return confirm(cmd.InOrStdin(), stderr, r) }
			}
			done, err := controlplane.Recover(cmd.Context(), c.server(log), how)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(stdout, done)
			}
			return printRecovered(stdout, c.DataDir, done)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&how.Lost, "lost", nil, "`ID` of a server that is lost for ever; repeatable")
	f.StringSliceVar(&how.Reports, "survivor", nil, "`FILE` with the report of a survivor that does not run; repeatable")
	f.StringSliceVar(&how.Peers, "peer", nil, "cluster port of a survivor that runs, `HOST:PORT`, beside those that the log names; repeatable")
	f.BoolVar(&report, "report", false, "print what this server has, for a recovery elsewhere; nothing is changed")
	f.BoolVar(&how.DryRun, "dry-run", false, "compare and tell, change nothing")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	withConfig(cmd, "data-dir", "kek", "log-level")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// confirm asks whoever has started this.
func confirm(in io.Reader, out io.Writer, r controlplane.Recovered) error {
	fmt.Fprint(out, plan(r), "go on from this server? Only yes is taken for an answer: ")
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was changed (--yes answers without a terminal)")
	}
	return nil
}

// plan says what will be lost.
func plan(r controlplane.Recovered) string {
	var b strings.Builder
	entry := func(what string, s controlplane.Survivor) {
		fmt.Fprintf(&b, "%s %s: last entry %d of term %d, revision %d, state of %s (%s)\n",
			what, s.Server, s.LastIndex, s.LastTerm, s.Revision, s.When.Format(time.RFC3339), s.From)
	}
	entry("goes on:", r.Before)
	for _, s := range r.Compared {
		entry("compared:", s)
	}
	for _, id := range r.Lost {
		fmt.Fprintf(&b, "given up: %s\n", id)
	}
	fmt.Fprintf(&b, `may be lost: every change after entry %d that was acknowledged by servers which are given up:
  applies, enrolled proxies, admins. Blocks made and rights taken away since %s may be gone:
  look through ztctl status, admin list and the documents at once
certain to be lost: all join tokens, and the membership of every other server
`, r.Before.LastIndex, r.Before.When.Format(time.RFC3339))
	return b.String()
}

func printRecovered(w io.Writer, dir string, r controlplane.Recovered) error {
	var b strings.Builder
	switch {
	case r.Resumed:
		b.WriteString("the recovery that was interrupted is ended\n")
	default:
		b.WriteString(plan(r))
	}
	if !r.Done {
		b.WriteString("it can be recovered; nothing was changed\n")
		_, err := io.WriteString(w, b.String())
		return err
	}
	fmt.Fprintf(&b, "the cluster goes on from here: server %s is %s now\n", r.Before.Server, r.Server)
	if r.Kept != "" {
		fmt.Fprintf(&b, "the log of before is kept in %s\n", r.Kept)
	}
	fmt.Fprintf(&b, `next: ztd run --data-dir %s
      ztctl token create --server --out server.token        # for each other server, then there:
      ztd join --replace --server THIS-HOST:7401 --token-file server.token --data-dir DIR
`, dir)
	_, err := io.WriteString(w, b.String())
	return err
}
