package main

import (
	_ "embed" // for the starter spec
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ztmesh/ztmesh/identity"
)

//go:embed starter.yaml
var starter string

// starterDomain is the trust domain that starter.yaml is written with.
const starterDomain = "mesh.example"

func (a *app) newInit() *cobra.Command {
	var trustDomain string
	cmd := &cobra.Command{
		Use:   "init [FOLDER]",
		Short: "Write a small spec to start from",
		Long: `init writes spec.yaml into FOLDER (default: the current one): a Mesh, two
Workloads, a Grant and an Assertion, with comments. It never replaces a file.`,
		Example: `  ztctl init shop --trust-domain shop.example
  ztctl validate -f shop && ztctl test -f shop`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return a.init(dir, trustDomain)
		},
	}
	cmd.Flags().StringVar(&trustDomain, "trust-domain", starterDomain, "the `DOMAIN` of ztd init")
	return cmd
}

func (a *app) init(dir, trustDomain string) error {
	if err := identity.ValidTrustDomain(trustDomain); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil { // a spec is no secret; umask decides
		return err
	}
	path := filepath.Join(dir, "spec.yaml")
	if err := mustBeNew(path); err != nil {
		return err
	}
	text := strings.ReplaceAll(starter, starterDomain, trustDomain)
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		return err
	}
	a.note("spec written to %s", path)
	_, err := fmt.Fprintf(a.out, "next:\n  ztctl validate -f %[1]s\n  ztctl can demo/web \"GET orders /orders/7\" -f %[1]s\n  ztctl apply -f %[1]s\n", dir)
	return err
}
