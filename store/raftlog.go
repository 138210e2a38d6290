package store

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quiet is how long a message of raft's that has just been logged is held back.
const quiet = 10 * time.Second

// raftLogger gives what raft and its log store say to slog. Their messages are
// constant and their arguments are pairs, as slog wants them. An operator can act
// on little of it: what they call info becomes debug, and a message that comes
// again and again, as it does while a peer is down, is logged every ten seconds
// with how often it was held back.
type raftLogger struct {
	to     *slog.Logger
	now    func() time.Time
	name   string
	with   []any
	recent *recent // shared by all that With and Named make
}

type recent struct {
	mu   sync.Mutex // guards seen
	seen map[string]*seen
}

type seen struct {
	at   time.Time
	held int
}

var _ hclog.Logger = (*raftLogger)(nil)

func newRaftLogger(to *slog.Logger, now func() time.Time) *raftLogger {
	return &raftLogger{to: to, now: now, name: "raft", recent: &recent{seen: make(map[string]*seen)}}
}

// Log is part of hclog.Logger, as is everything below.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Warn:
		to = slog.LevelWarn
	case hclog.Error:
		to = slog.LevelError
	}
	ctx := context.Background()
	if !l.to.Enabled(ctx, to) {
		return
	}
	held, ok := l.recent.admit(msg, l.now())
	if !ok && to > slog.LevelDebug {
		return
	}
	if held > 0 {
		args = append(slices.Clone(args), "held_back", held)
	}
	l.to.Log(ctx, to, msg, append(l.with[:len(l.with):len(l.with)], plain(args)...)...)
}

// plain returns arguments as slog prints them.
func plain(args []any) []any {
	args = slices.Clone(args)
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	return args
}

// admit tells whether a message may be logged, and how many of it were not since
// the last that was.
func (r *recent) admit(msg string, now time.Time) (held int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen[msg]
	if s == nil {
		r.seen[msg] = &seen{at: now}
		return 0, true
	}
	if now.Sub(s.at) < quiet {
		s.held++
		return 0, false
	}
	held, s.held, s.at = s.held, 0, now
	return held, true
}

func (l *raftLogger) Trace(string, ...any)           {}
func (l *raftLogger) Debug(msg string, args ...any)  { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)   { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)   { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any)  { l.Log(hclog.Error, msg, args...) }
func (l *raftLogger) IsTrace() bool                  { return false }
func (l *raftLogger) IsDebug() bool                  { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsInfo() bool                   { return l.enabled(slog.LevelDebug) }
func (l *raftLogger) IsWarn() bool                   { return l.enabled(slog.LevelWarn) }
func (l *raftLogger) IsError() bool                  { return l.enabled(slog.LevelError) }
func (l *raftLogger) enabled(at slog.Level) bool     { return l.to.Enabled(context.Background(), at) }
func (l *raftLogger) ImpliedArgs() []any             { return l.with }
func (l *raftLogger) Name() string                   { return l.name }
func (l *raftLogger) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }
func (l *raftLogger) SetLevel(hclog.Level)           {}
func (l *raftLogger) GetLevel() hclog.Level          { return hclog.Debug }
func (l *raftLogger) With(args ...any) hclog.Logger {
	c := *l
	c.with = append(l.with[:len(l.with):len(l.with)], args...)
	return &c
}

func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	c := *l
	c.name = name
	return &c
}

func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelDebug)
}

func (l *raftLogger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
