// Package script reads decision scripts: a spec and, line by line, what it must
// say about requests. Every judge of requests runs the same scripts: the
// evaluator (policy.Decide), and real Envoys with the compiled configuration.
//
// It owns the format and knows no judge. A script is a txtar archive. Its
// comment says what it shows; its *.yaml files are the spec; its file "users", if
// any, has the users whose tokens requests bear (see User); its file "decisions"
// has one decision a line:
//
//	namespace shop
//	allow web -> orders GET /orders/7?x=1 by web-reads-orders
//	allow web -> orders:admin GET /stats by all-read, web-reads
//	allow web -> quotes GRPC shop.v1.Quotes/Get by web-quotes
//	allow web -> db TCP by web-db
//	allow web -> orders GET /.well-known/ztmesh/health because health
//	deny web -> orders DELETE /orders/7
//	deny web -> orders GET /a%2fb because form
//	deny web -> orders GET / host other.example because form
//	deny spiffe://other.example/ns/shop/sa/web -> orders GET / because transport
//	deny - -> orders GET / because transport
//	allow web -> orders GET / as ada header x-tier=gold from 10.1.2.3 by gold
//	deny web -> orders GET / as ada token expired because token
//	allow web -> orders GET /live upgrade websocket by live
//	allow - -> orders GET / plaintext from 10.1.2.3 because exception:shop/old
//	deny web -> orders GET / authorizer denies because external:shop/orders
//	deny web -> orders GET / at 2026-03-29T01:30:00Z
//
// "namespace" is the namespace of the names without one on the lines below it.
// The caller is a workload, declared or not, a SPIFFE ID, or "-" for none. "by"
// lists every grant that matches; a proxy names one of them. "because" is the
// reason; without it a denial is by default. Method and path stand as they are
// sent. Empty lines and lines that begin with "#" say nothing.
//
// Between the request and the reason stand, in any order:
//
//	host AUTHORITY    otherwise the main host of the port
//	as USER           bears a token of this user
//	token KIND        what is wrong with the token: see TokenKinds
//	header NAME=VALUE can stand several times
//	from ADDRESS      the TCP peer, otherwise 127.0.0.1
//	at TIME           when it begins (RFC 3339), otherwise Noon; a judge with a real
//	                  clock leaves such lines out, and judges the others at its own time
//	upgrade PROTOCOL  an upgrade request, or an extended CONNECT
//	plaintext         without TLS
//	authorizer denies what the external authorizer says if it is asked, otherwise yes
package script

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ztmesh/ztmesh/controlplane/policy"
	"github.com/ztmesh/ztmesh/controlplane/spec"
)

// DefaultTrustDomain is that of a script whose spec has no Mesh.
const DefaultTrustDomain = "shop.example"

// Script is one parsed script.
type Script struct {
	Name        string
	Comment     string
	TrustDomain string
	Docs        []*spec.Document
	Users       map[string]User // by the name that lines use
	Lines       []Line
}

// Line is one decision.
type Line struct {
	Number  int    // in the file "decisions", from 1
	Text    string // as written
	Request policy.Request
	GRPC    bool // written as a gRPC call; Request has the POST
	Allow   bool
	By      []spec.Ref // every grant that matches, sorted; nil unless by grants
	Because string     // the reason, when not by grants: a policy.Reason... constant
	User    string     // whose token it bears; empty: nobody's
	Token   string     // what is wrong with the token: one of TokenKinds; empty: nothing
	Timed   bool       // Request.Time is written, and not Noon
}

// Noon is when a request begins that names no time.
var Noon = time.Date(2026, time.June, 15, 12, 0, 0, 0, time.UTC)

// Parse reads a script. A spec with problems is an error, as is a line that says
// nothing definite.
func Parse(name string, archive []byte) (*Script, error) {
	ar := txtar.Parse(archive)
	s := &Script{Name: name, Comment: strings.TrimSpace(string(ar.Comment))}
	var files []spec.File
	var decisions *txtar.File
	var err error
	for i, f := range ar.Files {
		switch {
		case strings.HasSuffix(f.Name, ".yaml"):
			files = append(files, spec.File{Name: f.Name, Content: f.Data})
		case f.Name == "decisions":
			decisions = &ar.Files[i]
		case f.Name == "users":
			if s.Users, err = parseUsers(f.Data); err != nil {
				return nil, fmt.Errorf("%s: users: %w", name, err)
			}
		default:
			return nil, fmt.Errorf("%s: the file %s is neither *.yaml nor users nor decisions", name, f.Name)
		}
	}
	docs, problems := spec.Parse(files)
	if err := problems.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.Docs = docs
	s.TrustDomain = cmp.Or(spec.MeshOf(docs).GetTrustDomain(), DefaultTrustDomain)
	if err := spec.Check(docs, s.TrustDomain).Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if decisions == nil {
		return nil, fmt.Errorf("%s: no file decisions", name)
	}
	var errs []error
	issued(s.Users, docs)
	p := parser{trustDomain: s.TrustDomain, users: s.Users}
	for i, text := range strings.Split(string(decisions.Data), "\n") {
		text = strings.TrimSpace(text)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if ns, ok := strings.CutPrefix(text, "namespace "); ok {
			p.namespace = ns
			continue
		}
		l, err := p.line(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: decisions:%d: %w", name, i+1, err))
			continue
		}
		l.Number = i + 1
		s.Lines = append(s.Lines, l)
	}
	return s, errors.Join(errs...)
}

// Index is the policy of the script's spec.
func (s *Script) Index() *policy.Index { return policy.New(s.TrustDomain, s.Docs) }

// Check says where a decision of the evaluator differs from the line; nil when
// it is the same in verdict, reason and grants.
func (l Line) Check(d policy.Decision) error {
	want := "deny " + l.Because
	switch {
	case l.By != nil:
		want = fmt.Sprintf("allow by %v", l.By)
	case l.Allow:
		want = "allow " + l.Because
	}
	if d.Allowed == l.Allow && slices.Equal(d.Grants, l.By) && (l.By != nil || d.Reason == l.Because) {
		return nil
	}
	got := "deny " + d.Reason
	if d.Allowed {
		got = fmt.Sprintf("allow by %v (%s)", d.Grants, d.Reason)
	}
	return fmt.Errorf("decisions:%d: %s: want %s, got %s %q", l.Number, l.Text, want, got, d.Hints)
}

// Accepts tells whether a judge that names one reason agrees with the line:
// "grant:namespace/name" of one of its grants, or its reason.
func (l Line) Accepts(allowed bool, reason string) bool {
	if allowed != l.Allow {
		return false
	}
	if l.By == nil {
		return reason == l.Because
	}
	return slices.ContainsFunc(l.By, func(g spec.Ref) bool { return reason == "grant:"+g.String() })
}

type parser struct {
	trustDomain, namespace string
	users                  map[string]User
}

// line reads VERDICT CALLER -> SERVICE[:PORT] WHAT CLAUSE... [by G, G | because R].
func (p parser) line(text string) (Line, error) {
	l := Line{Text: text}
	words := strings.Fields(text)
	if len(words) < 5 || words[2] != "->" {
		return l, errors.New("is not VERDICT CALLER -> SERVICE METHOD PATH")
	}
	switch words[0] {
	case "allow":
		l.Allow = true
	case "deny":
	default:
		return l, fmt.Errorf("the verdict %q is neither allow nor deny", words[0])
	}
	var err error
	if l.Request.CallerID, err = p.caller(words[1]); err != nil {
		return l, err
	}
	if l.Request.Service, l.Request.Port, err = spec.ParseServicePort(words[3], p.namespace); err != nil {
		return l, err
	}
	rest := words[5:]
	if words[4] == "TCP" {
		l.Request.TCP = true
	} else {
		if len(rest) == 0 {
			return l, errors.New("no path")
		}
		l.Request.Method, l.Request.Path = words[4], rest[0]
		if words[4] == "GRPC" {
			l.GRPC, l.Request.Method, l.Request.Path = true, "POST", "/"+rest[0]
		}
		rest = rest[1:]
	}
	if rest, err = p.clauses(&l, rest); err != nil {
		return l, err
	}
	p.token(&l)
	return l, p.reason(&l, rest)
}

// clauses reads what stands between the request and the reason, and returns the
// rest.
func (p parser) clauses(l *Line, words []string) (rest []string, err error) {
	r := &l.Request
	r.Time = Noon
	for len(words) > 0 {
		word := words[0]
		if word == "plaintext" {
			r.Plaintext, words = true, words[1:]
			continue
		}
		if word == "by" || word == "because" || len(words) < 2 {
			break
		}
		value := words[1]
		switch word {
		case "host":
			r.Authority = value
		case "as":
			l.User = value
			if _, known := p.users[value]; !known {
				err = fmt.Errorf("there is no user %s", value)
			}
		case "token":
			l.Token = value
			if !slices.Contains(TokenKinds(), value) {
				err = fmt.Errorf("the token %q is none of %v", value, TokenKinds())
			}
		case "header":
			name, text, ok := strings.Cut(value, "=")
			if r.Headers = append(r.Headers, policy.Header{Name: name, Value: text}); !ok || name != strings.ToLower(name) {
				err = fmt.Errorf("the header %q is not name=value with the name in lower case", value)
			}
		case "from":
			r.Source, err = netip.ParseAddr(value)
		case "at":
			l.Timed = true
			r.Time, err = time.Parse(time.RFC3339Nano, value)
		case "upgrade":
			r.Upgrade = value
		case "authorizer":
			if r.Denied = true; value != "denies" {
				err = fmt.Errorf("the authorizer %q does not deny", value)
			}
		default:
			return words, nil
		}
		if err != nil {
			return nil, err
		}
		words = words[2:]
	}
	return words, nil
}

// token fills in what the request's token says.
func (p parser) token(l *Line) {
	switch {
	case l.Token == TokenNone, l.Token == TokenBasic:
	case l.Token != "":
		l.Request.Token = policy.Token{State: policy.TokenInvalid}
	case l.User != "":
		u := p.users[l.User]
		l.Request.Token = policy.Token{State: policy.TokenValid, Provider: u.Provider, Claims: u.Token(l.Request.Time)}
	}
}

func (p parser) caller(word string) (id string, err error) {
	switch {
	case word == "-":
		return "", nil
	case strings.Contains(word, "://"):
		return word, nil
	}
	ref, err := spec.ParseRef(word, p.namespace)
	return policy.ID(p.trustDomain, ref), err
}

func (p parser) reason(l *Line, words []string) error {
	switch {
	case len(words) == 0 && !l.Allow:
		l.Because = policy.ReasonDefault
	case len(words) == 2 && words[0] == "because":
		l.Because = words[1]
	case len(words) >= 2 && words[0] == "by" && l.Allow:
		for _, word := range strings.Split(strings.Join(words[1:], ""), ",") {
			ref, err := spec.ParseRef(word, p.namespace)
			if err != nil {
				return fmt.Errorf("by: %w", err)
			}
			l.By = append(l.By, ref)
		}
		slices.SortFunc(l.By, spec.Ref.Compare)
	default:
		return fmt.Errorf("does not end in %q", "by GRANT, GRANT or because REASON")
	}
	return nil
}
