package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

const minutesOfDay = 24 * 60

// Window is a recurring span of local wall-clock time, half-open. Where End is
// not after Start it crosses midnight.
type Window struct {
	Zone       string         // IANA
	Days       []time.Weekday // on which it starts; sorted; nil: all
	Start, End int            // minutes from midnight; never equal

	location *time.Location // of Zone
}

// newWindow reads a window; ok is false for what spec.Check would refuse.
func newWindow(w *ztv1.Window) (out Window, ok bool) {
	out.Zone = w.GetZone()
	var zone, start, end error
	out.location, zone = time.LoadLocation(out.Zone)
	out.Start, start = spec.ParseClock(w.GetStart())
	out.End, end = spec.ParseClock(w.GetEnd())
	// The names that spec does not know are those that time reads of the host: "",
	// "Local".
	ok = errors.Join(zone, start, end) == nil && spec.ZoneKnown(out.Zone) && out.Start != out.End && out.Start < minutesOfDay
	for _, name := range w.GetDays() {
		i := slices.Index(spec.Days(), name)
		out.Days, ok = append(out.Days, time.Weekday(i)), ok && i >= 0
	}
	slices.Sort(out.Days)
	if out.Days = slices.Compact(out.Days); len(out.Days) == len(spec.Days()) {
		out.Days = nil
	}
	return out, ok
}

// has tells whether t is in the window. The days of w are those on which it
// starts. What counts is what a clock on the wall shows: an hour that is skipped
// never comes, one that is repeated comes twice.
func (w Window) has(t time.Time) bool {
	local := t.In(w.location)
	minute, day := local.Hour()*60+local.Minute(), local.Weekday()
	if w.Start < w.End {
		return w.on(day) && w.Start <= minute && minute < w.End
	}
	return w.on(day) && w.Start <= minute || w.on((day+6)%7) && minute < w.End
}

func (w Window) on(day time.Weekday) bool { return w.Days == nil || slices.Contains(w.Days, day) }

// whole tells whether every moment is in the window.
func (w Window) whole() bool { return w.Days == nil && w.Start == 0 && w.End == minutesOfDay }

func (w Window) equal(o Window) bool { return w.compare(o) == 0 }

func (w Window) compare(o Window) int {
	return cmp.Or(cmp.Compare(w.Zone, o.Zone), cmp.Compare(w.Start, o.Start), cmp.Compare(w.End, o.End), slices.Compare(w.Days, o.Days))
}

// String is "09:00-17:00 mon,tue Europe/Berlin".
func (w Window) String() string {
	out := fmt.Sprintf("%02d:%02d-%02d:%02d ", w.Start/60, w.Start%60, w.End/60, w.End%60)
	if w.Days != nil {
		out += strings.Join(texts(w.Days, func(d time.Weekday) string { return spec.Days()[d] }), ",") + " "
	}
	return out + w.Zone
}

// activeAt tells whether the conditions of time of c hold at t. At the zero time,
// which is none, none of them does.
func (c Conditions) activeAt(t time.Time) bool {
	if t.IsZero() {
		return c.Until.IsZero() && c.Windows == nil
	}
	if !c.Until.IsZero() && !t.Before(c.Until) {
		return false
	}
	return c.Windows == nil || slices.ContainsFunc(c.Windows, func(w Window) bool { return w.has(t) })
}

// horizon is how far nextChange looks. A window opens every week, unless a change
// of the zone's offset skips it; no zone does that two weeks in a row.
const horizon = 15 * 24 * time.Hour

// nextChange is the first moment after now at which activeAt differs from what it
// is at now; ok is false when there is none.
func (c Conditions) nextChange(now time.Time) (at time.Time, ok bool) {
	active := c.activeAt(now)
	end := now.Add(horizon)
	if !c.Until.IsZero() && c.Until.Before(end) {
		end = c.Until
	}
	if c.Windows != nil && !slices.ContainsFunc(c.Windows, Window.whole) {
		for t := c.nextEdge(now); t.Before(end); t = c.nextEdge(t) {
			if c.activeAt(t) != active {
				return t, true
			}
		}
	}
	if active && !c.Until.IsZero() {
		return c.Until, true
	}
	return time.Time{}, false
}

// nextEdge is the first moment after t at which some window may open or close.
func (c Conditions) nextEdge(t time.Time) time.Time {
	var first time.Time
	for _, w := range c.Windows {
		if e := w.nextEdge(t); first.IsZero() || e.Before(first) {
			first = e
		}
	}
	return first
}

// nextEdge is the first moment after t at which the clock on the wall shows the
// start, the end or midnight, or is put forward or back.
func (w Window) nextEdge(t time.Time) time.Time {
	local := t.In(w.location)
	into := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute +
		time.Duration(local.Second())*time.Second + time.Duration(local.Nanosecond())
	next := 24 * time.Hour
	for _, minute := range []int{w.Start, w.End} {
		if edge := time.Duration(minute) * time.Minute; edge > into {
			next = min(next, edge)
		}
	}
	edge := t.Add(next - into)
	if _, change := local.ZoneBounds(); !change.IsZero() && change.Before(edge) {
		return change
	}
	return edge
}
