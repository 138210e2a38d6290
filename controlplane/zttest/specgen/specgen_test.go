package specgen_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	"github.com/ztmesh/ztmesh/controlplane/zttest/specgen"
)

// never are the fields that no random spec has: they lead to hosts and files that
// a harness does not have, or are for people only.
var never = []string{
	"Metadata.annotations", "Port.target", "Port.health_path", "External.tls", "JWKS.uri", "JWKS.ca",
	"Document.assertion",
}

// TestSound wants most of what is made to stay, and every field to be seen.
func TestSound(t *testing.T) {
	seen := map[string]bool{}
	made, kept, grants, keptGrants := 0, 0, 0, 0
	count := func(docs []*spec.Document) (all, ofGrants int) {
		for _, d := range docs {
			if d.GetKind() == spec.KindGrant {
				ofGrants++
			}
		}
		return len(docs), ofGrants
	}
	any, sound := rapid.Custom(specgen.Any), rapid.Custom(specgen.Sound)
	for seed := range 200 {
		all, g := count(any.Example(seed))
		made, grants = made+all, grants+g
		docs := sound.Example(seed)
		all, g = count(docs)
		kept, keptGrants = kept+all, keptGrants+g
		for _, d := range docs {
			fields(d.ProtoReflect(), seen)
			again, problems := spec.Parse([]spec.File{{Name: "a.yaml", Content: []byte(spec.YAML(d))}})
			if len(problems) > 0 || !bytes.Equal(spec.Canonical(again[0]), spec.Canonical(d)) {
				t.Fatalf("%v in\n%s", problems, spec.YAML(d))
			}
		}
	}
	t.Logf("%d of %d documents, %d of %d grants", kept, made, keptGrants, grants)
	if kept*10 < made*9 || keptGrants*10 < grants*7 {
		t.Errorf("only %d of %d documents and %d of %d grants pass Check", kept, made, keptGrants, grants)
	}
	var missing []string
	want((&spec.Document{}).ProtoReflect().Descriptor(), func(name string) {
		if !seen[name] && !slices.Contains(never, name) {
			missing = append(missing, name)
		}
	})
	if len(missing) > 0 {
		t.Errorf("no random spec has %s", strings.Join(missing, ", "))
	}
}

// fields notes the names of the fields that m has.
func fields(m protoreflect.Message, seen map[string]bool) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		seen[name(fd)] = true
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				fields(v.List().Get(i).Message(), seen)
			}
		default:
			fields(v.Message(), seen)
		}
		return true
	})
}

func name(fd protoreflect.FieldDescriptor) string {
	return string(fd.ContainingMessage().Name()) + "." + string(fd.Name())
}

// want calls f for each field that a document may have.
func want(md protoreflect.MessageDescriptor, f func(string)) {
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		f(name(fd))
		if m := fd.Message(); m != nil && !fd.IsMap() && m.ParentFile() == md.ParentFile() && !slices.Contains(never, name(fd)) {
			want(m, f)
		}
	}
}

func TestShuffledIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := specgen.Sound(t)
		again := map[spec.Key][]byte{}
		for _, d := range specgen.Shuffled(t, docs) {
			again[d.Key()] = spec.Canonical(d)
		}
		for _, d := range docs {
			ordered := d.GetWorkload() != nil // its ports keep their order
			if got := again[d.Key()]; got == nil || !ordered && !bytes.Equal(got, spec.Canonical(d)) {
				t.Fatalf("%s differs", d.Key())
			}
		}
		if len(again) != len(docs) {
			t.Fatalf("%d documents of %d", len(again), len(docs))
		}
	})
}

func TestToken(t *testing.T) {
	token := specgen.Token("corp", map[string]any{"sub": "ada", "aud": nil})
	if token != specgen.Token("corp", map[string]any{"sub": "ada", "aud": nil}) {
		t.Error("a token is another one the second time")
	}
	parts := strings.Split(token, ".")
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) != 64 {
		t.Fatal(err, len(signature))
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(&specgen.Key("corp").PublicKey, digest[:], r, s) || ecdsa.Verify(&specgen.Key("partner").PublicKey, digest[:], r, s) {
		t.Error("the signature is not that of the provider alone")
	}
	if _, cert, _ := specgen.ForeignCA(); cert.CheckSignatureFrom(cert) != nil {
		t.Error("the foreign CA does not verify itself")
	}
}
