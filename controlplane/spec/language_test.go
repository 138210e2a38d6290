package spec_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// TestParseID compares with the SPIFFE project's own reader. What it takes and
// this one does not are IDs without a path, which no workload has, and trust
// domains with dots or hyphens at their ends.
func TestParseID(t *testing.T) {
	for _, id := range []string{
		"spiffe://a/b", "spiffe://a.b-c_d/ns/x/sa/Y_z.-1", "spiffe://a/...", "spiffe://A/b", "spiffe://a/b/", "spiffe://a//b", "spiffe://a/./b", "spiffe://a/../b",
		"spiffe://a/b%20c", "spiffe://a/b?c", "spiffe://a/b#c", "spiffe://a:1/b", "spiffe://u@a/b", "spiffe:///b", "SPIFFE://a/b", "spiffe:/a/b", "spiffe://a/é",
		"http://a/b", "", "spiffe://", "spiffe://a b/c", "spiffe://a/b\\c", "spiffe://[::1]/b", "spiffe://a/" + strings.Repeat("b", 2100),
	} {
		want, wantErr := spiffeid.FromString(id)
		td, path, err := spec.ParseID(id)
		if len(id) > 2048 {
			if err == nil {
				t.Errorf("%d bytes are taken", len(id))
			}
			continue
		}
		if (err == nil) != (wantErr == nil) || err == nil && (td != want.TrustDomain().Name() || path != want.Path()) {
			t.Errorf("%q is %q and %q, %v; want %v, %v", id, td, path, err, want, wantErr)
		}
	}
	for _, id := range []string{"spiffe://a", "spiffe://a/", "spiffe://-a/b", "spiffe://a./b"} {
		if _, _, err := spec.ParseID(id); err == nil {
			t.Errorf("%q is taken", id)
		}
	}
}

func TestZones(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Asia/Kolkata", "Zulu", "Africa/Abidjan"} {
		if _, err := time.LoadLocation(zone); !spec.ZoneKnown(zone) || err != nil {
			t.Errorf("%s is not known (%v)", zone, err)
		}
	}
	for _, zone := range []string{"", "Local", "europe/berlin", "Europe/Berlin ", "../UTC", "posix/UTC", "Europe", "+01:00"} {
		if spec.ZoneKnown(zone) {
			t.Errorf("%q is known", zone)
		}
	}
}

func TestParseClock(t *testing.T) {
	for s, want := range map[string]int{"00:00": 0, "09:30": 570, "23:59": 1439, "24:00": 1440} {
		if got, err := spec.ParseClock(s); got != want || err != nil {
			t.Errorf("%s is %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "9:30", "09:60", "24:01", "25:00", "-1:00", "09-30", "09:3O", "09:300", "٠٩:٣٠"} {
		if got, err := spec.ParseClock(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
	for day, name := range spec.Days() {
		if want := strings.ToLower(time.Weekday(day).String()[:3]); name != want {
			t.Errorf("day %d is %s, want %s", day, name, want)
		}
	}
}

func TestReserved(t *testing.T) {
	for _, s := range []string{
		"127.0.0.1", "127.255.255.255", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1",
		"255.255.255.255", "fd00:ec2::254", "100.100.100.200", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
	} {
		if !spec.Reserved(netip.MustParseAddr(s)) {
			t.Errorf("%s is not reserved", s)
		}
	}
	for _, s := range []string{"10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::808:808"} {
		if spec.Reserved(netip.MustParseAddr(s)) {
			t.Errorf("%s is reserved", s)
		}
	}
	if !spec.Reserved(netip.Addr{}) {
		t.Error("no address is not reserved")
	}
}

// TestOperator reads back what files may not say.
func TestOperator(t *testing.T) {
	d := &spec.Document{Document: &ztv1.Document{
		ApiVersion: spec.APIVersion, Kind: spec.KindBlock,
		Metadata: &ztv1.Metadata{Namespace: "shop", Name: "b", Annotations: map[string]string{spec.OperatorAnnotation: spec.OperatorValue}},
		Spec:     &ztv1.Document_Block{Block: &ztv1.Block{Workloads: []string{"gone"}, Reason: "x"}},
	}}
	stored, err := spec.Decode(spec.Canonical(d))
	if err != nil || !stored.Operator() {
		t.Fatalf("%v, %v", stored, err)
	}
	if problems := spec.Check([]*spec.Document{stored}, "shop.example"); len(problems) > 0 {
		t.Errorf("it may name what has gone: %v", problems)
	}
	if _, problems := spec.Parse([]spec.File{{Name: "a.yaml", Content: []byte(spec.YAML(stored))}}); len(problems) != 1 || problems[0].Code != "ZT1206" {
		t.Errorf("a file says so, too: %v", problems)
	}
	stored.Metadata.Annotations = nil
	if problems := spec.Check([]*spec.Document{stored}, "shop.example"); len(problems) != 1 || problems[0].Code != "ZT1502" {
		t.Errorf("a Block of a file names what is not there: %v", problems)
	}
}

// TestCanonicalSets writes the lists of every kind in two orders.
func TestCanonicalSets(t *testing.T) {
	head := "apiVersion: ztmesh.dev/v1alpha1\nkind: %s\nmetadata: {namespace: %s, name: a}\nspec: %s\n"
	for _, c := range [][4]string{
		{"Service", "shop", "{workloads: [a, b]}", "{workloads: [b, a, b]}"},
		{"Block", "shop", "{workloads: [a, b], services: [c, d], reason: x}", "{services: [d, c], workloads: [b, a, a], reason: x}"},
		{"Segment", "mesh", "{namespaces: [a, b], admits: [c, d]}", "{namespaces: [b, a], admits: [d, c, c]}"},
		{
			"Grant", "shop", "{from: {workloads: [a], users: {provider: p, claims: {x: [a, b], y: [c]}}}, to: {services: [a]}, when: {headers: {a: [b, c]}, windows: [{zone: UTC, days: [mon, sat], start: '01:00', end: '02:00'}, {zone: UTC, start: '03:00', end: '04:00'}]}}",
			"{from: {workloads: [a], users: {provider: p, claims: {y: [c], x: [b, a]}}}, to: {services: [a]}, when: {headers: {a: [c, b]}, windows: [{zone: UTC, start: '03:00', end: '04:00'}, {zone: UTC, start: '03:00', end: '04:00'}, {zone: UTC, days: [sat, mon, mon], start: '01:00', end: '02:00'}]}}",
		},
		{
			"IdentityProvider", "mesh", "{issuer: 'https://a.example', audiences: [a, b], jwks: {uri: 'https://a.example/k'}, claims: [{name: a, path: [z, y]}, {name: b}]}",
			"{issuer: 'https://a.example', audiences: [b, a], jwks: {uri: 'https://a.example/k'}, claims: [{name: b}, {name: a, path: [z, y]}]}",
		},
		{
			"Exception", "shop", "{finding: plaintext, subject: 'a:b', peers: [10.0.0.0/8, 10.1.0.0/16], owner: a, reason: b, until: 2030-01-01T00:00:00Z}",
			"{finding: plaintext, subject: 'a:b', peers: [10.1.0.0/16, 10.0.0.0/8], owner: a, reason: b, until: '2030-01-01T01:00:00+01:00'}",
		},
	} {
		one, other := parse(t, fmt.Sprintf(head, c[0], c[1], c[2]))[0], parse(t, fmt.Sprintf(head, c[0], c[1], c[3]))[0]
		if !bytes.Equal(spec.Canonical(one), spec.Canonical(other)) {
			t.Errorf("order changes\n%s\n%s", spec.YAML(one), spec.YAML(other))
		}
	}
	nested := func(path string) []byte {
		return spec.Canonical(parse(t, fmt.Sprintf(head, "IdentityProvider", "mesh", "{issuer: 'https://a.example', audiences: [a], jwks: {uri: 'https://a.example/k'}, claims: [{name: a, path: "+path+"}]}"))[0])
	}
	if bytes.Equal(nested("[z, y]"), nested("[y, z]")) {
		t.Error("the path of a claim lost its order")
	}
}

// fleet is a spec of so many workloads and grants, half of the grants with more
// than caller and path.
func fleet(t testing.TB, workloads, grants int) []*spec.Document {
	t.Helper()
	var b strings.Builder
	say := func(kind, ns, name, body string) {
		fmt.Fprintf(&b, "---\napiVersion: ztmesh.dev/v1alpha1\nkind: %s\nmetadata: {namespace: %s, name: %s}\nspec: %s\n", kind, ns, name, body)
	}
	ns := func(i int) string { return fmt.Sprintf("n%d", i%100) }
	say("IdentityProvider", "mesh", "corp", "{issuer: 'https://corp.example', audiences: [a], jwks: {uri: 'https://corp.example/k'}, claims: [{name: groups, kind: list}]}")
	for i := range 50 {
		var admits []string
		for j := range 50 {
			admits = append(admits, fmt.Sprintf("s%d", j))
		}
		say("Segment", "mesh", fmt.Sprintf("s%d", i), fmt.Sprintf("{namespaces: [n%d, n%d], admits: [%s]}", i, i+50, strings.Join(admits, ", ")))
	}
	for i := range workloads {
		say("Workload", ns(i), fmt.Sprintf("w%d", i), "{serves: [{name: http, port: 8080, protocol: http}, {name: raw, port: 9000, protocol: tcp}]}")
	}
	for i := range grants {
		to := i % workloads
		body := fmt.Sprintf("{from: {workloads: [%s/w%d]}, to: {services: [w%d], ports: [http], methods: [GET], paths: [/a%d/**]}}", ns(i*7), i*7%workloads, to, i)
		switch i % 4 {
		case 1:
			body = fmt.Sprintf("{from: {namespaces: [%s], users: {provider: corp, claims: {groups: [a%d]}}}, to: {services: [w%d], ports: [http]}, until: 2040-01-01T00:00:00Z}", ns(i+1), i, to)
		case 3:
			body = fmt.Sprintf("{from: {segments: [s%d]}, to: {services: [w%d], ports: [http]}, when: {headers: {x-a: [b%d]}, windows: [{zone: UTC, start: '01:00', end: '02:00'}]}}", i%50, to, i)
		}
		say("Grant", ns(to), fmt.Sprintf("g%d", i), body)
	}
	for i := range 20 {
		say("Grant", "mesh", fmt.Sprintf("wide%d", i), fmt.Sprintf("{from: {workloads: [%s/w%d]}, to: {allServices: true, ports: [http], methods: [GET]}}", ns(i), i))
	}
	return parse(t, b.String())
}

// TestCheckIsLinear holds Check to the number of documents by what it allocates,
// which does not depend on the machine: ten times the documents are about ten
// times the work.
func TestCheckIsLinear(t *testing.T) {
	cost := func(docs []*spec.Document) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if problems := spec.Check(docs, "shop.example"); len(problems) > 0 {
			t.Fatal(problems[0])
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	small, large := cost(fleet(t, 100, 500)), cost(fleet(t, 1000, 5000))
	t.Logf("%d and %d allocations", small, large)
	if large > 13*small {
		t.Errorf("ten times the documents take %d allocations instead of %d", large, small)
	}
}

// BenchmarkCheck is of 10,000 workloads and 50,000 grants, and a wrong reference
// in each of many.
func BenchmarkCheck(b *testing.B) {
	docs := fleet(b, 10_000, 50_000)
	b.Run("sound", func(b *testing.B) {
		for b.Loop() {
			if problems := spec.Check(docs, "shop.example"); len(problems) > 0 {
				b.Fatal(problems[0])
			}
		}
	})
	broken := slices.DeleteFunc(slices.Clone(docs), func(d *spec.Document) bool {
		return d.GetKind() == spec.KindWorkload && strings.HasSuffix(d.Ref().Name, "7")
	})
	b.Run("broken", func(b *testing.B) {
		for b.Loop() {
			if problems := spec.Check(broken, "shop.example"); len(problems) == 0 {
				b.Fatal("no problems")
			}
		}
	})
}

func TestParseCELRefuses(t *testing.T) {
	// Some of what the golden cases have, by what it would cost instead.
	for name, text := range map[string]string{
		"parentheses": strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000),
		"lists":       strings.Repeat("[", 1000),
		"ors":         strings.Repeat("true || ", 200) + "x",
		"length":      strings.Repeat(" ", 2100) + "true",
		"empty":       "",
		"loop":        `[1, 2].exists(x, x == 1)`,
		"index":       `[true][0]`,
		// Envoy's map of headers has more in it, and finds names in any case.
		"all headers":     `size(request.headers) == 1`,
		"headers as such": `request.headers == request.headers`,
		"name by name":    `request.headers[request.method] == "a"`,
		"pseudo header":   `request.headers[":path"] == "/a?b"`,
		"credential":      `"authorization" in request.headers`,
		"upper case":      `request.headers["X-Team"] == "sre"`,
		"field":           `has(request.headers.x_team)`,
	} {
		if _, err := spec.ParseCEL(text); err == nil || strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
