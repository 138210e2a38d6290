package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/agent"
)

func (p *program) newStatus() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who this instance is, and how long its certificates last",
		Long:  `status reads --data-dir; it asks neither a server nor the agent.`,
		Example: `  ztagent status
  ztagent status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd, p.environ)
			if err != nil {
				return err
			}
			if output != "table" && output != "json" {
				return fmt.Errorf("unknown output %q: -o takes table or json", output)
			}
			s, err := agent.ReadStatus(c.DataDir, p.now())
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(p.out)
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			}
			return p.printStatus(s)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	withConfig(cmd, "data-dir")
	return cmd
}

func (p *program) printStatus(s *agent.Status) error {
	state := "stopped"
	if s.Running {
		state = "running"
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"identity", s.ID},
		{"instance", s.Instance},
		{"agent", state},
		{"address", s.Address},
		{"egress address", s.EgressAddress},
		{"zone", cmp.Or(s.Zone, "not said")},
		{"weight", fmt.Sprint(cmp.Or(s.Weight, 100))},
		{"servers", strings.Join(s.Servers, ", ")},
		{"workload certificate", left(s.SVID)},
		{"node certificate", left(s.Node)},
		{"bootstrap", s.Bootstrap},
	} {
		fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
	}
	return w.Flush()
}

// left is how long a certificate lasts, for people.
func left(c agent.CertificateStatus) string {
	end := c.NotAfter.UTC().Format(time.RFC3339)
	if c.SecondsLeft == 0 {
		return "has ended at " + end
	}
	return fmt.Sprintf("%s left, until %s", time.Duration(c.SecondsLeft)*time.Second, end)
}
