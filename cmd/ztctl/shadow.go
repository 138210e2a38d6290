package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newShadow() *cobra.Command {
	var stale bool
	var key string
	cmd := &cobra.Command{
		Use:   "shadow",
		Short: "Show which requests would get another verdict",
		Long: `shadow shows the requests whose verdict would be another if the grants with
"mode: shadow" were enforced, and what was proposed by ztctl apply --shadow applied.
Requests that are alike are counted together, the most frequent first.

CHANGE is what the proxy did, and what it would do. BY is the grant that would
allow it, or the one that allows it now. The counters are in the memory of the
servers: they begin anew with each proposal, and when a server starts.`,
		Example: `  ztctl apply -f shop/ --shadow
  ztctl shadow -n shop
  ztctl shadow -o json | jq '.differences[] | select(.wouldAllow | not)'
  ztctl shadow end shop`,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.shadow(cmd.Context(), stale) },
	}
	end := &cobra.Command{
		Use: "end NAMESPACE", Short: "Take back what was proposed for a namespace", Args: cobra.ExactArgs(1),
		Long: `end takes back what ztctl apply --shadow proposed for a namespace. Grants with
"mode: shadow" are documents, and end when an apply removes them.`,
		Example: "  ztctl shadow end shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := commit(cmd.Context(), a, c.EndShadow, &ztv1.EndShadowRequest{Namespace: args[0], IdempotencyKey: key}); err != nil {
				return orHint(err, "ztctl shadow shows what is proposed")
			}
			a.note("what was proposed for namespace %s is taken back", args[0])
			return nil
		},
	}
	staleFlag(cmd, &stale)
	keyFlag(end, &key)
	cmd.AddCommand(end)
	return cmd
}

func (a *app) shadow(ctx context.Context, stale bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := call(ctx, a, c.GetShadow, &ztv1.GetShadowRequest{Namespace: a.set.Namespace, Stale: stale})
	if err != nil {
		return err
	}
	return a.print(resp, func() error { return a.showShadow(resp, c.context.TrustDomain) })
}

func (a *app) showShadow(resp *ztv1.GetShadowResponse, trustDomain string) error {
	a.showStaleness(resp.Staleness)
	for _, p := range resp.Proposals {
		line := fmt.Sprintf("proposed for namespace %s by %s %s ago", p.Namespace, p.Who, a.age(p.When))
		if p.Message != "" {
			line += ": " + p.Message
		}
		fmt.Fprintln(a.out, printable(line))
	}
	var rows [][]string
	for _, d := range resp.Differences {
		by := d.WouldReason
		if !d.WouldAllow && d.Allowed && !strings.HasPrefix(by, "block:") {
			by = d.Reason
		}
		rows = append(rows, []string{
			d.Service, d.Port, callerName(trustDomain, d.Caller), d.Method, d.Path,
			verdict(d.Allowed) + " -> " + verdict(d.WouldAllow), by, strconv.FormatUint(d.Count, 10), a.age(d.Last),
		})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.out, "no proxy has reported a request whose verdict would change")
	} else if err := a.columns("SERVICE PORT CALLER METHOD PATH CHANGE BY COUNT LAST", rows); err != nil {
		return err
	}
	if resp.Dropped > 0 {
		a.note("%d more reports were not kept, for want of room", resp.Dropped)
	}
	for _, s := range resp.Unreachable {
		a.note("server %s did not answer; what its proxies report is missing", printable(s))
	}
	return nil
}

// callerName is a SPIFFE ID as specs write it: namespace/name for a workload of the
// own trust domain.
func callerName(trustDomain, id string) string {
	if rest, ok := strings.CutPrefix(id, "spiffe://"+trustDomain+"/ns/"); ok {
		if ns, name, ok := strings.Cut(rest, "/sa/"); ok {
			return ns + "/" + name
		}
	}
	return id
}
