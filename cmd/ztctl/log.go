package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/identity"
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
	f.StringVar(&req.Who, "who", "", "only calls by whose SPIFFE ID has this in it")
	f.StringVar(&req.Namespace, "namespace", "", "only calls about this namespace")
	f.StringVar(&req.Method, "method", "", "only calls of methods whose name has this in it")
	f.DurationVar(&since, "since", 0, "only calls of so long ago at most")
	f.Uint64Var(&req.Revision, "revision", 0, "only the call that made this revision")
	f.Uint64Var(&req.Before, "before", 0, "only records before this number")
	f.Uint32Var(&limit, "limit", 20, "how many")
	f.BoolVarP(&follow, "follow", "f", false, "show new records as they come")
	cmd.AddCommand(a.newLogVerify(), a.newLogExport())
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
		_, who, found := strings.Cut(r.Who, "spiffe://control.")
		if _, after, ok := strings.Cut(who, "/"); found && ok {
			who = after
		} else {
			who = r.Who
		}
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
			strconv.FormatUint(r.Sequence, 10), r.When.AsTime().UTC().Format(time.RFC3339), who, r.From,
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

// auditChain is records that are verified one after another.
type auditChain struct {
	begun    bool
	sequence uint64
	hash     []byte
	at       map[uint64][]byte // hashes of the newest records
}

// add takes the record that must come next; before the first, any.
func (c *auditChain) add(b []byte) error {
	r, err := state.ReadAudit(b)
	if err != nil {
		return fmt.Errorf("record %d %w", c.sequence+1, err)
	}
	if !c.begun {
		c.begun, c.sequence, c.hash, c.at = true, r.Record.Sequence-1, r.Record.Previous, map[uint64][]byte{}
	}
	if _, err := state.CheckAudit(b, c.sequence, c.hash); err != nil {
		return fmt.Errorf("record %d %w", c.sequence+1, err)
	}
	c.sequence, c.hash = r.Record.Sequence, r.Hash
	c.at[c.sequence] = r.Hash
	return nil
}

// readServer verifies what one server has on its disk against what it has agreed on.
func readServer(ctx context.Context, c ztv1.AdminServiceClient, each func([]byte) error) (*ztv1.AuditStatus, *auditChain, error) {
	stream, err := c.ReadAudit(ctx, &ztv1.ReadAuditRequest{})
	if err != nil {
		return nil, nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	st, chain := first.Status, &auditChain{}
	if len(st.Missing) > 0 {
		return st, chain, fmt.Errorf("records %d to %d are missing", st.Missing[0].First, st.Missing[0].Last)
	}
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return st, chain, err
		}
		for _, b := range resp.Records {
			if !chain.begun {
				if r, err := state.ReadAudit(b); err == nil && r.Record.Sequence != st.LetGo+1 {
					return st, chain, fmt.Errorf("records %d to %d are missing", st.LetGo+1, r.Record.Sequence-1)
				}
			}
			if err := chain.add(b); err != nil {
				return st, chain, err
			}
			if err := each(b); err != nil {
				return st, chain, err
			}
		}
	}
	switch {
	case chain.sequence != st.Head.GetSequence():
		return st, chain, fmt.Errorf("records %d to %d are missing: the end was cut off", chain.sequence+1, st.Head.GetSequence())
	case !bytes.Equal(chain.hash, st.Head.GetHash()):
		return st, chain, fmt.Errorf("record %d is not the one that the cluster agreed on: it, or one before it, is forged", chain.sequence)
	}
	return st, chain, nil
}

func (a *app) newLogVerify() *cobra.Command {
	var files []string
	var head string
	var issuance bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the audit log of every server, or exported files",
		Example: `  ztctl log verify
  ztctl log verify --issuance
  ztctl log verify -f january.log -f february.log --head 812:9f2c...`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) > 0 {
				return a.verifyFiles(files, head)
			}
			return a.verifyServers(cmd.Context(), head, issuance)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "files of ztctl log export, in their order; no server is asked")
	cmd.Flags().StringVar(&head, "head", "", "a head that was noted before (record:sha256), which the chain must lead through")
	cmd.Flags().BoolVar(&issuance, "issuance", false, "verify the issuance journals, too; needs role admin")
	return cmd
}

func (a *app) verifyServers(ctx context.Context, head string, issuance bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	var longest *auditChain
	for i, conn := range c.conns {
		one := ztv1.NewAdminServiceClient(conn)
		st, chain, err := readServer(ctx, one, func([]byte) error { return nil })
		name := c.context.Servers[i]
		if err != nil {
			errs = append(errs, fmt.Errorf("server %s: %w", name, err))
			continue
		}
		if err := agree(longest, chain); err != nil {
			errs = append(errs, fmt.Errorf("server %s: %w", name, err))
		}
		if longest == nil || chain.sequence > longest.sequence {
			longest = chain
		}
		fmt.Fprintf(a.out, "server %s: records %d to %d are whole; head %d:%x\n", name, st.LetGo+1, chain.sequence, chain.sequence, chain.hash)
		if issuance {
			lines, err := verifyJournal(ctx, one)
			if err != nil {
				errs = append(errs, fmt.Errorf("server %s: issuance journal: %w", name, err))
				continue
			}
			fmt.Fprintf(a.out, "server %s: %d lines of its issuance journal are whole\n", name, lines)
		}
	}
	if longest != nil {
		errs = append(errs, through(longest, head))
	}
	return errors.Join(errs...)
}

// agree tells whether two chains are one, as far as both reach.
func agree(a, b *auditChain) error {
	if a == nil {
		return nil
	}
	at := min(a.sequence, b.sequence)
	if ha, hb := a.at[at], b.at[at]; ha != nil && hb != nil && !bytes.Equal(ha, hb) {
		return fmt.Errorf("record %d is another one than on the servers before: one of them, or one before it, is forged", at)
	}
	return nil
}

// through tells whether a chain leads through a head that was noted.
func through(c *auditChain, head string) error {
	if head == "" {
		return nil
	}
	number, hash, _ := strings.Cut(head, ":")
	sequence, err := strconv.ParseUint(number, 10, 64)
	if sum, herr := hex.DecodeString(hash); err != nil || herr != nil || len(sum) != sha256.Size {
		return fmt.Errorf("--head %q is not RECORD:SHA256", head)
	}
	if got, ok := c.at[sequence]; !ok {
		return fmt.Errorf("record %d is not there", sequence)
	} else if hex.EncodeToString(got) != hash {
		return fmt.Errorf("record %d is not the one that was noted: it, or one before it, was edited", sequence)
	}
	return nil
}

// verifyJournal verifies a server's issuance journal against its anchor.
func verifyJournal(ctx context.Context, c ztv1.AdminServiceClient) (lines uint64, err error) {
	stream, err := c.ReadJournal(ctx, &ztv1.ReadJournalRequest{})
	if err != nil {
		return 0, err
	}
	first, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	var all bytes.Buffer
	anchored := ""
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		for _, line := range resp.Lines {
			if lines++; lines == first.Anchor.GetLines() {
				sum := sha256.Sum256(line)
				anchored = hex.EncodeToString(sum[:])
			}
			all.Write(append(line, '\n'))
		}
	}
	if _, err := identity.VerifyJournal(&all); err != nil {
		return 0, err
	}
	switch {
	case lines < first.Anchor.GetLines():
		return 0, fmt.Errorf("it has %d lines, and had %d: the end was cut off", lines, first.Anchor.GetLines())
	case anchored != first.Anchor.GetHash():
		return 0, fmt.Errorf("line %d is not the one that was anchored: it, or one before it, was rewritten", first.Anchor.GetLines())
	}
	return lines, nil
}

func (a *app) newLogExport() *cobra.Command {
	return &cobra.Command{
		Use:     "export FILE",
		Short:   "Write the audit log to a file, one record a line, verified on the way",
		Example: `  ztctl log export audit.log`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(f)
			_, chain, err := readServer(cmd.Context(), c, func(b []byte) error {
				r, err := state.ReadAudit(b)
				if err != nil {
					return err
				}
				line, err := protojson.Marshal(r.Record)
				if err != nil {
					return err
				}
				_, err = out.Write(append(line, '\n'))
				return err
			})
			if err = errors.Join(err, out.Flush(), f.Sync(), f.Close()); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "exported up to record %d; note its head to verify the file by: %d:%x\n", chain.sequence, chain.sequence, chain.hash)
			return nil
		},
	}
}

// verifyFiles verifies exported files, which go on from one another.
func (a *app) verifyFiles(files []string, head string) error {
	chain := &auditChain{}
	first := uint64(0)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		in := bufio.NewScanner(f)
		in.Buffer(nil, 1<<20)
		for line := 1; in.Scan(); line++ {
			r := &logv1.AuditRecord{}
			err := protojson.Unmarshal(in.Bytes(), r)
			if err != nil {
				err = fmt.Errorf("record %d is not a record", chain.sequence+1)
			}
			var b []byte
			if err == nil {
				b, err = state.EncodeAudit(r)
			}
			if err == nil {
				err = chain.add(b)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("%s:%d: %w", name, line, err), f.Close())
			}
			if first == 0 {
				first = r.Sequence
			}
		}
		if err := errors.Join(in.Err(), f.Close()); err != nil {
			return err
		}
	}
	if !chain.begun {
		return errors.New("there are no records")
	}
	if err := through(chain, head); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "records %d to %d follow one another; head %d:%x\n", first, chain.sequence, chain.sequence, chain.hash)
	if head == "" {
		fmt.Fprintln(a.out, "whether this is the log of your cluster, and its end is there, only a head says that was noted elsewhere: --head")
	}
	return nil
}
