package policy

import (
	"slices"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Block denies, over every rule, the callers or the users that it names, and with
// neither everybody.
type Block struct {
	Name    spec.Ref
	Callers *Callers // nil: does not depend on the caller
	Users   *BlockedUsers
	Reason  string
	Until   time.Time // half-open; zero: no end
}

// BlockedUsers are users of one provider, by `sub`.
type BlockedUsers struct {
	Provider string
	Subjects []string // sorted
}

func (b Block) activeAt(t time.Time) bool { return b.Until.IsZero() || t.Before(b.Until) }

func (b Block) denies(p principal) bool { return b.Callers == nil || b.Callers.has(p) }

// equal compares what a proxy is told.
func (b Block) equal(o Block) bool {
	same := b.Name == o.Name && (b.Callers == nil) == (o.Callers == nil) && (b.Users == nil) == (o.Users == nil)
	if same && b.Callers != nil {
		same = b.Callers.equal(*o.Callers)
	}
	if same && b.Users != nil {
		same = b.Users.Provider == o.Users.Provider && slices.Equal(b.Users.Subjects, o.Users.Subjects)
	}
	return same
}

// block is a Block document. One that spec.Check would refuse is understood as
// denying more than it says.
type block struct {
	ref      spec.Ref
	callers  named
	domains  []string
	everyone bool // it names neither callers nor users
	users    *BlockedUsers
	narrowed bool       // it names services
	services []spec.Ref // sorted
	reason   string
	until    time.Time // zero: no end
}

func newBlock(trustDomain string, ref spec.Ref, d *ztv1.Block) *block {
	b := &block{
		ref: ref, domains: set(d.GetTrustDomains()), reason: d.GetReason(),
		narrowed: len(d.GetServices()) > 0, services: references(d.GetServices(), ref.Namespace),
	}
	b.callers.Workloads = references(d.GetWorkloads(), ref.Namespace)
	b.callers.Namespaces = set(d.GetNamespaces())
	b.callers.identities(trustDomain, d.GetSpiffeIds())
	if u := d.GetUsers(); u != nil {
		b.users = &BlockedUsers{Provider: u.GetProvider(), Subjects: set(u.GetSubjects())}
	}
	b.everyone = b.users == nil && len(d.GetWorkloads()) == 0 && len(d.GetNamespaces()) == 0 &&
		len(d.GetSpiffeIds()) == 0 && len(d.GetTrustDomains()) == 0
	if t := d.GetUntil(); t != nil && t.IsValid() {
		b.until = t.AsTime()
	}
	return b
}

// callersOf is whom b names in this spec.
func (ix *Index) callersOf(b *block) Callers {
	c := ix.callers(b.callers)
	for _, d := range b.domains {
		if d == ix.trustDomain {
			c.Any = true
		} else {
			c.Domains = append(c.Domains, d)
		}
	}
	return c
}

// on is what b denies at a target. A Block of a namespace acts on services of that namespace, and
// elsewhere on callers of it.
func (ix *Index) on(b *block, t *target) []Block {
	if b.narrowed && !slices.ContainsFunc(b.services, t.named) {
		return nil
	}
	base := Block{Name: b.ref, Reason: b.reason, Until: b.until}
	here := b.ref.Namespace == spec.MeshNamespace || b.ref.Namespace == t.ref.Namespace
	var out []Block
	if _, known := ix.provider(b.users); known && here {
		by := base
		by.Users = b.users
		out = append(out, by)
	}
	if b.everyone && here {
		return append(out, base)
	}
	c := Callers{Any: b.everyone}
	if !b.everyone {
		c = ix.callersOf(b)
	}
	if !here {
		c.Domains = nil
		c = c.intersect(Callers{Namespaces: []string{b.ref.Namespace}})
	}
	if !c.none() {
		by := base
		by.Callers = &c
		out = append(out, by)
	}
	return out
}

// provider is the one whose users u are. Of one that is not declared there are
// none: a Block of an operator may outlive it.
func (ix *Index) provider(u *BlockedUsers) (*Provider, bool) {
	if u == nil {
		return nil, false
	}
	return ix.Provider(u.Provider)
}

// usersBlockedOn is the providers whose users some Block denies at a target.
func (ix *Index) usersBlockedOn(t target) []string {
	var out []string
	walk(ix.blocks, nil, func(b *block) bool {
		if b.users == nil {
			return true
		}
		for _, by := range ix.on(b, &t) {
			if by.Users != nil {
				out = append(out, by.Users.Provider)
			}
		}
		return true
	})
	return out
}

// blocksOn is every Block that acts at a target, sorted by name.
func (ix *Index) blocksOn(t target) []Block {
	var out []Block
	walk(ix.blocks, nil, func(b *block) bool {
		out = append(out, ix.on(b, &t)...)
		return true
	})
	return out
}

// Blocks is the Blocks that concern a port of the workload ref, sorted by name:
// those that speak of nobody whom a rule of the port admits are left out, as are
// those of users on a tcp port. They are active as long as they are in ix; see
// Lift.
func (ix *Index) Blocks(ref spec.Ref, port string) []Block {
	if ix.blocks.Len() == 0 {
		return nil
	}
	if e, ok := ix.externals(ref); ok {
		return ix.blocksOf(e.target(), ix.externalRules(e, false), e.external.Protocol)
	}
	return ix.Inbound(ref, port).Blocks
}

func (ix *Index) blocksOf(t target, rules []Rule, protocol string) []Block {
	var admitted Callers
	for _, r := range rules {
		admitted = admitted.union(r.Callers)
	}
	domains := ix.domains()
	var out []Block
	walk(ix.blocks, nil, func(b *block) bool {
		if b.users == nil && !b.everyone && !ix.callersOf(b).meets(admitted, domains) {
			return true
		}
		for _, by := range ix.on(b, &t) {
			switch {
			case by.Users != nil && protocol == TCP:
			case by.Users == nil && by.Callers != nil && !by.Callers.meets(admitted, domains):
			default:
				out = append(out, by)
			}
		}
		return true
	})
	return out
}
