package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

func (a *app) newLog() *cobra.Command {
	req := &ztv1.ListAuditRequest{}
	var limit uint32
	var since time.Duration
	var follow bool
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show the audit log: who did what, from where, and what came of it",
		Example: `  ztctl log --who alice --since 24h
  ztctl log --namespace shop -o json
  ztctl log -f
  ztctl log refusals --since 1h
  ztctl log verify`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since > 0 {
				req.Since = timestamppb.New(a.now().Add(-since))
			}
			req.PageSize = min(limit, 1000)
			if follow {
				return a.followLog(cmd.Context())
			}
			return a.log(cmd.Context(), req, int(limit))
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Who, "who", "", "only calls by whose SPIFFE ID has this `TEXT` in it")
	f.StringVarP(&req.Namespace, "namespace", "n", "", "only calls about this `NAMESPACE`")
	f.StringVar(&req.Method, "method", "", "only calls of methods whose name has this `TEXT` in it")
	f.DurationVar(&since, "since", 0, "only calls of so long ago at most")
	f.Uint64Var(&req.Revision, "revision", 0, "only the call that made this `REVISION`")
	f.Uint64Var(&req.Before, "before", 0, "only records before this `NUMBER`")
	f.Uint32Var(&limit, "limit", 20, "how many")
	f.BoolVarP(&follow, "follow", "f", false, "show new records as they come")
	cmd.AddCommand(a.newLogVerify(), a.newLogExport(), a.newLogRefusals(), a.newLogAccept())
	return cmd
}

func (a *app) log(ctx context.Context, req *ztv1.ListAuditRequest, limit int) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	all := &ztv1.ListAuditResponse{}
	for {
		resp, err := call(ctx, a, c.ListAudit, req)
		if err != nil {
			return err
		}
		all.Records = append(all.Records, resp.Records...)
		all.NextBefore, req.Before = resp.NextBefore, resp.NextBefore
		if resp.NextBefore == 0 || len(all.Records) >= limit {
			break
		}
	}
	all.Records = all.Records[:min(len(all.Records), limit)]
	return a.print(all, func() error { return a.columns(logHeader, logRows(all.Records)) })
}

const logHeader = "RECORD TIME WHO FROM WHAT ABOUT OUTCOME REVISION"

func logRows(records []*logv1.AuditRecord) (rows [][]string) {
	for _, r := range records {
		var about []string
		for _, k := range r.Resources[:min(len(r.Resources), 3)] {
			name := k.Name
			if k.Namespace != "" {
				name = k.Namespace + "/" + name
			}
			about = append(about, k.Kind+" "+name)
		}
		if more := r.ResourcesTotal - uint64(len(about)); more > 0 {
			about = append(about, fmt.Sprintf("and %d more", more))
		}
		rows = append(rows, []string{
			strconv.FormatUint(r.Sequence, 10), r.When.AsTime().UTC().Format(time.RFC3339), caller(r.Who), r.From,
			r.Method[strings.LastIndexByte(r.Method, '/')+1:], strings.Join(about, ", "), r.Outcome, strconv.FormatUint(r.Revision, 10),
		})
	}
	return rows
}

// followLog prints what comes from now on, until ctx ends.
func (a *app) followLog(ctx context.Context) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	newest, err := call(ctx, a, c.ListAudit, &ztv1.ListAuditRequest{PageSize: 1})
	if err != nil {
		return err
	}
	from := uint64(1)
	if len(newest.Records) > 0 {
		from = newest.Records[0].Sequence + 1
	}
	stream, err := c.ReadAudit(ctx, &ztv1.ReadAuditRequest{From: from, Follow: true})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, b := range resp.Records {
			r, err := state.ReadAudit(b)
			if err != nil {
				return fmt.Errorf("a record %w", err)
			}
			if a.set.Output == "table" {
				fmt.Fprintln(a.out, printable(strings.Join(logRows([]*logv1.AuditRecord{r.Record})[0], "  ")))
			} else if err := a.print(r.Record, nil); err != nil {
				return err
			}
		}
	}
}
