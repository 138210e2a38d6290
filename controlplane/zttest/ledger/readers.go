package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// Readers read documents of n writers, by default reads, until ctx ends: one reader for
// each server. An answer that is no read, such as that there is no quorum, is nothing
// to remember.
func (l *Ledger) Readers(ctx context.Context, n int, seed uint64) error {
	errs := make([]error, len(l.ports))
	var wg sync.WaitGroup
	for server := range l.ports {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1000+uint64(server)))
			for ctx.Err() == nil && errs[server] == nil {
				errs[server] = l.Read(fmt.Sprintf("w%d/d%d", rng.IntN(n), rng.IntN(l.docs)), server)
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Read reads a document at a server, and remembers what it was told. An error that is
// an answer of a cluster without a quorum is none.
func (l *Ledger) Read(name string, server int) error {
	_, err := l.TryRead(name, server)
	return err
}

// TryRead is Read; it tells whether there was an answer.
func (l *Ledger) TryRead(name string, server int) (answered bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	namespace, short, _ := strings.Cut(name, "/")
	l.mu.Lock()
	r := read{document: name, began: l.tick()}
	l.mu.Unlock()
	resp, err := ztv1.NewAdminServiceClient(l.ports[server].Admin).GetDocument(ctx, &ztv1.GetDocumentRequest{
		Kind: "Workload", Namespace: namespace, Name: short,
	})
	switch status.Code(err) {
	case codes.OK:
		if r.value, err = valueOf(resp.GetDocument().GetDocument()); err != nil {
			return true, err
		}
		r.revision = resp.GetDocument().GetRevision()
	case codes.NotFound:
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal:
		return false, nil
	default:
		return false, fmt.Errorf("read %s at %d: %w", name, server, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.ended = l.tick()
	l.reads = append(l.reads, r)
	l.counts.Reads++
	return true, nil
}
