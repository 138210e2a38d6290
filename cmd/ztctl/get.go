package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
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
	var stale bool
	cmd := &cobra.Command{
		Use:   "get [KIND [[NAMESPACE/]NAME]]",
		Short: "Show the documents that are stored",
		Long: `get shows the documents of a kind, or one of them; without a kind, all. A kind may
be singular, plural or short: identityprovider, identityproviders, idp.

With -o yaml they are as apply takes them. Without a kind that leaves out the Blocks
of ztctl block, which no file may hold; stderr names them.`,
		Example: `  ztctl get
  ztctl get grants -n shop
  ztctl get blocks
  ztctl get workload shop/orders -o yaml
  ztctl get -n shop -o yaml | ztctl apply -f - --dry-run`,
		Args: cobra.MaximumNArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var words []string
			for _, k := range kinds() {
				words = append(words, k.words()[0])
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.getAll(cmd.Context(), kind{}, stale)
			}
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return a.getOne(cmd.Context(), k, args[1], stale)
			}
			return a.getAll(cmd.Context(), k, stale)
		},
	}
	staleFlag(cmd, &stale)
	return cmd
}

func (a *app) getOne(ctx context.Context, k kind, name string, stale bool) error {
	namespace := a.set.Namespace
	if namespace == "" && k.mesh {
		namespace = spec.MeshNamespace
	}
	ref, err := spec.ParseRef(name, namespace)
	if err != nil {
		return withHint(err, "name the namespace: NAMESPACE/NAME, or -n NAMESPACE")
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := call(ctx, a, c.GetDocument, &ztv1.GetDocumentRequest{Kind: k.name, Namespace: ref.Namespace, Name: ref.Name, Stale: stale})
	if err != nil {
		return orHint(err, "see ztctl get %s", k.words()[1])
	}
	a.headStaleness(resp.Staleness)
	return a.showDocuments([]*ztv1.StoredDocument{resp.Document}, true)
}

func (a *app) getAll(ctx context.Context, k kind, stale bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	docs, age, err := a.listDocuments(ctx, c, k.name, a.set.Namespace, stale)
	if err != nil {
		return a.explain(err)
	}
	if k.name == "" && a.set.Output == "yaml" {
		docs = slices.DeleteFunc(docs, func(d *ztv1.StoredDocument) bool {
			doc := &spec.Document{Document: d.Document}
			if doc.Operator() {
				a.note("%s is of ztctl block, and left out", doc.Key())
			}
			return doc.Operator()
		})
	}
	a.headStaleness(age)
	return a.showDocuments(docs, false)
}

// listDocuments reads all pages of one revision, and begins again when the
// revision moves on meanwhile.
func (a *app) listDocuments(ctx context.Context, c *client, kind, namespace string, stale bool) ([]*ztv1.StoredDocument, *ztv1.Staleness, error) {
	ctx, cancel := a.deadline(ctx)
	defer cancel()
	var docs []*ztv1.StoredDocument
	token := ""
	for {
		page, err := c.ListDocuments(ctx, &ztv1.ListDocumentsRequest{Kind: kind, Namespace: namespace, PageToken: token, Stale: stale})
		if token != "" && status.Code(err) == codes.Aborted {
			docs, token = nil, ""
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		docs = append(docs, page.Documents...)
		if token = page.NextPageToken; token == "" {
			return docs, page.Staleness, nil
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
			rows = append(rows, []string{d.Document.Kind, m.GetNamespace(), m.GetName(), strconv.FormatUint(d.Revision, 10), a.summary(d.Document)})
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
