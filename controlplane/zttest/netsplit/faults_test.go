//go:build system

package netsplit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/controlplane/zttest/ledger"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// followerIsolated: the others write on, nobody elects, then or when it is back, and it
// catches up. A machine that stalls for a second elects, too: this is asked three times.
func (s *split) followerIsolated() {
	s.T.Helper()
	const tries = 3
	for try := 1; ; try++ {
		l := s.StartLoad()
		term := s.newest()
		away := others(s.Leads())[s.Rand.IntN(2)]
		s.net.part(away+1, ends(others(away))...)
		s.wait(s.last(4 * time.Second))
		s.MoreWrites(10)
		s.net.heal()
		s.wait(2 * time.Second)
		s.settle(l)
		if now := s.newest(); now == term {
			return
		} else if try == tries {
			s.T.Fatalf("%s was isolated %d times, and each time somebody was elected: term %d, then %d", s.Servers[away].Name, tries, term, now)
		}
	}
}

// leaderInMinority: whoever asks the old leader gets no answer that is not true.
func (s *split) leaderInMinority() {
	s.T.Helper()
	l := s.StartLoad()
	old := s.Leads()
	instance, at := s.instance(), s.Ports[old]
	token, err := s.Token(s.Context(), ledger.Workload)
	s.Check(err)
	s.net.part(old+1, ends(others(old))...)

	// From now on nothing can be agreed on there.
	call, cancel := context.WithTimeout(s.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.API(old).CreateToken(call, &ztv1.CreateTokenRequest{Workload: ledger.Workload}); err == nil {
		s.T.Error("a leader in the minority made a token")
	}
	lost := s.enrol(call, old, token)
	if lost.err == nil {
		s.T.Error("a leader in the minority enrolled an instance")
	}
	s.Check(s.renew(instance, at)) // it has heard a leader within five minutes: itself

	// The others go on, and what they agree on shows in no answer of the old one but
	// a true one; the readers ask it all the time, and the ledger judges.
	s.MoreWrites(5)
	next := s.leaderBut(old)
	name := "w0/d0"
	before := s.Ledger.Counts().Reads
	for range 20 {
		s.Check(s.Ledger.Read(name, next))
		answered, err := s.Ledger.TryRead(name, old)
		s.Check(err)
		if answered {
			s.T.Error("a server without a quorum answered a read that was to be newest")
			break
		}
		if stale, err := s.API(old).GetDocument(s.Context(), &ztv1.GetDocumentRequest{
			Kind: "Workload", Namespace: "load", Name: "agent", Stale: true,
		}); err != nil || stale.GetDocument().GetRevision() == 0 {
			s.T.Errorf("a stale read of a server without a quorum: %v, %v", stale, err)
			break
		}
	}
	if s.Ledger.Counts().Reads == before {
		s.T.Error("nobody read")
	}
	s.Check(s.renew(instance, at))

	// The token is worth one instance, whoever comes first where it counts.
	if won := s.enrol(s.Context(), next, token); won.err != nil {
		s.T.Errorf("the majority does not enrol: %v", won.err)
	}
	s.net.heal()
	s.Until("the first to ask is refused", func(ctx context.Context) error {
		again := s.ask(ctx, old, lost.req)
		if again == nil {
			s.T.Error("one token made two instances")
			return nil
		}
		if status.Code(again) != codes.PermissionDenied {
			return again
		}
		return nil
	})
	s.settle(l)
}

// enrolment is a try to enrol, and how it ended.
type enrolment struct {
	req *ztv1.EnrolRequest
	key identity.PrivateKey
	err error
	ztv1.Issued
}

func (s *split) enrol(ctx context.Context, server int, token string) *enrolment {
	s.T.Helper()
	key, err := identity.NewKey()
	s.Check(err)
	csr, err := identity.NewCSR(key)
	s.Check(err)
	e := &enrolment{key: key, req: &ztv1.EnrolRequest{
		Token: token, Workload: ledger.Workload, Instance: identity.NewID(), NodeCsr: csr, SvidCsr: csr,
	}}
	e.err = s.ask(ctx, server, e.req)
	return e
}

func (s *split) ask(ctx context.Context, server int, req *ztv1.EnrolRequest) error {
	_, err := ztv1.NewNodeServiceClient(s.Ports[server].Node).Enrol(ctx, req)
	return err
}

// instance enrols one.
func (s *split) instance() *identity.KeyPair {
	s.T.Helper()
	token, err := s.Token(s.Context(), ledger.Workload)
	s.Check(err)
	key, err := identity.NewKey()
	s.Check(err)
	csr, err := identity.NewCSR(key)
	s.Check(err)
	req := &ztv1.EnrolRequest{Token: token, Workload: ledger.Workload, Instance: identity.NewID(), NodeCsr: csr, SvidCsr: csr}
	var chain [][]byte
	s.Until("an enrolment", func(ctx context.Context) error {
		resp, err := ztv1.NewNodeServiceClient(s.Ports[s.Leads()].Node).Enrol(ctx, req)
		chain = resp.GetCertificates().GetNodeChain()
		return err
	})
	certs, err := identity.ParseDER(chain)
	s.Check(err)
	pair, err := identity.NewKeyPair(key, certs)
	s.Check(err)
	return pair
}

// renew renews as an instance, at one server.
func (s *split) renew(as *identity.KeyPair, at fleet.Ports) error {
	conn, err := at.AsNode(as)
	if err != nil {
		return err
	}
	defer conn.Close()
	key, err := identity.NewKey()
	if err != nil {
		return err
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return err
	}
	return fleet.Until(s.Context(), "a renewal", func(ctx context.Context) error {
		_, err := ztv1.NewNodeServiceClient(conn).Renew(ctx, &ztv1.RenewRequest{SvidCsr: csr})
		return err
	})
}

// leaderBut waits for a leader that is not one of before.
func (s *split) leaderBut(old int) (n int) {
	s.T.Helper()
	s.Until("another leader", func(ctx context.Context) error {
		for _, i := range others(old) {
			info, err := s.API(i).GetServerInfo(ctx, &ztv1.GetServerInfoRequest{})
			if err == nil && info.Leader == s.IDs[i] {
				n = i
				return nil
			}
		}
		return errors.New("there is none")
	})
	return n
}

// oneWay: what one server sends to another is lost, while answers would come; for every
// pair, in the short form for three.
func (s *split) oneWay() {
	s.T.Helper()
	l := s.StartLoad()
	pairs := s.Rand.Perm(6)
	if !s.long {
		pairs = pairs[:3]
	}
	for _, p := range pairs {
		from := p / 2
		to := others(from)[p%2]
		s.net.cut(from+1, to+1)
		s.wait(s.last(1500 * time.Millisecond))
		s.MoreWrites(3)
		s.net.heal()
		s.MoreWrites(3)
	}
	s.settle(l)
}

// leaderHearsNobody: it speaks, and so keeps the others from electing, until it has
// noticed that nobody answers.
func (s *split) leaderHearsNobody() {
	s.T.Helper()
	l := s.StartLoad()
	old := s.Leads()
	for _, o := range others(old) {
		s.net.cut(o+1, old+1)
	}
	next := s.leaderBut(old)
	s.MoreWrites(5)
	s.wait(s.last(2 * time.Second))
	if now := s.leaderBut(old); now != next {
		s.T.Logf("%s took over from %s", s.Servers[now].Name, s.Servers[next].Name)
	}
	s.settle(l)
}

// bridge: two servers do not hear each other, and both hear the third.
func (s *split) bridge() {
	s.T.Helper()
	l := s.StartLoad()
	apart := others(s.Rand.IntN(3))
	s.net.part(apart[0]+1, apart[1]+1)
	s.wait(s.last(2 * time.Second))
	s.MoreWrites(5)
	s.settle(l)
}

// flapping: links come and go faster than anybody elects.
func (s *split) flapping() {
	s.T.Helper()
	l := s.StartLoad()
	for end := time.Now().Add(s.last(6 * time.Second)); time.Now().Before(end); {
		from := s.Rand.IntN(3)
		to := others(from)[s.Rand.IntN(2)]
		if s.Rand.IntN(2) == 0 {
			s.net.part(from+1, to+1)
		} else {
			s.net.cut(from+1, to+1)
		}
		s.wait(time.Duration(50+s.Rand.IntN(400)) * time.Millisecond)
		s.net.heal()
		s.wait(time.Duration(s.Rand.IntN(300)) * time.Millisecond)
	}
	s.MoreWrites(5)
	s.settle(l)
}

// leaderStopped: a leader that was stopped, and does not know how long, answers no read
// by what it knew, also those that lay before it when it went on.
func (s *split) leaderStopped() {
	s.T.Helper()
	l := s.StartLoad()
	old := s.Leads()
	process := s.Servers[old].PID()
	s.Check(syscall.Kill(process, syscall.SIGSTOP))
	defer syscall.Kill(process, syscall.SIGCONT)
	s.leaderBut(old)
	s.MoreWrites(5)
	s.wait(s.last(5 * time.Second))
	answers := make(chan error)
	const readers = 16
	for i := range readers {
		go func() {
			var err error
			for n := 0; n < 5 && err == nil; n++ {
				err = s.Ledger.Read(fmt.Sprintf("w%d/d%d", i%s.Writers, n%2), old)
			}
			answers <- err
		}()
	}
	s.MoreWrites(5)
	s.Check(syscall.Kill(process, syscall.SIGCONT))
	for range readers {
		s.Check(<-answers)
	}
	s.MoreWrites(5)
	s.settle(l)
}

// black: an administrator's answer is lost on its way. What ztctl says is true: that it
// does not know, and what to run next; and that tells.
func (s *split) black() {
	s.T.Helper()
	leader := s.Leads()
	server := s.Servers[leader]
	contexts := filepath.Join(s.Dir, "one.yaml")
	s.Check(s.onlyServer(contexts, server))
	spec := filepath.Join(s.Dir, fmt.Sprintf("black-%d.yaml", s.Rand.IntN(1<<30)))
	name := fmt.Sprintf("n%d", s.Rand.IntN(1<<30))
	s.Check(os.WriteFile(spec, fmt.Appendf(nil, `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: dark, name: %s}
spec: {}
`, name), 0o600))

	// Nobody answers at all: nothing was sent.
	s.net.cut(leader+1, client)
	out, code := s.ztctl(contexts, "apply", "-f", spec, "--request-timeout", "3s")
	if code != 1 || strings.Contains(out, "unknown") {
		s.T.Errorf("in the dark from the start, ztctl ends with %d: %s", code, out)
	}
	s.net.heal()

	// The answer is lost: the server stops when it has committed, and what it says when
	// it goes on does not arrive.
	before, err := paused(server)
	s.Check(err)
	s.Check(server.Post(s.Context(), "/debug/failpoint?arm=api.apply.committed=pause"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, code = s.ztctl(contexts, "apply", "-f", spec, "--request-timeout", "8s")
	}()
	s.Until("the commit", func(context.Context) error {
		n, err := paused(server)
		if err == nil && n == before {
			err = errors.New("not yet")
		}
		return err
	})
	s.net.cut(leader+1, client)
	s.Check(syscall.Kill(server.PID(), syscall.SIGCONT))
	<-done
	key := idempotencyKey.FindStringSubmatch(out)
	if code == 0 || key == nil || !strings.Contains(out, "not known") || strings.Contains(out, "nothing was") {
		s.T.Fatalf("the answer was lost, and ztctl ends with %d: %s", code, out)
	}
	s.net.heal()
	s.Until("what to run next", func(context.Context) error {
		if out, code := s.ztctl(contexts, "apply", "-f", spec, "--idempotency-key", key[1]); code != 0 {
			return fmt.Errorf("ztctl ends with %d: %s", code, out)
		}
		return nil
	})
	all, err := s.API(leader).ListRevisions(s.Context(), &ztv1.ListRevisionsRequest{PageSize: 1000})
	s.Check(err)
	times := 0
	for _, r := range all.Revisions {
		for _, c := range r.Changes {
			if c.GetNamespace() == "dark" && c.GetName() == name {
				times++
			}
		}
	}
	if times != 1 {
		s.T.Errorf("what was not known took effect %d times", times)
	}
	s.Check(s.Converge(s.Context()))
}

// paused is how often a server has stopped after a commit.
func paused(server *fleet.Server) (int, error) {
	b, err := os.ReadFile(server.Log())
	return strings.Count(string(b), "failpoint api.apply.committed\n"), err
}

// idempotencyKey finds what ztctl says to ask again with.
var idempotencyKey = regexp.MustCompile(`--idempotency-key ([0-9a-f]+)`)

// onlyServer writes a context that knows one server.
func (s *split) onlyServer(path string, server *fleet.Server) error {
	all, err := identity.LoadContexts(s.Servers[0].Dir(s.Site) + ".admin.yaml")
	if err != nil {
		return err
	}
	for i := range all.Contexts {
		all.Contexts[i].Servers = []string{server.Admin()}
	}
	return identity.SaveContexts(path, all)
}

// ztctl returns what a command says, and its exit code.
func (s *split) ztctl(contexts string, args ...string) (string, int) {
	cmd := exec.Command(s.Program("ztctl"), append(args, "--config", contexts)...)
	cmd.Dir, cmd.Env = s.Dir, s.Env
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}
