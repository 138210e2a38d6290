package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newStatus() *cobra.Command {
	var watch, stale bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show servers, proxies and what each proxy has confirmed",
		Long: `status shows the servers, every enrolled proxy with the newest revision that
was sent to it and that it has ACKed, and what a proxy refuses (NACK), in
Envoy's own words. A proxy that refuses serves on with what it had.`,
		Example: `  ztctl status
  ztctl status --watch
  ztctl status -o json | jq '.proxies[] | select(.connected | not)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context(), watch, stale, every) },
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again, until Ctrl-C")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "how often, with --watch")
	staleFlag(cmd, &stale)
	return cmd
}

func (a *app) status(ctx context.Context, watch, stale bool, every time.Duration) error {
	if every <= 0 {
		return fmt.Errorf("interval %s is not positive", every)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		st, err := call(ctx, a, c.GetStatus, &ztv1.GetStatusRequest{Stale: stale})
		if err != nil {
			return orHint(err, "ztctl status --stale shows what the server that is asked knows")
		}
		if watch && a.color {
			fmt.Fprint(a.out, "\x1b[H\x1b[2J") // home, clear
		}
		if err := a.print(st, func() error { return a.showStatus(st) }); err != nil || !watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // how a watch ends
		case <-time.After(every):
		}
	}
}

func (a *app) showStatus(st *ztv1.GetStatusResponse) error {
	a.showStaleness(st.Staleness)
	fmt.Fprintf(a.out, "revision %d\n\n", st.Revision)
	if err := a.showMembers(st.Servers); err != nil {
		return err
	}
	if len(st.Proxies) == 0 {
		fmt.Fprintln(a.out, "\nno proxy is enrolled")
		return nil
	}
	fmt.Fprintln(a.out)
	var rows [][]string
	var refused []string
	for _, p := range st.Proxies {
		rows = append(rows, []string{
			p.Workload, p.Instance, p.Address, proxyState(p, st.Revision), number(p.SentRevision), number(p.AckedRevision),
			a.age(p.ConnectedSince), p.Server, p.Secrets,
		})
		for _, n := range p.Nacks {
			refused = append(refused, fmt.Sprintf("%s %s refuses %s (%s ago)", p.Workload, p.Instance, nackLine(n), a.age(n.When)))
		}
	}
	if err := a.columns("WORKLOAD INSTANCE ADDRESS STATE SENT ACKED CONNECTED SERVER SECRETS", rows); err != nil {
		return err
	}
	for i, line := range refused {
		if i == 0 {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintln(a.out, a.paint(red, printable(line)))
	}
	return nil
}

// proxyState is one word for how a proxy is.
func proxyState(p *ztv1.Proxy, newest uint64) string {
	switch {
	case len(p.Nacks) > 0:
		return "nacked"
	case p.Withdrawn:
		return "withdrawn"
	case !p.Connected:
		return "away"
	case p.AckedRevision < newest:
		return "behind"
	}
	return "current"
}

// number leaves out what is not known yet.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
