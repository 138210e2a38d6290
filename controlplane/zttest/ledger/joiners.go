package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/controlplane/zttest/fleet"
	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Joiners make tokens and use them up, renew what they got, give it up, and make and
// remove admins, n of them, until ctx ends; each settles what it has begun. workload is
// one that exists and that nobody changes.
func (l *Ledger) Joiners(ctx context.Context, n int, workload string, seed uint64, patience time.Duration) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			j := joiner{Ledger: l, workload: workload, name: fmt.Sprintf("a%d", i), rng: rand.New(rand.NewPCG(seed, 2000+uint64(i))), patience: patience}
			for ctx.Err() == nil && errs[i] == nil {
				if errs[i] = j.admin(); errs[i] == nil {
					errs[i] = j.instance(3)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// joiner is one client that enrols.
type joiner struct {
	*Ledger
	workload, name string
	rng            *rand.Rand
	patience       time.Duration
}

// until asks servers, at random, until call has an answer that is clear: no error, or
// one that says that it is not to be asked again.
func (j *joiner) until(what string, call func(ctx context.Context, at fleet.Ports, opt grpc.CallOption) error) error {
	return until(what, j.ports, j.rng.IntN, j.patience, call)
}

func until(what string, ports []fleet.Ports, choose func(int) int, patience time.Duration, call func(context.Context, fleet.Ports, grpc.CallOption) error) error {
	give := time.NewTimer(patience)
	defer give.Stop()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		p := &peer.Peer{}
		err := call(ctx, ports[choose(len(ports))], grpc.Peer(p))
		cancel()
		if o := judge(err, p); o == done || o == refused {
			return err
		}
		select {
		case <-give.C:
			return fmt.Errorf("%s: not settled in %v; last %w", what, patience, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// admin makes an admin, and takes its rights away again every other time.
func (j *joiner) admin() error {
	_, csr, err := request()
	if err != nil {
		return err
	}
	var chain [][]byte
	err = j.until("add admin "+j.name, func(ctx context.Context, at fleet.Ports, opt grpc.CallOption) error {
		resp, err := ztv1.NewAdminServiceClient(at.Admin).AddAdmin(ctx, &ztv1.AddAdminRequest{Name: j.name, Role: "viewer", Csr: csr}, opt)
		chain = resp.GetChain()
		return err
	})
	if err != nil {
		return err
	}
	if err := j.note(chain); err != nil {
		return err
	}
	j.person(j.name, true)
	if j.rng.IntN(2) == 0 {
		return nil
	}
	err = j.until("remove admin "+j.name, func(ctx context.Context, at fleet.Ports, opt grpc.CallOption) error {
		_, err := ztv1.NewAdminServiceClient(at.Admin).RemoveAdmin(ctx, &ztv1.RemoveAdminRequest{Name: j.name}, opt)
		return err
	})
	if status.Code(err) == codes.NotFound { // an earlier try has done it
		err = nil
	}
	if err == nil {
		j.person(j.name, false)
	}
	return err
}

func (l *Ledger) person(name string, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.people[name] = there
	l.counts.Admins++
}

// instance makes a token, has it used by several at once, each to the end, and sees
// that one of them is enrolled; that one renews, and gives up every other time.
func (j *joiner) instance(racers int) error {
	token := ""
	err := j.until("make a token", func(ctx context.Context, at fleet.Ports, opt grpc.CallOption) error {
		resp, err := ztv1.NewAdminServiceClient(at.Admin).CreateToken(ctx, &ztv1.CreateTokenRequest{Workload: j.workload}, opt)
		token = resp.GetToken()
		return err
	})
	if err != nil {
		return err
	}
	all := make([]*racer, racers)
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range all {
		seed := j.rng.Uint64()
		wg.Go(func() {
			all[i], errs[i] = j.race(token, rand.New(rand.NewPCG(seed, 0)))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var won *racer
	for _, r := range all {
		switch {
		case r.pair == nil:
			j.instanceIs(r.id, false)
		case won != nil:
			return fmt.Errorf("one token made two instances, %s and %s", won.id, r.id)
		default:
			won = r
			j.instanceIs(r.id, true)
		}
	}
	if won == nil {
		return errors.New("a token made no instance, and refuses all who have asked for one")
	}
	return j.live(won)
}

func (l *Ledger) instanceIs(id string, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enrolled[id] = there
	if there {
		l.counts.Enrolments++
	}
}

// racer is one that tries to enrol.
type racer struct {
	id   string
	pair *identity.KeyPair // nil: refused
}

func (j *joiner) race(token string, rng *rand.Rand) (*racer, error) {
	r := &racer{id: identity.NewID()}
	key, csr, err := request()
	if err != nil {
		return nil, err
	}
	var issued *ztv1.Issued
	err = until("enrol "+r.id, j.ports, rng.IntN, j.patience, func(ctx context.Context, at fleet.Ports, opt grpc.CallOption) error {
		resp, err := ztv1.NewNodeServiceClient(at.Node).Enrol(ctx, &ztv1.EnrolRequest{
			Token: token, Workload: j.workload, Instance: r.id, NodeCsr: csr, SvidCsr: csr,
		}, opt)
		issued = resp.GetCertificates()
		return err
	})
	if status.Code(err) == codes.PermissionDenied {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := j.note(issued.NodeChain, issued.SvidChain); err != nil {
		return nil, err
	}
	chain, err := identity.ParseDER(issued.NodeChain)
	if err != nil {
		return nil, err
	}
	r.pair, err = identity.NewKeyPair(key, chain)
	return r, err
}

// live renews as an instance, and gives it up every other time.
func (j *joiner) live(r *racer) error {
	at := j.ports[j.rng.IntN(len(j.ports))]
	conn, err := at.AsNode(r.pair)
	if err != nil {
		return err
	}
	defer conn.Close()
	node := ztv1.NewNodeServiceClient(conn)
	_, csr, err := request()
	if err != nil {
		return err
	}
	var issued *ztv1.Issued
	err = j.until("renew "+r.id, func(ctx context.Context, _ fleet.Ports, opt grpc.CallOption) error {
		resp, err := node.Renew(ctx, &ztv1.RenewRequest{SvidCsr: csr}, opt)
		issued = resp.GetCertificates()
		if status.Code(err) == codes.PermissionDenied {
			// This server has not heard of the instance yet: it renews by what it knows.
			return status.Error(codes.Unavailable, err.Error())
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := j.note(issued.SvidChain); err != nil {
		return err
	}
	if j.rng.IntN(2) == 0 {
		return nil
	}
	err = j.until("deregister "+r.id, func(ctx context.Context, _ fleet.Ports, opt grpc.CallOption) error {
		_, err := node.Deregister(ctx, &ztv1.DeregisterRequest{}, opt)
		return err
	})
	if status.Code(err) == codes.NotFound { // an earlier try has done it
		err = nil
	}
	if err == nil {
		j.instanceIs(r.id, false)
	}
	return err
}

// request makes a key and asks for a certificate for it.
func request() (identity.PrivateKey, []byte, error) {
	key, err := identity.NewKey()
	if err != nil {
		return key, nil, err
	}
	csr, err := identity.NewCSR(key)
	return key, csr, err
}
