package spec_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// parse is the documents in content, which has no problems.
func parse(t testing.TB, content string) []*spec.Document {
	t.Helper()
	docs, problems := spec.Parse([]spec.File{{Name: "a.yaml", Content: []byte(content)}})
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return docs
}

// checkRoundTrip asserts what holds for every document: it prints as text that
// means the same, and its canonical bytes decode to the same.
func checkRoundTrip(t *testing.T, d *spec.Document) {
	t.Helper()
	canonical := spec.Canonical(d)
	text := spec.YAML(d)
	again, problems := spec.Parse([]spec.File{{Name: "printed", Content: []byte(text)}})
	if err := problems.Err(); err != nil || len(again) != 1 {
		t.Fatalf("%d documents and %v in\n%s", len(again), err, text)
	}
	if got := spec.Canonical(again[0]); !bytes.Equal(got, canonical) {
		t.Fatalf("the printed document differs (-want +got):\n%s", cmp.Diff(d.Document, again[0].Document, protocmp.Transform()))
	}
	if got := spec.YAML(again[0]); got != text {
		t.Fatalf("printed again it differs:\n%s", cmp.Diff(text, got))
	}
	decoded, err := spec.Decode(canonical)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(spec.Canonical(decoded), canonical) || decoded.Key() != d.Key() || spec.YAML(decoded) != text {
		t.Fatalf("the decoded document differs:\n%s", spec.YAML(decoded))
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range goldenPaths(f) {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		files, stored := inputs(f, ar)
		for _, file := range append(files, stored...) {
			if len(file.Content) < 8<<10 {
				f.Add(file.Content)
			}
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		before := bytes.Clone(content)
		docs, problems := spec.Parse([]spec.File{{Name: "fuzz", Content: content}})
		if !bytes.Equal(before, content) {
			t.Fatal("Parse changed its input")
		}
		for _, p := range slices.Concat(problems, spec.Check(docs, "shop.example")) {
			if p.File != "fuzz" || p.Line < 1 || p.Column < 0 || p.Message == "" || p.Hint == "" || p.Code == "" {
				t.Fatalf("incomplete problem: %+v", p)
			}
			if strings.ContainsAny(p.Error(), "\n\r\x00") {
				t.Fatalf("the problem is not one line: %q", p.Error())
			}
		}
		if len(problems) > 0 {
			return
		}
		for _, d := range docs {
			checkRoundTrip(t, d)
		}
	})
}

func TestGoldenDocumentsRoundTrip(t *testing.T) {
	n := 0
	for _, path := range goldenPaths(t) {
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files, _ := inputs(t, ar)
		for _, f := range files {
			docs, problems := spec.Parse([]spec.File{f})
			if len(problems) > 0 {
				continue
			}
			for _, d := range docs {
				checkRoundTrip(t, d)
				n++
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d documents without problems", n)
	}
}

// TestJSONSaysTheSame writes every golden YAML file that has a JSON form as JSON
// and wants the same codes at the same paths.
func TestJSONSaysTheSame(t *testing.T) {
	// What JSON cannot say, or says differently: duplicate keys, tags, anchors,
	// characters as escapes, and numbers and dates that YAML spells in its own ways.
	skip := []string{"form-duplicate", "text-alias", "text-tag", "text-yaml", "form-type", "form-unknown", "form-time", "text-escapes"}
	compared := 0
	for _, path := range goldenPaths(t) {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		if slices.Contains(skip, name) {
			continue
		}
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files, _ := inputs(t, ar)
		var asJSON []spec.File
		for _, f := range files {
			if strings.HasSuffix(f.Name, ".yaml") {
				f.Content = toJSON(t, f.Content)
				compared++
			}
			asJSON = append(asJSON, f)
		}
		if diff := cmp.Diff(codesAndPaths(files), codesAndPaths(asJSON)); diff != "" {
			t.Errorf("%s: -yaml +json:\n%s", name, diff)
		}
	}
	if compared < 20 {
		t.Errorf("only %d files compared", compared)
	}
}

func toJSON(t *testing.T, content []byte) []byte {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var out bytes.Buffer
	for {
		var v any
		if dec.Decode(&v) != nil {
			return out.Bytes()
		}
		b, err := json.MarshalIndent(v, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "---\n%s\n", b)
	}
}

// codesAndPaths is what is said about files, without positions.
func codesAndPaths(files []spec.File) []string {
	docs, problems := spec.Parse(files)
	var said []string
	for _, p := range spec.Join(problems, spec.Check(docs, goldenTrustDomain)) {
		said = append(said, p.File+" "+p.Code+" "+p.Path)
	}
	slices.Sort(said)
	return said
}

// TestBadInputIsCheap holds bad input to its bound by what it allocates in all,
// which does not depend on the machine.
func TestBadInputIsCheap(t *testing.T) {
	repeat := func(head, s string, n int, tail string) []byte {
		return []byte(head + strings.Repeat(s, n) + tail)
	}
	const document = 1<<20 - 64
	var keys strings.Builder
	for i := range 12_000 {
		fmt.Fprintf(&keys, "k%d: b\n", i)
	}
	const when = "apiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: a, name: b}\nspec:\n  from: {workloads: [a]}\n  to: {services: [a]}\n  when: {cel: '"
	const provider = "apiVersion: ztmesh.dev/v1alpha1\nkind: IdentityProvider\nmetadata: {namespace: mesh, name: b}\nspec:\n  issuer: https://a.example\n  audiences: [a]\n  jwks: "
	inputs := map[string][]byte{
		"flow list":        repeat("a: [", "b,", 63_000, "]\n"),
		"flow maps":        repeat("a: [", "{a: b},", 15_000, "]\n"),
		"one map":          []byte(keys.String()),
		"one key":          repeat("", "a: b\n", 31_000, ""),
		"comments":         repeat("a: b\n", "# c\n", 31_000, ""),
		"line comments":    repeat("", "- a # c\n", 15_000, ""),
		"open brackets":    repeat("", "[", document, ""),
		"few brackets":     repeat("", "[", 256, ""),
		"block depth":      repeat("", "- ", 31_000, "x\n"),
		"complex keys":     repeat("", "? ", 31_000, "x\n"),
		"anchors":          repeat("", "- &a b\n", 15_000, ""),
		"aliases":          repeat("a: &a [x]\nb:\n", "- *a\n", 15_000, ""),
		"tags":             repeat("", "- !!x b\n", 10_000, ""),
		"long tag":         repeat("!", "a", document, " b\n"),
		"long scalar":      repeat("a: ", "b", document, "\n"),
		"long key":         repeat("", "b", document, ": a\n"),
		"quoted escapes":   repeat("a: \"", "\\n", document/2, "\"\n"),
		"open quote":       repeat("a: \"", "b", document, ""),
		"single quotes":    repeat("", "'", document, ""),
		"folded":           repeat("a: >\n", " b\n", 31_000, ""),
		"blank lines":      repeat("", "\n", 32<<20, ""),
		"empty documents":  repeat("", "---\n", 8<<20, ""),
		"bad documents":    repeat("", "---\na\n", 4<<20, ""),
		"large document":   repeat("a: ", "b", 32<<20, "\n"),
		"too much":         repeat("", "b", 65<<20, ""),
		"NUL":              repeat("", "\x00", 32<<20, ""),
		"UTF-16":           repeat("\xff\xfe", "a\x00", 16<<20, ""),
		"invalid UTF-8":    repeat("", "\xff", 32<<20, ""),
		"surrogates":       repeat("{\"a\":\"", `\ud83d\ude00`, document/12, "\"}"),
		"bad surrogates":   repeat("{\"a\":\"", `\ud83d\n`, document/12, "\"}"),
		"tests of nothing": repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Assertion\nmetadata: {namespace: a, name: b}\nspec:\n  tests:\n", "  - {}\n", 12_000, ""),
		"empty tests":      repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Assertion\nmetadata: {namespace: a, name: b}\nspec:\n  tests:\n", "  - {}\n", 4096, ""),
		"numbers in lists": repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: a, name: b}\nspec:\n  from: {workloads: [", "1,", 60_000, "]}\n  to: {services: [a]}\n"),
		"bad references":   repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: a, name: b}\nspec:\n  from: {workloads: [", "A,", 60_000, "]}\n  to: {services: [a]}\n"),
		"bad expression":   repeat(when, "(", 2000, "'}\n"),
		"deep expression":  repeat(when, "[", 2000, "'}\n"),
		"long expression":  repeat(when, "1+", 1000, "1'}\n"),
		"nots":             repeat(when, "-!", 1000, "a'}\n"),
		"ternaries":        repeat(when, "a?b:", 500, "c'}\n"),
		"dots":             repeat(when, "a.", 1000, "b'}\n"),
		"long cel":         repeat(when, "a", document/2, "'}\n"),
		"deep JWKS":        repeat(provider+"{inline: '{\"keys\":", "[", 60_000, "'}\n"),
		"many keys":        repeat(provider+"{inline: '{\"keys\":[", "{},", 20_000, "{}]}'}\n"),
		"many members":     repeat(provider+"{inline: '{", "\"a\":1,", 9_000, "\"b\":1}'}\n"),
		"large RSA":        repeat(provider+"{inline: '{\"keys\":[{\"kty\":\"RSA\",\"e\":\"AQAB\",\"n\":\"", "_", 60_000, "\"}]}'}\n"),
		"PEM without end":  repeat(provider+"{uri: 'https://a.example/k', ca: \"", `-----BEGIN A-----\n`, 3_400, "\"}\n"),
		"empty PEM":        repeat(provider+"{uri: 'https://a.example/k', ca: \"", `-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n`, 1_200, "\"}\n"),
		"bad windows":      repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: a, name: b}\nspec:\n  from: {workloads: [a]}\n  to: {services: [a]}\n  when: {windows: [", "{zone: a},", 6000, "]}\n"),
		"bad paths":        repeat("apiVersion: ztmesh.dev/v1alpha1\nkind: Grant\nmetadata: {namespace: a, name: b}\nspec:\n  from: {workloads: [a]}\n  to: {services: [a], paths: [/", "a/", document/2, "]}\n"),
	}
	// The rules of the schema are compiled once in a process.
	spec.Parse([]spec.File{{Content: inputs["empty tests"]}, {Content: inputs["bad paths"]}})
	for name, content := range inputs {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			docs, problems := spec.Parse([]spec.File{{Name: "bad", Content: content}})
			problems = append(problems, spec.Check(docs, "")...)
			runtime.ReadMemStats(&after)
			if len(problems) == 0 {
				t.Error("no problem")
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 32 {
				t.Errorf("%d MiB allocated in all", got)
			}
			t.Logf("%d KiB, %d allocations", (after.TotalAlloc-before.TotalAlloc)>>10, after.Mallocs-before.Mallocs)
			// 100 ms are about 450,000 allocations with the work around them.
			if got := after.Mallocs - before.Mallocs; got > 450_000 {
				t.Errorf("%d allocations", got)
			}
		})
	}
}

func TestCanonicalIsOneForm(t *testing.T) {
	const ordered = `
apiVersion: ztmesh.dev/v1alpha1
kind: Grant
metadata: {namespace: shop, name: g, labels: {a: b, c: d, e: f}}
spec:
  from: {workloads: [a, b]}
  to: {services: [x, y], ports: [p, q], methods: [GET, PUT], paths: [/a, /b]}
`
	const shuffled = `
kind: Grant
spec:
  to: {paths: [/b, /a, /b], ports: [q, p], methods: [PUT, GET], services: [y, x, y]}
  from: {workloads: [b, a, b]}
metadata: {labels: {e: f, a: b, c: d}, name: g, namespace: shop}
apiVersion: ztmesh.dev/v1alpha1
`
	want := spec.Canonical(parse(t, ordered)[0])
	d := parse(t, shuffled)[0]
	as := proto.CloneOf(d.Document)
	for range 20 {
		if !bytes.Equal(spec.Canonical(d), want) {
			t.Fatal("order changes the canonical bytes")
		}
	}
	if !proto.Equal(as, d.Document) {
		t.Error("Canonical changed its document")
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindWorkload, Metadata: &ztv1.Metadata{Namespace: "shop", Name: "web"},
		Spec: &ztv1.Document_Workload{Workload: &ztv1.Workload{Serves: []*ztv1.Port{{Name: "http"}}}},
	}
	marshal := func(change func(d *ztv1.Document)) []byte {
		d := proto.CloneOf(good)
		change(d)
		b, err := proto.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := spec.Decode(marshal(func(*ztv1.Document) {})); err != nil {
		t.Fatal(err)
	}
	newer := []byte{0xf8, 0x3f, 0x01} // field 1023, varint 1
	for name, b := range map[string][]byte{
		"nothing":         {},
		"garbage":         []byte("garbage"),
		"no metadata":     marshal(func(d *ztv1.Document) { d.Metadata = nil }),
		"other kind":      marshal(func(d *ztv1.Document) { d.Kind = spec.KindGrant }),
		"unknown kind":    marshal(func(d *ztv1.Document) { d.Kind = "Block" }),
		"no spec":         marshal(func(d *ztv1.Document) { d.Spec = nil }),
		"newer field":     marshal(func(d *ztv1.Document) { d.ProtoReflect().SetUnknown(newer) }),
		"newer port":      marshal(func(d *ztv1.Document) { d.GetWorkload().Serves[0].ProtoReflect().SetUnknown(newer) }),
		"newer metadata":  marshal(func(d *ztv1.Document) { d.Metadata.ProtoReflect().SetUnknown(newer) }),
		"newer spec kind": append(marshal(func(d *ztv1.Document) { d.Spec = nil }), 0xa2, 0x06, 0x00),
	} {
		if d, err := spec.Decode(b); err == nil {
			t.Errorf("%s: decoded as %s", name, d.Key())
		}
	}
}

func TestAt(t *testing.T) {
	d := parse(t, "# comment\n---\napiVersion: ztmesh.dev/v1alpha1\nkind: Workload\nmetadata: {namespace: shop, name: web}\nspec:\n  serves:\n  - {name: http, port: 80, protocol: http}\n")[0]
	for path, want := range map[string]string{
		"":                        "a.yaml:3:1",
		"metadata.name":           "a.yaml:5:35",
		"spec.serves[0].port":     "a.yaml:8:24",
		"spec.serves[0].target":   "a.yaml:8:5",
		"spec.serves[7].name":     "a.yaml:8:3",
		"spec.tcpCalls":           "a.yaml:7:3",
		"status.conditions[0].xy": "a.yaml:3:1",
	} {
		file, line, column := d.At(path)
		if got := fmt.Sprintf("%s:%d:%d", file, line, column); got != want {
			t.Errorf("At(%q) = %s, want %s", path, got, want)
		}
	}
	stored, err := spec.Decode(spec.Canonical(d))
	if err != nil {
		t.Fatal(err)
	}
	if file, line, column := stored.At("spec"); file != "Workload shop/web" || line != 0 || column != 0 {
		t.Errorf("a stored document is at %s:%d:%d", file, line, column)
	}
}

// TestOrderDoesNotMatter parses the same documents in many orders.
func TestOrderDoesNotMatter(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/grant-target.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := inputs(t, ar)
	want := codesAndPaths(files)
	rng := rand.New(rand.NewSource(1))
	for range 20 {
		rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		if diff := cmp.Diff(want, codesAndPaths(files)); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestParseRequest(t *testing.T) {
	for in, want := range map[string]spec.Request{
		"GET orders /orders/7?x=1":   {Service: spec.Ref{Namespace: "shop", Name: "orders"}, Method: "GET", Path: "/orders/7?x=1"},
		"M-SEARCH pay/orders:http /": {Service: spec.Ref{Namespace: "pay", Name: "orders"}, Port: "http", Method: "M-SEARCH", Path: "/"},
		"GET orders /%2e/é;\\":       {Service: spec.Ref{Namespace: "shop", Name: "orders"}, Method: "GET", Path: "/%2e/é;\\"},
		"GRPC q:rpc a.b.C/D":         {Service: spec.Ref{Namespace: "shop", Name: "q"}, Port: "rpc", Method: "POST", Path: "/a.b.C/D", GRPC: true},
		"WS orders:http /socket?a":   {Service: spec.Ref{Namespace: "shop", Name: "orders"}, Port: "http", Method: "GET", Path: "/socket?a", Upgrade: "websocket"},
		"GET stripe:external /":      {Service: spec.Ref{Namespace: "shop", Name: "stripe"}, Port: spec.ExternalPort, Method: "GET", Path: "/"},
		"TCP db":                     {Service: spec.Ref{Namespace: "shop", Name: "db"}, TCP: true},
	} {
		got, err := spec.ParseRequest(in, "shop")
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
	for _, in := range []string{"", " ", "GET", "GET /", "get orders /", "GET orders /a b", "GET orders /\x00", "GET orders /\xff", "GRPC q D", "WS orders", "WS orders a", "ws orders /", "TCP db /", "GET a/b/c /", "GET orders:a:b /"} {
		if got, err := spec.ParseRequest(in, "shop"); err == nil {
			t.Errorf("%q is %+v", in, got)
		}
	}
	if _, err := spec.ParseRequest("TCP db", ""); err == nil {
		t.Error("a bare name without a namespace is taken")
	}
}

func TestKeyAndRef(t *testing.T) {
	keys := []spec.Key{
		{Kind: "Grant", Namespace: "a", Name: "b"},
		{Kind: "Grant", Namespace: "a", Name: "c"},
		{Kind: "Grant", Namespace: "b", Name: "a"},
		{Kind: "Mesh", Namespace: "a", Name: "a"},
	}
	for i := range len(keys) - 1 {
		if !keys[i].Less(keys[i+1]) || keys[i+1].Less(keys[i]) || keys[i].Less(keys[i]) {
			t.Errorf("%s and %s are out of order", keys[i], keys[i+1])
		}
	}
	if got := keys[0].String(); got != "Grant a/b" {
		t.Error(got)
	}
	ref, err := spec.ParseRef("web", "shop")
	if err != nil || ref.String() != "shop/web" {
		t.Errorf("%v, %v", ref, err)
	}
}

func TestMeshOf(t *testing.T) {
	docs := parse(t, "apiVersion: ztmesh.dev/v1alpha1\nkind: Mesh\nmetadata: {namespace: mesh, name: m}\nspec: {trustDomain: shop.example, svidTTL: 1h}\n")
	if got := spec.MeshOf(docs).GetSvidTtl().AsDuration(); got.Hours() != 1 {
		t.Error(got)
	}
	if got := spec.MeshOf(nil); got.GetSvidTtl() != nil {
		t.Error(got)
	}
}
