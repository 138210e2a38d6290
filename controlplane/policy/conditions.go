package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Conditions narrow a rule: all that are set must hold. The zero value is none.
// Lists are sorted and hold nothing twice.
type Conditions struct {
	Users   *Users         // nil: with and without a user
	Headers []OneOf        // by name
	Windows []Window       // one of these; nil: always
	Until   time.Time      // half-open; UTC; zero: no end
	Sources []netip.Prefix // the TCP peer is in one of these; nil: any
	CEL     *spec.Expr     // is true; what errs is not; nil: always
	CELText string         // of CEL
}

// Users is which verified tokens match: all that is set.
type Users struct {
	Provider string
	Subjects []string      // nil: any
	Claims   []OneOf       // by the names that the provider declares
	ACR, AMR []string      // nil: any
	MaxAge   time.Duration // of auth_time; 0: any
}

// OneOf is a claim or a header by its name, and the values of which it is to
// have one.
type OneOf struct {
	Name   string
	Values []string
}

// Claim is a claim as a provider declares it.
type Claim struct {
	Name string
	Path []string // in the token, from the outside in
	Kind ClaimKind
}

// ClaimKind is the JSON type of a claim. One of another type does not match.
type ClaimKind string

// The kinds of claims.
const (
	StringClaim  ClaimKind = "string"
	ListClaim    ClaimKind = "list" // of strings
	BooleanClaim ClaimKind = "boolean"
)

// newConditions reads the conditions of a grant. ok is false for what
// spec.Check would refuse: such a grant means nothing, since a condition left out
// would widen it.
func newConditions(from *ztv1.Caller, when *ztv1.When, until *timestamppb.Timestamp) (c Conditions, ok bool) {
	ok = true
	if u := from.GetUsers(); u != nil {
		c.Users, ok = newUsers(u)
	}
	if c.Headers = oneOfs(when.GetHeaders()); slices.ContainsFunc(c.Headers, OneOf.senseless) {
		ok = false
	}
	for _, w := range when.GetWindows() {
		window, sound := newWindow(w)
		c.Windows, ok = append(c.Windows, window), ok && sound
	}
	slices.SortFunc(c.Windows, Window.compare)
	c.Windows = slices.CompactFunc(c.Windows, Window.equal)
	for _, s := range when.GetSourceCidrs() {
		p, err := netip.ParsePrefix(s)
		c.Sources, ok = append(c.Sources, p), ok && err == nil && p == p.Masked() && !p.Addr().Is4In6()
	}
	slices.SortFunc(c.Sources, comparePrefix)
	c.Sources = slices.Compact(c.Sources)
	if until != nil {
		c.Until, ok = until.AsTime(), ok && until.IsValid() && !until.AsTime().IsZero()
	}
	if text := when.GetCel(); text != "" {
		expr, err := spec.ParseCEL(text)
		c.CEL, c.CELText, ok = expr, text, ok && err == nil
	}
	if !ok {
		return Conditions{}, false
	}
	return c, true
}

func newUsers(u *ztv1.Users) (*Users, bool) {
	out := &Users{
		Provider: u.GetProvider(), Subjects: set(u.GetSubjects()), Claims: oneOfs(u.GetClaims()),
		ACR: set(u.GetAcr()), AMR: set(u.GetAmr()),
	}
	ok := out.Provider != "" && !slices.ContainsFunc(out.Claims, OneOf.senseless)
	if d := u.GetMaxAge(); d != nil {
		out.MaxAge, ok = d.AsDuration(), ok && d.IsValid() && d.AsDuration() > 0
	}
	return out, ok
}

// oneOfs is a map of lists, sorted by name; nil when it is empty.
func oneOfs(m map[string]*ztv1.Strings) []OneOf {
	var out []OneOf
	for name, values := range m {
		out = append(out, OneOf{Name: name, Values: set(values.GetValues())})
	}
	slices.SortFunc(out, func(a, b OneOf) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// senseless tells whether nothing can be meant by o.
func (o OneOf) senseless() bool { return o.Name == "" || len(o.Values) == 0 }

func (o OneOf) equal(p OneOf) bool { return o.Name == p.Name && slices.Equal(o.Values, p.Values) }

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// none tells whether c narrows nothing.
func (c Conditions) none() bool { return c.equal(Conditions{}) }

func (c Conditions) equal(o Conditions) bool {
	return c.Users.equal(o.Users) && slices.EqualFunc(c.Headers, o.Headers, OneOf.equal) &&
		slices.EqualFunc(c.Windows, o.Windows, Window.equal) && c.Until.Equal(o.Until) &&
		slices.Equal(c.Sources, o.Sources) && c.CELText == o.CELText
}

func (u *Users) equal(o *Users) bool {
	if u == nil || o == nil {
		return u == o
	}
	return u.Provider == o.Provider && slices.Equal(u.Subjects, o.Subjects) && slices.EqualFunc(u.Claims, o.Claims, OneOf.equal) &&
		slices.Equal(u.ACR, o.ACR) && slices.Equal(u.AMR, o.AMR) && u.MaxAge == o.MaxAge
}
