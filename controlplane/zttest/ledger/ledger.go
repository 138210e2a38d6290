// Package ledger is what the clients of a cluster were told, kept where no crash of a
// server reaches it, and compared with what the cluster says afterwards.
//
// [Writers] apply documents, [Readers] read them, [Joiners] use tokens up and make
// admins; each asks again, with the same key, whatever it got no clear answer to, and
// remembers what each answer claimed. [Ledger.Check] then holds the cluster to all of
// it:
//
//   - a write that was acknowledged is there, at the revision that was told;
//   - no key has two revisions, and no revision a key that nobody sent;
//   - a write of which every answer said that nothing was changed changed nothing,
//     then or later;
//   - a write that began after another was acknowledged has the higher revision;
//   - a read sees every write that was acknowledged before it began, and none that was
//     overtaken by what another read has seen before it began;
//   - a token makes one instance, and exactly one when everybody has asked to the end;
//   - an admin, or an instance, is there when the last acknowledged call about it says
//     so;
//   - a certificate that was handed out stands in the journal of a server.
//
// The bounds of time are those of this process: what is "before" is what has returned
// before.
package ledger

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// mostWrites is how many writes there are between two checks: a cluster keeps its last
// 1,000 revisions. From manyWrites on writers rest, longer and longer, so that there are
// still some while a fault lasts.
const (
	mostWrites = 800
	manyWrites = 300
)

// callTimeout bounds one call: the outcome of a call that takes longer is unknown.
const callTimeout = 3 * time.Second

// Ledger is what the clients of one cluster know.
type Ledger struct {
	ports []fleet.Ports
	docs  int // of each writer

	mu       sync.Mutex // guards what follows
	clock    uint64     // counts beginnings and ends of calls
	writes   []*Write   // in the order in which they began; those checked and settled are dropped
	keys     map[string]*Write
	revision map[string]uint64 // of every key that the history ever had
	newest   uint64            // revision up to which the history was read
	current  map[string]*Write // the last settled write of each document
	reads    []read
	people   map[string]bool // admins that are there, by name
	enrolled map[string]bool // instances that are there, by id
	issued   []string        // serials of certificates that were handed out
	counts   Counts
}

// Counts are for people.
type Counts struct {
	Acknowledged int // writes
	Unknown      int // writes that got at least one answer that left it open
	Replayed     int // writes whose effect a retry learnt of
	Refused      int // writes that were given up after clear answers only
	Reads        int
	Enrolments   int
	Admins       int
	Certificates int
	Checks       int
}

// A Write is one apply of one document, over all of its tries.
type Write struct {
	Key      string
	Document string // namespace/name
	Value    int    // what the document says
	Revision uint64 // that was acknowledged; 0: none yet
	Unknown  int    // tries whose answer left it open
	Refused  bool   // given up: no try has left it open

	began, ended uint64 // ticks of the clock; ended 0: under way
}

// read is a document that was read.
type read struct {
	document     string
	value        int
	revision     uint64
	began, ended uint64
}

// New makes a ledger for a cluster whose writers have so many documents each.
func New(ports []fleet.Ports, documents int) *Ledger {
	return &Ledger{
		ports: ports, docs: documents, keys: map[string]*Write{}, revision: map[string]uint64{},
		current: map[string]*Write{}, people: map[string]bool{}, enrolled: map[string]bool{},
	}
}

// Counts are what has been done and seen so far.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Acknowledged is how many writes have been acknowledged so far.
func (l *Ledger) Acknowledged() int { return l.Counts().Acknowledged }

// tick is a moment; its caller holds mu.
func (l *Ledger) tick() uint64 {
	l.clock++
	return l.clock
}

// outcome is what an answer claims.
type outcome int

const (
	done    outcome = iota // it took effect
	nothing                // it had, and will have, no effect
	open                   // it may take effect, or have taken it
	refused                // it is not to be asked again
)

// judge says what an error of one call claims. Who was reached by no connection has
// sent nothing.
func judge(err error, p *peer.Peer) outcome {
	switch {
	case err == nil:
		return done
	case p.Addr == nil, strings.Contains(status.Convert(err).Message(), "nothing was changed"):
		return nothing
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal:
		return open
	}
	return refused
}

// Writers apply documents until ctx ends, n of them, each its own documents, one after
// another. They return once every write is settled, for which the cluster must have a
// quorum again; so that patience, not ctx, bounds the last of them.
func (l *Ledger) Writers(ctx context.Context, n int, seed uint64, patience time.Duration) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = l.write(ctx, i, rand.New(rand.NewPCG(seed, uint64(i))), patience) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *Ledger) write(ctx context.Context, writer int, rng *rand.Rand, patience time.Duration) error {
	for l.rest(ctx); ctx.Err() == nil; l.rest(ctx) {
		l.mu.Lock()
		if len(l.writes) >= mostWrites {
			l.mu.Unlock()
			continue
		}
		w := &Write{Document: fmt.Sprintf("w%d/d%d", writer, rng.IntN(l.docs)), began: l.tick()}
		w.Value = int(w.began)
		w.Key = fmt.Sprintf("%s.%d", w.Document, w.Value)
		l.writes, l.keys[w.Key] = append(l.writes, w), w
		l.mu.Unlock()
		if err := l.settle(ctx, w, rng, patience); err != nil {
			return err
		}
	}
	return nil
}

// settle asks until the outcome of a write is known.
func (l *Ledger) settle(ctx context.Context, w *Write, rng *rand.Rand, patience time.Duration) error {
	give := time.NewTimer(patience)
	defer give.Stop()
	for tries := 1; ; tries++ {
		server := rng.IntN(len(l.ports))
		resp, p, err := l.apply(w, server)
		switch judge(err, p) {
		case done:
			l.acknowledge(w, resp.Revision, tries > 1)
			if rng.IntN(16) > 0 {
				return nil
			}
			// Asked again, the answer is the same.
			again, p, err := l.apply(w, rng.IntN(len(l.ports)))
			if judge(err, p) == done && again.Revision != resp.Revision {
				return fmt.Errorf("%s: revision %d, and asked again %d", w.Key, resp.Revision, again.Revision)
			}
			return nil
		case refused:
			return fmt.Errorf("%s: refused by %d: %w", w.Key, server, err)
		case open:
			l.mu.Lock()
			w.Unknown++
			l.mu.Unlock()
		case nothing:
			if w.Unknown == 0 && rng.IntN(4) == 0 {
				l.mu.Lock()
				w.Refused, w.ended = true, l.tick()
				l.counts.Refused++
				l.mu.Unlock()
				pause(ctx, 20*time.Millisecond) // else who is refused at once fills the ledger
				return nil
			}
		}
		select {
		case <-give.C:
			return fmt.Errorf("%s: not settled in %v; last %w", w.Key, patience, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// rest lets a writer wait for 20 ms at manyWrites, and inversely to the square of how many
// writes are left: at mostWrites three writers have been at it for some three minutes.
func (l *Ledger) rest(ctx context.Context) {
	l.mu.Lock()
	writes := len(l.writes)
	l.mu.Unlock()
	if writes < manyWrites {
		return
	}
	left := float64(max(mostWrites-writes, 1)) / (mostWrites - manyWrites)
	pause(ctx, min(time.Duration(float64(20*time.Millisecond)/(left*left)), 10*time.Second))
}

// pause waits for so long, or for the end.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (l *Ledger) acknowledge(w *Write, revision uint64, again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.Revision, w.ended = revision, l.tick()
	l.current[w.Document] = w
	l.counts.Acknowledged++
	if w.Unknown > 0 {
		l.counts.Unknown++
		if again {
			l.counts.Replayed++
		}
	}
}

func (l *Ledger) apply(w *Write, server int) (*ztv1.ApplyResponse, *peer.Peer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	p := &peer.Peer{}
	resp, err := ztv1.NewAdminServiceClient(l.ports[server].Admin).Apply(ctx, &ztv1.ApplyRequest{
		Files: []*ztv1.File{{Name: "w.yaml", Content: document(w.Document, w.Value)}},
		Merge: true, IdempotencyKey: w.Key, Message: w.Key,
	}, grpc.Peer(p))
	return resp, p, err
}

// A number is held as two ports of an application, of those that no proxy reserves.
const (
	firstPort = 20000
	portCount = 40000
)

// document is a workload that holds a number.
func document(name string, value int) []byte {
	namespace, name, _ := strings.Cut(name, "/")
	return fmt.Appendf(nil, `apiVersion: ztmesh.dev/v1alpha1
kind: Workload
metadata: {namespace: %s, name: %s}
spec: {serves: [{name: v, port: 80, protocol: tcp, target: "127.0.0.1:%d"}, {name: w, port: 81, protocol: tcp, target: "127.0.0.1:%d"}]}
`, namespace, name, firstPort+value%portCount, firstPort+value/portCount)
}

// valueOf is what document was given.
func valueOf(d *ztv1.Document) (int, error) {
	serves := d.GetWorkload().GetServes()
	if len(serves) != 2 {
		return 0, fmt.Errorf("%v is not of this ledger", d)
	}
	var low, high int
	for i, to := range []*int{&low, &high} {
		if _, err := fmt.Sscanf(serves[i].GetTarget(), "127.0.0.1:%d", to); err != nil {
			return 0, err
		}
	}
	return low - firstPort + portCount*(high-firstPort), nil
}

// note remembers certificates that were handed out.
func (l *Ledger) note(chains ...[][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, chain := range chains {
		if len(chain) == 0 {
			continue
		}
		c, err := x509.ParseCertificate(chain[0])
		if err != nil {
			return err
		}
		l.issued = append(l.issued, c.SerialNumber.Text(16))
		l.counts.Certificates++
	}
	return nil
}
