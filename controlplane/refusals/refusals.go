// Package refusals keeps on record, on this server's disk only, who was turned away:
// what strangers send must cost neither quorum nor, in a flood, more than a bounded part
// of disk, memory and time.
//
// It owns counting: refusals that are alike become one line of a journal, with how often
// and from when to when. It refuses to know what a call is, or why it was refused.
//
// Invariants:
//   - Add never waits for the disk, and never fails. What cannot be written is counted,
//     and the next line that can be says how many there were.
//   - However many different refusals come, a second adds some 5 lines, and the
//     directory holds at most Config.MaxBytes and a segment. What there is no line for is
//     counted by its method and code.
//   - What is on the disk is a hash chain (package journal). What a crash loses are the
//     refusals since the last Flush.
//
// All methods may be called from several goroutines.
package refusals

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/ztmesh/ztmesh/journal"
)

// Bounds of what one Flush writes: a line for each of so many different refusals, of
// which new ones come at so many a second in the long run, and one for each of so many
// methods and codes of those for which there was no line.
const (
	maxKinds       = 256
	kindsPerSecond = 4
	maxOthers      = 16
	maxText        = 256 // bytes, of each text of a line
)

// Others stands in a line for callers, or methods, that are not named one by one.
const Others = "(others)"

// Config is how a Log is kept.
type Config struct {
	Path string // of the newest segment; made if absent
	// MaxBytes is how much is kept: above it, the oldest lines go. Default 64 MiB.
	MaxBytes int64
	// Every is how often what was counted is written. Default 10 s.
	Every   time.Duration
	Now     func() time.Time
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Refusal is one call that was turned away.
type Refusal struct {
	Who    string // a SPIFFE ID, or nobody
	What   string // the method, or the port
	From   string // an IP address
	Code   string // of gRPC, as a word
	Reason string // what the caller was told; of alike refusals the first counts
}

// Record is a line: so many refusals that were alike.
type Record struct {
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Count  uint64    `json:"count"`
	Who    string    `json:"who"`
	What   string    `json:"what"`
	From   string    `json:"from"`
	Code   string    `json:"code"`
	Reason string    `json:"reason,omitempty"`
	// Lost are refusals of before that no line could be written for.
	Lost uint64 `json:"lost,omitempty"`
}

// kind is what makes refusals alike.
type kind struct{ who, what, from, code string }

// Log is the refusals of one server. Open it, Run it, Close it.
type Log struct {
	cfg     Config
	journal *journal.Journal
	seen    prometheus.Counter
	lostAll prometheus.Counter

	mu     sync.Mutex // guards what follows; never held while writing
	kinds  map[kind]*Record
	others map[kind]*Record
	rate   *rate.Limiter // of new kinds

	writing sync.Mutex // held by who flushes
	lost    uint64     // guarded by writing: refusals that could not be written
	warned  bool       // guarded by writing
}

// Open opens or makes the log at cfg.Path, and verifies what is there. What is not as it
// was written is kept beside it, as evidence, and a new log begins with a line that says
// so: a server is of more use with it than without.
func Open(cfg Config) (*Log, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 64 << 20
	}
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Second
	}
	files := journal.Config{Path: cfg.Path, SegmentBytes: min(4<<20, max(cfg.MaxBytes/4, 1<<10)), Check: Check}
	j, err := journal.Open(files)
	var damage *journal.LineError
	if errors.As(err, &damage) {
		aside := cfg.Path + cfg.Now().UTC().Format(".damaged-20060102T150405.000000000Z")
		cfg.Logger.Error("the record of refused calls was changed; find out by whom", "error", err, "evidence", aside)
		if err = journal.SetAside(cfg.Path, aside); err == nil {
			j, err = journal.Open(files)
		}
	}
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, journal: j, kinds: map[kind]*Record{}, others: map[kind]*Record{},
		rate: rate.NewLimiter(kindsPerSecond, maxKinds),
		seen: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_refusals_seen_total", Help: "Calls and connections that were refused and counted for the record.",
		}),
		lostAll: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zt_refusals_lost_total", Help: "Of them, those that could not be put on record: the disk is full, or failing.",
		}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(l.seen, l.lostAll)
	}
	if damage != nil {
		l.Add(Refusal{Who: "nobody", What: "refusals.log", Code: "DataLoss", Reason: damage.Error()})
	}
	return l, nil
}

// Add counts a refusal.
func (l *Log) Add(r Refusal) {
	now := l.cfg.Now().UTC()
	l.seen.Inc()
	k := kind{clip(r.Who), clip(r.What), clip(r.From), clip(r.Code)}
	l.mu.Lock()
	defer l.mu.Unlock()
	into := l.kinds
	if _, known := into[k]; !known && (len(into) >= maxKinds || !l.rate.AllowN(now, 1)) {
		into = l.others
		k.who, k.from = Others, Others
		if _, known := into[k]; !known && len(into) >= maxOthers-1 {
			k.what, k.code = Others, Others
		}
	}
	c := into[k]
	if c == nil {
		c = &Record{First: now, Who: k.who, What: k.what, From: k.from, Code: k.code}
		if k.who != Others {
			c.Reason = clip(r.Reason)
		}
		into[k] = c
	}
	c.Count++
	c.Last = now
}

// clip bounds a text, and makes it one that JSON gives back as it is.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "?")
}

// Run flushes from time to time, until ctx ends.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(l.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			l.Flush()
		}
	}
}

// Flush writes what was counted since the last one, and syncs it. It has no error to
// return: nobody could do anything about a refusal any more. The server's own log and
// zt_refusals_lost_total say what could not be written.
func (l *Log) Flush() {
	l.writing.Lock()
	defer l.writing.Unlock()
	records := l.take()
	if len(records) == 0 {
		return
	}
	err := l.journal.Recover() // what went wrong the last time may be over
	for _, r := range records {
		if err == nil {
			err = l.write(r)
		}
		if err != nil {
			l.lost += r.Count
			l.lostAll.Add(float64(r.Count))
		}
	}
	if err == nil {
		_, err = l.journal.Durable()
	}
	if err == nil {
		err = l.journal.LetGo(l.journal.Spare(l.cfg.MaxBytes, 0, l.cfg.Now()))
	}
	if err != nil && !l.warned {
		l.cfg.Logger.Warn("refused calls not put on record; they stay refused", "error", err)
	}
	l.warned = err != nil
}

func (l *Log) write(r *Record) error {
	r.Lost = l.lost
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := l.journal.Append(b); err != nil {
		return err
	}
	l.lost = 0
	return nil
}

// take returns what was counted, in the order in which it began, and starts anew.
func (l *Log) take() (out []*Record) {
	l.mu.Lock()
	for _, m := range []map[kind]*Record{l.kinds, l.others} {
		for _, r := range m {
			out = append(out, r)
		}
	}
	l.kinds, l.others = map[kind]*Record{}, map[kind]*Record{}
	l.mu.Unlock()
	slices.SortFunc(out, func(a, b *Record) int {
		if c := a.First.Compare(b.First); c != 0 {
			return c
		}
		return strings.Compare(a.Who+a.What+a.From+a.Code, b.Who+b.What+b.From+b.Code)
	})
	return out
}

// Each calls fn with every line that is kept, oldest first, and before that begin with
// the state of the chain that they go on from.
func (l *Log) Each(begin func(journal.Head) error, fn func(line []byte) error) error {
	return l.journal.Each(begin, fn)
}

// Close writes what is left.
func (l *Log) Close() error {
	l.Flush()
	return l.journal.Close()
}

// Check wants the body of a line that a Log has written.
func Check(body []byte) error {
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return errors.New("not a record")
	}
	if again, err := json.Marshal(r); err != nil || !bytes.Equal(again, body) {
		return errors.New("not as it was written")
	}
	return nil
}

// Read is the Record of a line.
func Read(line []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(journal.Body(line), &r); err != nil {
		return Record{}, fmt.Errorf("not a record of refusals: %w", err)
	}
	return r, nil
}
