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

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ztmesh/ztmesh/controlplane/refusals"
	"github.com/ztmesh/ztmesh/identity"
	"github.com/ztmesh/ztmesh/journal"
	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
	"github.com/ztmesh/ztmesh/store/state"
)

// auditChain is records that are verified one after another.
type auditChain struct {
	begun    bool
	sequence uint64
	hash     []byte
	at       map[uint64][]byte // hashes of the records
	// from is what the first record follows, and restored whether that one tells of a
	// restore from a backup: those before it lie with the cluster of before.
	from     uint64
	fromHash []byte
	restored bool
}

// add takes the record that must come next; before the first, any.
func (c *auditChain) add(b []byte) error {
	r, err := state.ReadAudit(b)
	if err != nil {
		return fmt.Errorf("record %d %w", c.sequence+1, err)
	}
	if !c.begun {
		c.begun, c.sequence, c.hash, c.at = true, r.Record.Sequence-1, r.Record.Previous, map[uint64][]byte{}
		c.from, c.fromHash, c.restored = c.sequence, c.hash, tellsOfRestore(r.Record)
	}
	if _, err := state.CheckAudit(b, c.sequence, c.hash); err != nil {
		return fmt.Errorf("record %d %w", c.sequence+1, err)
	}
	c.sequence, c.hash = r.Record.Sequence, r.Hash
	c.at[c.sequence] = r.Hash
	return nil
}

func tellsOfRestore(r *logv1.AuditRecord) bool { return r.GetOperation() == "restored" }

// follows tells whether a chain goes on from what was exported before it, and what of
// the export it does not go on from: the end that a restore has lost.
func (c *auditChain) follows(before *auditChain) (lost uint64, err error) {
	if before.sequence < c.from {
		return 0, fmt.Errorf("records %d to %d are neither here nor in the export", before.sequence+1, c.from)
	}
	if had := before.at[c.from]; had != nil && !bytes.Equal(had, c.fromHash) {
		return 0, fmt.Errorf("record %d of the export is not the one that record %d follows: one of them, or one before it, is forged, or of another cluster", c.from, c.from+1)
	}
	if next := before.at[c.from+1]; c.restored && next != nil && !bytes.Equal(next, c.at[c.from+1]) {
		return before.sequence - c.from, nil
	}
	return 0, agree(before, c)
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
	var files, before []string
	var head string
	var issuance bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the audit log of every server, or exported files",
		Long: `verify reads the audit log, and the record of refused calls, of every server of the
context, and holds them to their chain, to what the cluster has agreed on, and to one
another. After a restore from a backup the servers have the records since then; --before
names exports of the cluster of before, which they must go on from.`,
		Example: `  ztctl log verify
  ztctl log verify --before january.log
  ztctl log verify --issuance
  ztctl log verify -f january.log -f february.log --head 812:9f2c...`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) > 0 {
				return a.verifyFiles(files, head)
			}
			return a.verifyServers(cmd.Context(), before, head, issuance)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "`FILE` of ztctl log export; repeatable, in their order; no server is asked")
	cmd.Flags().StringArrayVar(&before, "before", nil, "`FILE` of ztctl log export that the servers' records must go on from; repeatable, in their order")
	cmd.Flags().StringVar(&head, "head", "", "a head that was noted before, `RECORD:SHA256`, which the chain must lead through")
	cmd.Flags().BoolVar(&issuance, "issuance", false, "verify the issuance journals, too; needs role admin")
	return cmd
}

func (a *app) verifyServers(ctx context.Context, files []string, head string, issuance bool) error {
	var before *auditChain
	if len(files) > 0 {
		var err error
		if before, err = a.readFiles(files); err != nil {
			return err
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	var longest *auditChain
	for i, conn := range c.conns {
		one, name := ztv1.NewAdminServiceClient(conn), c.context.Servers[i]
		chain, err := a.verifyServer(ctx, one, name, before)
		if err != nil {
			errs = append(errs, fmt.Errorf("server %s: %w", name, err))
		} else {
			if err := agree(longest, chain); err != nil {
				errs = append(errs, fmt.Errorf("server %s: %w", name, err))
			}
			if longest == nil || chain.sequence > longest.sequence {
				longest = chain
			}
		}
		if refused, err := readRefusals(ctx, one, nil); err != nil {
			errs = append(errs, fmt.Errorf("server %s: refused calls: %w", name, err))
		} else {
			fmt.Fprintf(a.out, "server %s: its record of refused calls is whole: lines %d to %d\n", name, refused.from.Lines+1, refused.to.Lines)
		}
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
		errs = append(errs, throughAny(longest, before, head))
	}
	return errors.Join(errs...)
}

// verifyServer verifies one server's records, and tells what they are.
func (a *app) verifyServer(ctx context.Context, c ztv1.AdminServiceClient, name string, before *auditChain) (*auditChain, error) {
	st, chain, err := readServer(ctx, c, func([]byte) error { return nil })
	if err != nil {
		return nil, err
	}
	lost := uint64(0)
	if before != nil {
		if lost, err = chain.follows(before); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(a.out, "server %s: records %d to %d are whole; head %d:%x\n", name, st.LetGo+1, chain.sequence, chain.sequence, chain.hash)
	switch {
	case lost > 0:
		fmt.Fprintf(a.out, "server %s: record %d tells of a restore, and goes on from the export; records %d to %d of that were made after the backup, and are lost to the cluster\n", name, chain.from+1, chain.from+1, chain.from+lost)
	case before != nil:
		fmt.Fprintf(a.out, "server %s: they go on from the export\n", name)
	case chain.restored && chain.from > 0:
		fmt.Fprintf(a.out, "server %s: record %d tells of a restore; those up to %d lie with the cluster of before: verify an export of it with --before\n", name, chain.from+1, chain.from)
	}
	return chain, nil
}

// throughAny is through of the servers' chain or, for a record of before them, of the
// export that it goes on from.
func throughAny(c, before *auditChain, head string) error {
	number, _, _ := strings.Cut(head, ":")
	if sequence, err := strconv.ParseUint(number, 10, 64); err == nil && before != nil && sequence <= c.from {
		return through(before, head)
	}
	return through(c, head)
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
	anchored, letGo := "", identity.Head{Lines: first.LetGo, Hash: first.LetGoHash}
	if lines = letGo.Lines; lines == first.Anchor.GetLines() {
		anchored = letGo.Hash
	}
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
	if _, err := identity.VerifyJournal(&all, letGo); err != nil {
		return 0, err
	}
	switch {
	case letGo.Lines > first.Anchor.GetLetGo():
		return 0, fmt.Errorf("lines up to %d are gone, and no more than %d were let go of: the beginning was cut off", letGo.Lines, first.Anchor.GetLetGo())
	case lines < first.Anchor.GetLines():
		return 0, fmt.Errorf("it has %d lines, and had %d: the end was cut off", lines, first.Anchor.GetLines())
	case anchored != first.Anchor.GetHash():
		return 0, fmt.Errorf("line %d is not the one that was anchored: it, or one before it, was rewritten", first.Anchor.GetLines())
	}
	if first.Refused != "" {
		return 0, errors.New(first.Refused)
	}
	return lines - letGo.Lines, nil
}

// refusalLines is what one server has on record of refused calls.
type refusalLines struct {
	server   string
	from, to journal.Head
}

// readRefusals verifies them, and gives each line to fn, if there is one.
func readRefusals(ctx context.Context, c ztv1.AdminServiceClient, fn func(server string, line []byte) error) (*refusalLines, error) {
	stream, err := c.ReadRefusals(ctx, &ztv1.ReadRefusalsRequest{})
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	out := &refusalLines{server: first.Server, from: journal.Head{Lines: first.LetGo, Hash: first.LetGoHash}}
	out.to = out.from
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		for _, line := range resp.Lines {
			if out.to, err = journal.Verify(bytes.NewReader(append(line, '\n')), out.to, refusals.Check); err != nil {
				return nil, err
			}
			if fn == nil {
				continue
			}
			if err := fn(first.Server, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return nil, err
			}
		}
	}
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
	chain, err := a.readFiles(files)
	if err != nil {
		return err
	}
	if err := through(chain, head); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "records %d to %d follow one another; head %d:%x\n", chain.from+1, chain.sequence, chain.sequence, chain.hash)
	if head == "" {
		fmt.Fprintln(a.out, "whether this is the log of your cluster, and its end is there, only a head says that was noted elsewhere: --head")
	}
	return nil
}

// readFiles reads exported files. A file of a restored cluster goes on from where the
// backup was, and may so replace the end of the one before.
func (a *app) readFiles(files []string) (*auditChain, error) {
	chain := &auditChain{}
	for _, name := range files {
		if err := a.readFile(chain, name); err != nil {
			return nil, err
		}
	}
	if !chain.begun {
		return nil, errors.New("there are no records")
	}
	return chain, nil
}

func (a *app) readFile(chain *auditChain, name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for line := 1; in.Scan(); line++ {
		r := &logv1.AuditRecord{}
		if err := protojson.Unmarshal(in.Bytes(), r); err != nil {
			return fmt.Errorf("%s:%d: record %d is not a record", name, line, chain.sequence+1)
		}
		if line == 1 {
			if lost := chain.rewind(r); lost > 0 {
				fmt.Fprintf(a.out, "%s: record %d tells of a restore; records %d to %d of before were made after the backup, and are lost to the cluster\n",
					name, r.Sequence, r.Sequence, r.Sequence+lost-1)
			}
		}
		b, err := state.EncodeAudit(r)
		if err == nil {
			err = chain.add(b)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, line, err)
		}
	}
	return in.Err()
}

// rewind goes back to what the record of a restore follows, and returns how many records
// that leaves out; 0: it follows the last, or nothing that is here.
func (c *auditChain) rewind(r *logv1.AuditRecord) (lost uint64) {
	to := r.GetSequence() - 1
	if !c.begun || !tellsOfRestore(r) || to >= c.sequence || !bytes.Equal(c.at[to], r.GetPrevious()) {
		return 0
	}
	lost = c.sequence - to
	for n := to + 1; n <= c.sequence; n++ {
		delete(c.at, n)
	}
	c.sequence, c.hash = to, r.GetPrevious()
	return lost
}
