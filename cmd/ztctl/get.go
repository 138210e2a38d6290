package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

func (a *app) newGet() *cobra.Command {
	kinds := []string{"assertion", "grant", "mesh", "workload"}
	cmd := &cobra.Command{
		Use:   "get [KIND [[NAMESPACE/]NAME]]",
		Short: "Show the documents that are stored",
		Long: `get shows the documents of a kind, or one of them; without a kind, all. With
-o yaml they are as apply takes them.`,
		Example: `  ztctl get
  ztctl get grants -n shop
  ztctl get workload shop/orders -o yaml
  ztctl get -n shop -o yaml | ztctl apply -f - --dry-run`,
		Args: cobra.MaximumNArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return kinds, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind := ""
		if len(args) > 0 {
			var err error
			if kind, err = kindOf(args[0]); err != nil {
				return err
			}
		}
		if len(args) == 2 {
			return a.getOne(cmd.Context(), kind, args[1])
		}
		return a.getAll(cmd.Context(), kind)
	}
	return cmd
}

// kindOf reads a kind in any case, singular or plural.
func kindOf(s string) (string, error) {
	all := []string{spec.KindAssertion, spec.KindGrant, spec.KindMesh, spec.KindWorkload}
	for _, k := range all {
		if l := strings.ToLower(s); l == strings.ToLower(k) || l == strings.ToLower(k)+"s" || l == strings.ToLower(k)+"es" {
			return k, nil
		}
	}
	return "", withHint(fmt.Errorf("no kind %q", s), "the kinds are %s", strings.Join(all, ", "))
}

func (a *app) getOne(ctx context.Context, kind, name string) error {
	ref, err := spec.ParseRef(name, cmp.Or(a.set.Namespace, defaultNamespaceOf(kind)))
	if err != nil {
		return withHint(err, "name the namespace: NAMESPACE/NAME, or -n NAMESPACE")
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := call(ctx, a, c.GetDocument, &ztv1.GetDocumentRequest{Kind: kind, Namespace: ref.Namespace, Name: ref.Name})
	if err != nil {
		return err
	}
	return a.showDocuments([]*ztv1.StoredDocument{resp.Document}, true)
}

// defaultNamespaceOf is where kinds live that live in one place only.
func defaultNamespaceOf(kind string) string {
	if kind == spec.KindMesh {
		return spec.MeshNamespace
	}
	return ""
}

func (a *app) getAll(ctx context.Context, kind string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	docs, err := a.listDocuments(ctx, c, kind, a.set.Namespace)
	if err != nil {
		return a.explain(err)
	}
	return a.showDocuments(docs, false)
}

// listDocuments reads all pages of one revision, and begins again when the
// revision moves on meanwhile.
func (a *app) listDocuments(ctx context.Context, c *client, kind, namespace string) ([]*ztv1.StoredDocument, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	var docs []*ztv1.StoredDocument
	token := ""
	for {
		page, err := c.ListDocuments(ctx, &ztv1.ListDocumentsRequest{Kind: kind, Namespace: namespace, PageToken: token})
		if token != "" && status.Code(err) == codes.Aborted {
			docs, token = nil, ""
			continue
		}
		if err != nil {
			return nil, err
		}
		docs = append(docs, page.Documents...)
		if token = page.NextPageToken; token == "" {
			return docs, nil
		}
	}
}

// showDocuments prints documents: in YAML as a user writes them, in JSON the
// same as an object (alone) or an array.
func (a *app) showDocuments(docs []*ztv1.StoredDocument, alone bool) error {
	if a.set.Output == "table" {
		var rows [][]string
		for _, d := range docs {
			m := d.Document.GetMetadata()
			rows = append(rows, []string{d.Document.Kind, m.GetNamespace(), m.GetName(), strconv.FormatUint(d.Revision, 10), summary(d.Document)})
		}
		return a.columns("KIND NAMESPACE NAME REVISION SAYS", rows)
	}
	var texts []string
	for _, d := range docs {
		texts = append(texts, spec.YAML(&spec.Document{Document: d.Document}))
	}
	if a.set.Output == "yaml" {
		_, err := fmt.Fprint(a.out, strings.Join(texts, "---\n"))
		return err
	}
	var b bytes.Buffer
	for i, text := range texts {
		raw, err := yamlToJSON([]byte(text))
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(raw)
	}
	if alone {
		return a.printJSON(b.Bytes())
	}
	return a.printJSON(append(append([]byte{'['}, b.Bytes()...), ']'))
}

// summary says in a few words what a document says.
func summary(d *ztv1.Document) string {
	switch {
	case d.GetMesh() != nil:
		return d.GetMesh().TrustDomain
	case d.GetWorkload() != nil:
		var ports []string
		for _, p := range d.GetWorkload().Serves {
			ports = append(ports, fmt.Sprintf("%s %d/%s", p.Name, p.Port, p.Protocol))
		}
		for _, c := range d.GetWorkload().TcpCalls {
			ports = append(ports, fmt.Sprintf("calls %s at %d", c.Service, c.LocalPort))
		}
		return few(ports)
	case d.GetGrant() != nil:
		from, to := d.GetGrant().From, d.GetGrant().To
		who := few(from.GetWorkloads())
		if ns := from.GetNamespaces(); len(ns) > 0 {
			who = "namespaces " + few(ns)
		} else if from.GetAnyWorkload() {
			who = "any workload"
		}
		words := []string{who, "->", few(to.GetServices())}
		for _, list := range [][]string{to.GetPorts(), to.GetMethods(), to.GetPaths()} {
			if len(list) > 0 {
				words = append(words, few(list))
			}
		}
		return strings.Join(words, " ")
	case d.GetAssertion() != nil:
		return plural(len(d.GetAssertion().Tests), "test", "tests")
	}
	return ""
}

// few joins the first three of a list.
func few(list []string) string {
	if len(list) > 3 {
		return fmt.Sprintf("%s,+%d", strings.Join(list[:3], ","), len(list)-3)
	}
	return strings.Join(list, ",")
}

// yamlToJSON rewrites a YAML document as JSON; the order of fields is kept.
func yamlToJSON(text []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(text, &n); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err := writeJSON(&b, &n)
	return b.Bytes(), err
}

func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.DocumentNode:
		return writeJSON(b, n.Content[0])
	case yaml.MappingNode, yaml.SequenceNode:
		open, end := byte('['), byte(']')
		if n.Kind == yaml.MappingNode {
			open, end = '{', '}'
		}
		b.WriteByte(open)
		for i, c := range n.Content {
			if i > 0 && (n.Kind == yaml.SequenceNode || i%2 == 0) {
				b.WriteByte(',')
			} else if i > 0 {
				b.WriteByte(':')
			}
			if err := writeJSON(b, c); err != nil {
				return err
			}
		}
		b.WriteByte(end)
		return nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return err
	}
	raw, err := json.Marshal(v)
	b.Write(raw)
	return err
}
