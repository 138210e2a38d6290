package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// waiting is how long a command waits for the proxies after it has committed.
type waiting struct {
	skip    bool
	timeout time.Duration
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.skip, "no-wait", false, "do not wait for the proxies")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 30*time.Second, "how long to wait for the proxies")
}

// committed is the answer to what has made a revision.
type committed interface {
	proto.Message
	GetRevision() uint64
	GetAffected() []*ztv1.InstanceRef
}

// proxies is "1 proxy is", "2 proxies are".
func proxies(resp committed) string {
	return plural(len(resp.GetAffected()), "proxy is", "proxies are")
}

// afterCommit waits for the proxies and tells how it went. command is what has been
// answered by resp.
func (a *app) afterCommit(ctx context.Context, c *client, w waiting, command string, resp committed) error {
	revision := fmt.Sprintf("revision %d", resp.GetRevision())
	if w.skip {
		return a.print(resp, func() error {
			fmt.Fprintf(a.out, "%s committed; %s affected\n", revision, proxies(resp))
			return nil
		})
	}
	receipt, err := a.awaitReceipt(ctx, c, &ztv1.WatchReceiptRequest{Revision: resp.GetRevision()}, w.timeout)
	if a.set.Output != "table" {
		if perr := a.printCommitted(command, resp, receipt); perr != nil {
			return perr
		}
	} else if perr := a.showReceipt(receipt); perr != nil {
		return perr
	}
	switch {
	case err != nil:
		return &exit{exitUnconfirmed, fmt.Errorf("%s is committed, but its receipt cannot be read: %w", revision, a.explain(err))}
	case !receipt.GetComplete():
		return &exit{exitUnconfirmed, unconfirmed(revision, receipt)}
	case a.set.Output == "table":
		fmt.Fprintf(a.out, "%s is confirmed by %s\n", revision, confirmedBy(receipt.Counts))
	}
	return nil
}

// printCommitted is what a command that waits says in json and yaml: its answer and
// the receipt.
func (a *app) printCommitted(command string, resp committed, receipt *ztv1.WatchReceiptResponse) error {
	answer, err := toJSON(resp)
	heard, err2 := toJSON(receipt)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	return a.printJSON(fmt.Appendf(nil, "{%q: %s, \"receipt\": %s}", command, answer, heard))
}

// awaitReceipt follows a revision until it is settled or the time is over, and
// returns the last that was heard (nil: nothing). It errs only when no more can
// be heard. A server that goes away is replaced by the next.
func (a *app) awaitReceipt(ctx context.Context, c *client, req *ztv1.WatchReceiptRequest, timeout time.Duration) (*ztv1.WatchReceiptResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p := &progress{app: a}
	defer p.done()
	var last *ztv1.WatchReceiptResponse
	heard := func(r *ztv1.WatchReceiptResponse) {
		last = r
		p.show(r)
	}
	for {
		settled, err := follow(ctx, c, req, heard)
		if settled || ctx.Err() != nil {
			return last, nil
		}
		switch status.Code(err) {
		case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.InvalidArgument, codes.OutOfRange:
			return last, err
		}
		c.next()
		select {
		case <-ctx.Done():
			return last, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// refusalStands is how long a receipt must stay as it is before a NACK in it is
// taken for the answer: at first it may be about the configuration before.
const refusalStands = 2 * time.Second

// follow reads one stream of receipts until waiting has no more use: all have
// confirmed, or each has either ACKed or refused, and stays with that.
func follow(ctx context.Context, c *client, req *ztv1.WatchReceiptRequest, heard func(*ztv1.WatchReceiptResponse)) (settled bool, err error) {
	stream, stop := context.WithCancel(ctx)
	defer stop()
	receipts, err := c.WatchReceipt(stream, req)
	if err != nil {
		return false, err
	}
	stands := time.AfterFunc(refusalStands, stop)
	stands.Stop() // until there is something to wait for
	defer stands.Stop()
	for before := (*ztv1.WatchReceiptResponse)(nil); ; {
		r, err := receipts.Recv()
		if err != nil {
			return stream.Err() != nil && ctx.Err() == nil, err
		}
		heard(r)
		if r.Complete {
			return true, nil
		}
		if proto.Equal(before, r) {
			continue
		}
		before = r
		if stands.Stop(); answered(r) {
			stands.Reset(refusalStands)
		}
	}
}

// answered tells that no more can be expected: every proxy has ACKed or refused.
func answered(r *ztv1.WatchReceiptResponse) bool {
	c := r.GetCounts()
	return len(r.Unreachable) == 0 && c.GetNacked() > 0 && c.GetUnconfirmed()+c.GetSent() == 0
}

// confirmedBy is "3 affected proxies: 2 enforced, 1 ACKed".
func confirmedBy(c *ztv1.ReceiptCounts) string {
	by := plural(int(c.GetAffected()), "affected proxy", "affected proxies")
	if c.GetAffected() > 0 {
		by += ": " + states(c)
	}
	return by
}

// states is how many proxies are in which state, those with none left out.
func states(c *ztv1.ReceiptCounts) string {
	var out []string
	for _, s := range []struct {
		n    uint32
		name string
	}{{c.GetEnforced(), "enforced"}, {c.GetAcked(), "ACKed"}, {c.GetSent(), "sent"}, {c.GetNacked(), "refused"}, {c.GetUnconfirmed(), "unconfirmed"}} {
		if s.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", s.n, s.name))
		}
	}
	return strings.Join(out, ", ")
}

// unconfirmed is the error of a receipt that is not complete.
func unconfirmed(revision string, r *ztv1.WatchReceiptResponse) error {
	if r == nil {
		return withHint(fmt.Errorf("%s is committed; no server told how far it has got", revision), "see ztctl status")
	}
	c := r.GetCounts()
	err := fmt.Errorf("%s is committed, but not confirmed by each of %s", revision, confirmedBy(c))
	switch {
	case c.GetNacked() > 0:
		return withHint(err, "a proxy refused its configuration and serves on with the old one; see ztctl status")
	case c.GetUnconfirmed()+c.GetSent() == 0:
		return withHint(err, "they have it, and do not work by it yet; ask again: ztctl receipt %d --wait", r.Revision)
	}
	return withHint(err, "the others take it over when they can; ask again: ztctl receipt %d --wait", r.Revision)
}

// showReceipt prints the receipt as a table. Times are since the commit.
func (a *app) showReceipt(r *ztv1.WatchReceiptResponse) error {
	if len(r.GetProxies()) == 0 {
		return nil
	}
	after := func(t *timestamppb.Timestamp) string {
		if t == nil {
			return ""
		}
		return "+" + t.AsTime().Sub(r.Committed.AsTime()).Round(time.Millisecond).String()
	}
	var rows [][]string
	for _, p := range r.Proxies {
		var why []string
		for _, n := range p.Nacks {
			why = append(why, nackLine(n))
		}
		if len(p.Differs) > 0 {
			why = append(why, "not in effect yet: "+strings.Join(p.Differs, ", "))
		}
		rows = append(rows, []string{
			p.Workload, p.Instance, p.State, after(p.SentAt), after(p.AckedAt), after(p.EnforcedAt), strings.Join(why, "; "),
		})
	}
	if err := a.columns("WORKLOAD INSTANCE STATE SENT ACKED ENFORCED WHY", rows); err != nil {
		return err
	}
	for _, p := range r.Proxies {
		for _, c := range p.Cuts {
			fmt.Fprintf(a.out, "%s %s cut %s of %s to its port %s, the last one %s\n", p.Workload, p.Instance,
				plural(int(c.Connections), "open connection", "open connections"), printable(c.Caller), c.Port, after(c.LastAt))
		}
	}
	if r.Closed > 0 {
		fmt.Fprintf(a.out, "%s of a caller and a port closed; none of their connections is open after %s\n",
			plural(int(r.Closed), "pair", "pairs"), r.NoneOpenAfter.AsTime().Format(time.RFC3339))
	}
	if r.Omitted > 0 {
		a.note("%d more are counted and not shown; ztctl receipt %d --all names every one", r.Omitted, r.Revision)
	}
	for _, s := range r.Unreachable {
		a.note("server %s did not answer; its proxies are unconfirmed", printable(s))
	}
	return nil
}

// nackLine names what was refused and gives Envoy's own words.
func nackLine(n *ztv1.Nack) string {
	kind := n.TypeUrl[strings.LastIndexByte(n.TypeUrl, '.')+1:]
	return strings.TrimSpace(kind+" "+n.Resource) + ": " + n.Message
}

func (a *app) newReceipt() *cobra.Command {
	var o struct {
		wait, all bool
		timeout   time.Duration
	}
	cmd := &cobra.Command{
		Use:   "receipt REVISION",
		Short: "Show how far a revision has got on the proxies that it affects",
		Long: `receipt shows, of each proxy that a revision affects, when the revision was sent to it,
when the proxy has ACKed it, and since when its Envoy works by it (enforced), as the
agent beside it has read there. Without an agent, the ACK is the last word. Times are
since the commit; a proxy that holds a later revision has this one, too.

A proxy that is not connected, or whose server does not answer, is unconfirmed: then
the exit code is 4, as it is after apply.`,
		Example: `  ztctl receipt 42
  ztctl receipt 42 --wait --timeout 2m
  ztctl receipt 42 --all -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			revision, err := parseRevision(args[0])
			if err != nil {
				return err
			}
			if !o.wait {
				o.timeout = 0
			}
			return a.receipt(cmd.Context(), &ztv1.WatchReceiptRequest{Revision: revision, All: o.all}, o.timeout)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.wait, "wait", false, "wait until it is confirmed")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait")
	f.BoolVar(&o.all, "all", false, "name every proxy, however many there are")
	return cmd
}

// receipt shows how far a revision has got; timeout 0: now.
func (a *app) receipt(ctx context.Context, req *ztv1.WatchReceiptRequest, timeout time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var r *ztv1.WatchReceiptResponse
	if timeout > 0 {
		r, err = a.awaitReceipt(ctx, c, req, timeout)
	} else {
		err = a.throughElection(ctx, func() (err error) {
			call, cancel := a.deadline(ctx)
			defer cancel() // the rest of the stream is of no use
			stream, err := c.WatchReceipt(call, req)
			if err == nil {
				r, err = stream.Recv()
			}
			return err
		})
	}
	if err != nil {
		return a.explain(err)
	}
	revision := fmt.Sprintf("revision %d", req.Revision)
	if r == nil {
		return &exit{exitUnconfirmed, unconfirmed(revision, nil)}
	}
	err = a.print(r, func() error {
		fmt.Fprintf(a.out, "%s by %s at %s: %s\n", revision, printable(r.Who), r.Committed.AsTime().Format(time.RFC3339), confirmedBy(r.Counts))
		return a.showReceipt(r)
	})
	if err == nil && !r.Complete {
		return &exit{exitUnconfirmed, unconfirmed(revision, r)}
	}
	return err
}
