package state_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
	"github.com/ztmesh/ztmesh/store/state"
)

func TestRedeem(t *testing.T) {
	serverRedeem := func(token, id string) *logv1.Entry {
		return &logv1.Entry{Op: &logv1.Entry_Redeem{Redeem: &logv1.Redeem{Id: token, SecretHash: hashOf(token), Server: &logv1.Server{Id: id}}}}
	}
	start := func(t *testing.T) *cluster {
		c := newCluster(t)
		c.must(c.put(doc("Workload", "shop", "web", "w"), doc("Workload", "shop", "db", "d")))
		c.must(c.token("web", "shop/web"))
		c.must(c.token("later", "shop/later"))
		c.must(c.token("server", ""))
		c.must(redeemUsed(c))
		return c
	}
	tests := map[string]struct {
		entry  func() *logv1.Entry
		want   error
		keeps  string // a token that must still be there
		enrols string
	}{
		"valid":                  {entry: func() *logv1.Entry { return redeem("web", "i1", "shop/web") }, enrols: "i1"},
		"other workload":         {entry: func() *logv1.Entry { return redeem("web", "i1", "shop/db") }, want: state.ErrTokenInvalid, keeps: "web"},
		"unknown":                {entry: func() *logv1.Entry { return redeem("none", "i1", "shop/web") }, want: state.ErrTokenInvalid},
		"used, other instance":   {entry: func() *logv1.Entry { return redeem("used", "i1", "shop/web") }, want: state.ErrTokenInvalid},
		"used, retry":            {entry: func() *logv1.Entry { return redeem("used", "i0", "shop/web") }},
		"used, retry, workload":  {entry: func() *logv1.Entry { return redeem("used", "i0", "shop/db") }, want: state.ErrTokenInvalid},
		"no such workload yet":   {entry: func() *logv1.Entry { return redeem("later", "i1", "shop/later") }, want: state.ErrNotFound, keeps: "later"},
		"server token, instance": {entry: func() *logv1.Entry { return redeem("server", "i1", "shop/web") }, want: state.ErrTokenInvalid, keeps: "server"},
		"workload token, server": {entry: func() *logv1.Entry { return serverRedeem("web", "s9") }, want: state.ErrTokenInvalid, keeps: "web"},
		"server token":           {entry: func() *logv1.Entry { return serverRedeem("server", "s9") }},
		"used, other key": {entry: func() *logv1.Entry {
			e := redeem("used", "i0", "shop/web")
			e.GetRedeem().Instance.KeyHash = hashOf("another")
			return e
		}, want: state.ErrTokenInvalid},
		"used, retry, wrong secret": {entry: func() *logv1.Entry {
			e := redeem("used", "i0", "shop/web")
			e.GetRedeem().SecretHash = hashOf("guess")
			return e
		}, want: state.ErrTokenInvalid},
		"unknown, by the key of an instance": {entry: func() *logv1.Entry { return redeem("none", "i0", "shop/web") }, want: state.ErrTokenInvalid},
		"used, retry, token ended meanwhile": {entry: func() *logv1.Entry {
			e := redeem("used", "i0", "shop/web")
			e.When = timestamppb.New(time.Unix(1<<33, 0))
			return e
		}, want: state.ErrTokenInvalid},
		"instance id taken": {entry: func() *logv1.Entry {
			e := redeem("web", "i0", "shop/web")
			e.GetRedeem().Instance.KeyHash = hashOf("another")
			return e
		}, want: state.ErrTokenInvalid, keeps: "web"},
		"wrong secret": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.GetRedeem().SecretHash = hashOf("guess")
			return e
		}, want: state.ErrTokenInvalid, keeps: "web"},
		"no secret": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.GetRedeem().SecretHash = nil
			return e
		}, want: state.ErrTokenInvalid, keeps: "web"},
		"no key": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.GetRedeem().Instance.KeyHash = nil
			return e
		}, want: state.ErrInvalid, keeps: "web"},
		"both": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.GetRedeem().Server = &logv1.Server{Id: "s"}
			return e
		}, want: state.ErrInvalid, keeps: "web"},
		"neither": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.GetRedeem().Instance = nil
			return e
		}, want: state.ErrInvalid, keeps: "web"},
		"expired": {entry: func() *logv1.Entry {
			e := redeem("web", "i1", "shop/web")
			e.When = timestamppb.New(epoch.Add(2 * time.Hour))
			return e
		}, want: state.ErrTokenInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			instances := len(slices.Collect(c.s.Instances()))
			e := tt.entry()
			r := c.apply(e)
			if !errors.Is(r.Err, tt.want) || tt.want == nil && r.Err != nil {
				t.Fatalf("got %v, want %v", r.Err, tt.want)
			}
			if errors.Is(r.Err, state.ErrTokenInvalid) && r.Err.Error() != state.ErrTokenInvalid.Error() {
				t.Errorf("the error says why: %v", r.Err)
			}
			if tt.keeps != "" {
				if _, ok := c.s.Token(tt.keeps); !ok {
					t.Errorf("token %s is gone", tt.keeps)
				}
			}
			if got := len(slices.Collect(c.s.Instances())); tt.enrols == "" && got != instances {
				t.Errorf("%d instances, were %d", got, instances)
			}
			if r.Err == nil {
				if _, ok := c.s.Token(e.GetRedeem().GetId()); ok {
					t.Error("the token can be used again")
				}
			}
			if tt.enrols != "" {
				in, ok := c.s.Instance(tt.enrols)
				if !ok || in.GetWithdrawn() || !in.GetEnrolled().AsTime().Equal(c.s.When()) {
					t.Errorf("instance %v", in)
				}
			}
		})
	}
}

// redeemUsed makes and redeems the token "used" for instance i0.
func redeemUsed(c *cluster) *logv1.Entry {
	c.must(c.token("used", "shop/web"))
	return redeem("used", "i0", "shop/web")
}

func TestRetriedEnrolmentIsAReplay(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	c.must(redeemUsed(c))
	if r := c.must(redeem("used", "i0", "shop/web")); !r.Replayed || !r.Changed.Empty() {
		t.Errorf("retry: %+v", r)
	}
	c.must(&logv1.Entry{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: "i0"}}})
	if r := c.apply(redeem("used", "i0", "shop/web")); !errors.Is(r.Err, state.ErrTokenInvalid) {
		t.Errorf("after deregistration: %v", r.Err)
	}
}

func TestTokens(t *testing.T) {
	c := newCluster(t)
	c.must(c.token("a", "shop/web"))
	if r := c.apply(c.token("a", "shop/db")); !errors.Is(r.Err, state.ErrExists) {
		t.Errorf("id taken: %v", r.Err)
	}
	for name, spoil := range map[string]func(*logv1.Token){
		"no id":          func(t *logv1.Token) { t.Id = "" },
		"short hash":     func(t *logv1.Token) { t.SecretHash = t.SecretHash[:31] },
		"bound to both":  func(t *logv1.Token) { t.Server = true },
		"bound to none":  func(t *logv1.Token) { t.Workload = "" },
		"never expires":  func(t *logv1.Token) { t.Expires = nil },
		"is expired":     func(t *logv1.Token) { t.Expires = timestamppb.New(epoch) },
		"expiry invalid": func(t *logv1.Token) { t.Expires = &timestamppb.Timestamp{Seconds: 1 << 62} },
	} {
		e := c.token("b", "shop/web")
		spoil(e.GetPutToken().GetToken())
		if r := c.apply(e); !errors.Is(r.Err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, r.Err)
		}
	}
	c.now = c.now.Add(2 * time.Hour)
	c.must(c.put())
	if got := slices.Collect(c.s.Tokens()); len(got) != 0 {
		t.Errorf("expired, but listed: %v", got)
	}
	c.must(c.token("a", "shop/web")) // The expired one does not hold its id.
	c.must(&logv1.Entry{Op: &logv1.Entry_DeleteToken{DeleteToken: &logv1.DeleteToken{Id: "a"}}})
	if r := c.apply(&logv1.Entry{Op: &logv1.Entry_DeleteToken{DeleteToken: &logv1.DeleteToken{Id: "a"}}}); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("delete twice: %v", r.Err)
	}
}

func TestWorkloadGoesWithAllThatIsItsOwn(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w"), doc("Workload", "shop", "web2", "w"), doc("Grant", "shop", "web", "g")))
	for _, id := range []string{"b", "a"} {
		c.must(c.token(id, "shop/web"))
		c.must(redeem(id, "i"+id, "shop/web"))
	}
	c.must(c.token("c", "shop/web2"))
	c.must(redeem("c", "ic", "shop/web2"))
	c.must(c.token("open", "shop/web"))
	c.must(c.token("other", "shop/web2"))

	// The same name of another kind is not the workload.
	c.must(applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Deletes: []*logv1.Key{{Kind: "Grant", Namespace: "shop", Name: "web"}}}))
	if n := len(slices.Collect(c.s.InstancesOf("shop/web"))); n != 2 {
		t.Fatalf("%d instances", n)
	}
	r := c.must(applyEntry(&logv1.Apply{ValidatedAt: c.s.Revision(), Deletes: []*logv1.Key{{Kind: "Workload", Namespace: "shop", Name: "web"}}}))
	want := state.Changes{Keys: []state.Key{{Kind: "Workload", Namespace: "shop", Name: "web"}}, InstanceIDs: []string{"ia", "ib"}, Tokens: true}
	if !cmp.Equal(r.Changed, want) {
		t.Error(cmp.Diff(want, r.Changed))
	}
	var left []string
	for in := range c.s.Instances() {
		left = append(left, in.GetId())
	}
	for tok := range c.s.Tokens() {
		left = append(left, tok.GetId())
	}
	if !slices.Equal(left, []string{"ic", "other"}) || len(slices.Collect(c.s.InstancesOf("shop/web"))) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestEndpoints(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	for _, id := range []string{"a", "b"} {
		c.must(c.token(id, "shop/web"))
		c.must(redeem(id, id, "shop/web"))
	}
	before := c.s
	endpoints := func(withdraw, restore []string) state.Result {
		return c.must(&logv1.Entry{Op: &logv1.Entry_Endpoints{Endpoints: &logv1.Endpoints{Withdraw: withdraw, Restore: restore}}})
	}
	if r := endpoints([]string{"b", "gone", "a", "b"}, []string{"gone"}); !slices.Equal(r.Changed.InstanceIDs, []string{"a", "b"}) {
		t.Errorf("changed %v", r.Changed.InstanceIDs)
	}
	if r := endpoints([]string{"a"}, []string{"b"}); !slices.Equal(r.Changed.InstanceIDs, []string{"b"}) {
		t.Errorf("changed %v", r.Changed.InstanceIDs)
	}
	a, _ := c.s.Instance("a")
	b, _ := c.s.Instance("b")
	if !a.GetWithdrawn() || b.GetWithdrawn() {
		t.Errorf("a %v, b %v", a, b)
	}
	if was, _ := before.Instance("a"); was.GetWithdrawn() {
		t.Error("an earlier state has changed")
	}
	// One that withdraws and then enrols again with its key is back.
	c.must(c.token("again", "shop/web"))
	c.must(redeem("again", "a", "shop/web"))
	if a, _ := c.s.Instance("a"); a.GetWithdrawn() {
		t.Error("still withdrawn")
	}
	if r := c.apply(&logv1.Entry{Op: &logv1.Entry_Deregister{Deregister: &logv1.Deregister{Instance: "none"}}}); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("deregister nothing: %v", r.Err)
	}
}

func TestPlace(t *testing.T) {
	c := newCluster(t)
	c.must(c.put(doc("Workload", "shop", "web", "w")))
	c.must(c.token("a", "shop/web"))
	c.must(redeem("a", "a", "shop/web"))
	place := func(id, zone string, weight uint32) state.Result {
		return c.apply(&logv1.Entry{Op: &logv1.Entry_Place{Place: &logv1.Place{Instance: id, Zone: zone, Weight: weight}}})
	}
	before := c.s
	if r := place("a", "north", 7); r.Err != nil || !slices.Equal(r.Changed.InstanceIDs, []string{"a"}) {
		t.Errorf("placed: %v", r)
	}
	if r := place("a", "north", 7); r.Err != nil || len(r.Changed.InstanceIDs) > 0 {
		t.Errorf("placed again: %v", r)
	}
	if r := place("b", "north", 7); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("placed what is not there: %v", r.Err)
	}
	if in, _ := c.s.Instance("a"); in.Zone != "north" || in.Weight != 7 || in.Workload != "shop/web" {
		t.Errorf("is %v", in)
	}
	if was, _ := before.Instance("a"); was.Zone != "" {
		t.Error("an earlier state has changed")
	}
	if got := c.s.SnapshotFormat(); got != 3 {
		t.Errorf("the snapshot is of format %d", got)
	}
}

func TestAdmins(t *testing.T) {
	c := newCluster(t)
	put := func(name, role string) state.Result {
		return c.apply(&logv1.Entry{Op: &logv1.Entry_PutAdmin{PutAdmin: &logv1.PutAdmin{Admin: &logv1.Admin{Name: name, Role: role}}}})
	}
	remove := func(name string) state.Result {
		return c.apply(&logv1.Entry{Op: &logv1.Entry_DeleteAdmin{DeleteAdmin: &logv1.DeleteAdmin{Name: name}}})
	}
	put("eve", "editor")
	for name, r := range map[string]state.Result{"remove": remove("root"), "demote": put("root", "viewer")} {
		if !errors.Is(r.Err, state.ErrLastAdmin) {
			t.Errorf("%s the last: %v", name, r.Err)
		}
	}
	if r := remove("none"); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("remove nobody: %v", r.Err)
	}
	if r := put("", "admin"); !errors.Is(r.Err, state.ErrInvalid) {
		t.Errorf("nobody: %v", r.Err)
	}
	put("eve", "admin")
	if r := remove("root"); r.Err != nil || !r.Changed.Admins {
		t.Errorf("remove one of two: %+v", r)
	}
	if _, ok := c.s.Admin("root"); ok {
		t.Error("root is still admin")
	}
}

func TestServers(t *testing.T) {
	c := newCluster(t)
	v := &logv1.Server{Id: "s1", AdminAddress: "127.0.0.1:1"}
	put := func() state.Result {
		return c.must(&logv1.Entry{Op: &logv1.Entry_PutServer{PutServer: &logv1.PutServer{Server: v}}})
	}
	if r := put(); !r.Changed.Servers {
		t.Errorf("first: %+v", r)
	}
	if r := put(); !r.Changed.Empty() {
		t.Errorf("again: %+v", r)
	}
	if got, ok := c.s.Server("s1"); !ok || !cmp.Equal(got, v, protocmp.Transform()) {
		t.Errorf("server %v", got)
	}
	remove := &logv1.Entry{Op: &logv1.Entry_DeleteServer{DeleteServer: &logv1.DeleteServer{Id: "s1"}}}
	c.must(remove)
	if r := c.apply(remove); !errors.Is(r.Err, state.ErrNotFound) {
		t.Errorf("remove twice: %v", r.Err)
	}
}
