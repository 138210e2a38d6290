package main

import (
	"strings"
	"testing"
)

// What a Block is about says where it stands and what it is called. Names of
// different things differ: one would replace the other.
func TestBlockTarget(t *testing.T) {
	for _, c := range []struct {
		target     blockTarget
		namespace  string // -n
		ref, words string
	}{
		{blockTarget{workloads: []string{"shop/web"}}, "", "shop/web", "shop/web may call nothing"},
		{blockTarget{workloads: []string{"web"}}, "shop", "shop/web", "shop/web may call nothing"},
		{blockTarget{workloads: []string{"shop/web", "shop/cart"}}, "", "shop/web-cart", "shop/cart and shop/web may call nothing"},
		{blockTarget{workloads: []string{"shop/web", "bank/teller"}}, "", "mesh/web-teller", "bank/teller and shop/web may call nothing"},
		{blockTarget{workloads: []string{"shop/web"}, in: "mesh", name: "x"}, "", "mesh/x", "shop/web may call nothing"},
		{blockTarget{workloads: []string{"shop/web"}, services: []string{"orders"}}, "", "shop/web-to-orders", "shop/web may not call shop/orders"},
		{blockTarget{workloads: []string{"shop/web"}, services: []string{"bank/ledger"}}, "", "shop/web-to-ledger", "shop/web may not call bank/ledger"},
		{blockTarget{services: []string{"bank/ledger"}}, "", "bank/to-ledger", "nobody may call bank/ledger"},
		{blockTarget{namespaces: []string{"shop"}}, "", "shop/namespace-shop", "every workload of namespace shop may call nothing"},
		{blockTarget{domains: []string{"a.example"}}, "", "mesh/a-example-b8e74533", "every workload of trust domain a.example may call nothing"},
		{blockTarget{domains: []string{"a-example"}}, "", "mesh/a-example", "every workload of trust domain a-example may call nothing"},
		{blockTarget{users: []string{"corp:a:b"}}, "", "mesh/corp-a-b-0c350e08", "user corp:a:b may call nothing"},
		{blockTarget{users: []string{"corp:Bob"}, services: []string{"bank/ledger"}}, "", "bank/corp-bob-to-ledger-7865505c", "user corp:Bob may not call bank/ledger"},
		{blockTarget{ids: []string{"spiffe://a.example/x"}}, "", "mesh/spiffe---a-example-x-883a9543", "spiffe://a.example/x may call nothing"},
	} {
		ref, b, err := c.target.resolve(c.namespace)
		if err != nil {
			t.Errorf("%+v: %v", c.target, err)
			continue
		}
		if ref.String() != c.ref || denial(b) != c.words {
			t.Errorf("%+v: %s: %s, want %s: %s", c.target, ref, denial(b), c.ref, c.words)
		}
	}
}

func TestBadBlockTargets(t *testing.T) {
	for want, target := range map[string]blockTarget{
		"nobody is named":                       {},
		"a Block names one kind of caller":      {workloads: []string{"shop/web"}, users: []string{"corp:x"}},
		`"web" needs a namespace`:               {workloads: []string{"web"}},
		`"Web/" is not a name`:                  {workloads: []string{"Web/"}},
		`"ledger" needs a namespace`:            {services: []string{"ledger"}},
		`--user "alice" is not PROVIDER`:        {users: []string{"alice"}},
		`--user "corp:" is not PROVIDER`:        {users: []string{"corp:"}},
		`--user "other:b" is not PROVIDER:SUBJ`: {users: []string{"corp:a", "other:b"}},
	} {
		_, _, err := target.resolve("")
		if err == nil || !strings.HasPrefix(err.Error(), want) || len(hintsOf(err)) == 0 {
			t.Errorf("%+v: %v, want %s, with a hint", target, err, want)
		}
	}
}

func TestLabel(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("a", 63)
	for _, text := range []string{"web", "a.b", "a-b", "A-b", "-a-b", "a-b-", "é", "…", "--", long, long + "a", long + "b", "--" + long} {
		l := label(text)
		if len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Trim(l, "-") != l || l == "" {
			t.Errorf("label(%q) = %q is no DNS label", text, l)
		}
		if other, taken := seen[l]; taken {
			t.Errorf("%q and %q are both %q", text, other, l)
		}
		seen[l] = text
	}
	if label("web") != "web" || label(long) != long {
		t.Error("a label is not its own label")
	}
}
