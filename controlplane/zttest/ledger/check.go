package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ztmesh/ztmesh/identity"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// said is what the cluster says.
type said struct {
	history   []*ztv1.Revision // since the last check, newest first
	documents map[string]*ztv1.StoredDocument
	admins    map[string]bool
	instances map[string]bool
}

// Check holds the cluster to what was told. Nobody may write meanwhile, and a quorum
// must be up, or come up: it asks until ctx ends. Every fault is told, not the first
// alone.
func (l *Ledger) Check(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Checks++
	var now said
	for at := l.clock; ; at++ {
		var err error
		if now, err = l.ask(ctx, ztv1.NewAdminServiceClient(l.ports[at%uint64(len(l.ports))].Admin)); err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond)
	}
	floor := l.newest // every write since the last check began after it
	errs := []error{
		l.checkHistory(now.history),
		l.checkWrites(floor),
		l.checkReads(),
		l.checkDocuments(now.documents),
		differ("admin", l.people, now.admins),
		differ("instance", l.enrolled, now.instances),
	}
	// What is settled and was found right is settled for good: only the history can
	// show it again.
	l.writes = slices.DeleteFunc(l.writes, func(w *Write) bool { return w.ended > 0 })
	l.reads = nil
	return errors.Join(errs...)
}

// ask reads all of it.
func (l *Ledger) ask(ctx context.Context, admin ztv1.AdminServiceClient) (now said, err error) {
	for before := uint64(0); ; {
		resp, err := admin.ListRevisions(ctx, &ztv1.ListRevisionsRequest{PageSize: 1000, Before: before})
		if err != nil {
			return now, err
		}
		for _, r := range resp.Revisions {
			if before = r.Revision; before > l.newest {
				now.history = append(now.history, r)
			}
		}
		if len(resp.Revisions) == 0 || before <= l.newest {
			break
		}
	}
	now.documents = map[string]*ztv1.StoredDocument{}
	for token := ""; ; {
		resp, err := admin.ListDocuments(ctx, &ztv1.ListDocumentsRequest{Kind: "Workload", PageToken: token})
		if err != nil {
			return now, err
		}
		for _, d := range resp.Documents {
			m := d.GetDocument().GetMetadata()
			now.documents[m.GetNamespace()+"/"+m.GetName()] = d
		}
		if token = resp.NextPageToken; token == "" {
			break
		}
	}
	admins, err := admin.ListAdmins(ctx, &ztv1.ListAdminsRequest{})
	if err != nil {
		return now, err
	}
	now.admins, now.instances = map[string]bool{}, map[string]bool{}
	for _, a := range admins.Admins {
		now.admins[a.Name] = true
	}
	proxies, err := admin.GetStatus(ctx, &ztv1.GetStatusRequest{})
	for _, p := range proxies.GetProxies() {
		now.instances[p.Instance] = true
	}
	return now, err
}

// checkHistory takes the revisions since the last check: each key has one, and each is
// what its writer was told.
func (l *Ledger) checkHistory(history []*ztv1.Revision) error {
	var errs []error
	for _, r := range history {
		l.newest = max(l.newest, r.Revision)
		if r.Message == "" {
			continue // not of this ledger
		}
		w, known := l.keys[r.Message]
		had, twice := l.revision[r.Message]
		l.revision[r.Message] = r.Revision
		switch {
		case !known:
			errs = append(errs, fmt.Errorf("revision %d is of %q, which nobody wrote", r.Revision, r.Message))
		case twice:
			errs = append(errs, fmt.Errorf("%s is twice in the history, at %d and at %d", r.Message, had, r.Revision))
		case w.Refused:
			errs = append(errs, fmt.Errorf("%s is at %d, and every answer to it said that nothing was changed", r.Message, r.Revision))
		case w.Revision != 0 && w.Revision != r.Revision:
			errs = append(errs, fmt.Errorf("%s was acknowledged at %d and is at %d", r.Message, w.Revision, r.Revision))
		}
	}
	return errors.Join(errs...)
}

// checkWrites: each acknowledged write is in the history, and in the order of time.
func (l *Ledger) checkWrites(floor uint64) error {
	var errs []error
	var settled []*Write
	for _, w := range l.writes {
		if w.Revision == 0 {
			continue
		}
		settled = append(settled, w)
		if w.Revision <= floor {
			errs = append(errs, fmt.Errorf("%s got revision %d, and began when %d was there", w.Key, w.Revision, floor))
		}
		if _, ok := l.revision[w.Key]; !ok {
			errs = append(errs, fmt.Errorf("%s was acknowledged at %d and is lost", w.Key, w.Revision))
		}
	}
	byEnd := slices.SortedFunc(slices.Values(settled), func(a, b *Write) int { return cmp.Compare(a.ended, b.ended) })
	slices.SortFunc(settled, func(a, b *Write) int { return cmp.Compare(a.began, b.began) })
	var highest *Write
	for _, w := range settled {
		for len(byEnd) > 0 && byEnd[0].ended < w.began {
			if highest == nil || byEnd[0].Revision > highest.Revision {
				highest = byEnd[0]
			}
			byEnd = byEnd[1:]
		}
		if highest != nil && highest.Revision >= w.Revision {
			errs = append(errs, fmt.Errorf("%s got revision %d, and began after %s was acknowledged at %d", w.Key, w.Revision, highest.Key, highest.Revision))
		}
	}
	return errors.Join(errs...)
}

// checkReads: of each document, a read sees what was acknowledged or seen before it
// began, or something later; and nothing that began after it had ended.
func (l *Ledger) checkReads() error {
	var errs []error
	type moment struct {
		value int
		ended uint64
	}
	known := map[string][]moment{}
	for _, w := range l.writes {
		if w.Revision != 0 {
			known[w.Document] = append(known[w.Document], moment{w.Value, w.ended})
		}
	}
	for name, w := range l.current { // also of before the last check
		known[name] = append(known[name], moment{w.Value, w.ended})
	}
	for _, r := range l.reads {
		known[r.document] = append(known[r.document], moment{r.value, r.ended})
	}
	reads := map[string][]read{}
	for _, r := range l.reads {
		reads[r.document] = append(reads[r.document], r)
		// Values are ticks of the clock, as of when the write began.
		if r.value != 0 && uint64(r.value) > r.ended {
			errs = append(errs, fmt.Errorf("%s was read as %d, which was written after the read", r.document, r.value))
		}
	}
	for document, all := range reads {
		moments := known[document]
		slices.SortFunc(moments, func(a, b moment) int { return cmp.Compare(a.ended, b.ended) })
		slices.SortFunc(all, func(a, b read) int { return cmp.Compare(a.began, b.began) })
		newest := 0
		for _, r := range all {
			for len(moments) > 0 && moments[0].ended < r.began {
				newest = max(newest, moments[0].value)
				moments = moments[1:]
			}
			if r.value < newest {
				errs = append(errs, fmt.Errorf("stale read: %s was %d, and %d was acknowledged or read before that read began", document, r.value, newest))
			}
		}
	}
	return errors.Join(errs...)
}

// checkDocuments: every document is as its last settled write left it.
func (l *Ledger) checkDocuments(there map[string]*ztv1.StoredDocument) error {
	var errs []error
	for name, w := range l.current {
		d := there[name]
		if d == nil {
			errs = append(errs, fmt.Errorf("%s is not there; %s was acknowledged at %d", name, w.Key, w.Revision))
			continue
		}
		if value, err := valueOf(d.Document); err != nil || value != w.Value || d.Revision != w.Revision {
			errs = append(errs, fmt.Errorf("%s is %d at %d (%v); %s was acknowledged at %d", name, value, d.Revision, err, w.Key, w.Revision))
		}
	}
	return errors.Join(errs...)
}

func differ(what string, want, there map[string]bool) error {
	var errs []error
	for name, is := range want {
		if there[name] != is {
			errs = append(errs, fmt.Errorf("%s %s: there %v, and %v was acknowledged", what, name, there[name], is))
		}
	}
	return errors.Join(errs...)
}

// CheckJournals wants every journal to be whole, but for an unfinished last line where a
// server does not run, and every certificate that was handed out to stand in one.
func (l *Ledger) CheckJournals(files ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if _, err := identity.VerifyJournal(bytes.NewReader(b), identity.Head{}); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		for line := range bytes.Lines(b) {
			var i identity.Issuance
			if err := json.Unmarshal(line, &i); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			known[i.Serial] = true
		}
	}
	var errs []error
	for _, serial := range l.issued {
		if !known[serial] {
			errs = append(errs, fmt.Errorf("certificate %s was handed out and stands in no journal", serial))
		}
	}
	l.issued = nil
	return errors.Join(errs...)
}

// Save writes what is not settled or not checked yet to a file, for who looks into a
// failure.
func (l *Ledger) Save(file string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	for _, w := range l.writes {
		fmt.Fprintf(&b, "write %+v\n", *w)
	}
	for _, r := range l.reads {
		fmt.Fprintf(&b, "read %+v\n", r)
	}
	for name, w := range l.current {
		fmt.Fprintf(&b, "current %s %+v\n", name, *w)
	}
	return os.WriteFile(file, b.Bytes(), 0o600)
}
