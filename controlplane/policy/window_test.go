package policy

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/ztmesh/ztmesh/controlplane/spec"
	ztv1 "github.com/ztmesh/ztmesh/proto/zt/v1alpha1"
)

// changes are moments around which the clocks of a zone are changed.
var changes = map[string][]string{
	"UTC":                 {"2026-03-01T00:00:00Z"},
	"Europe/Berlin":       {"2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"},
	"America/New_York":    {"2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"},
	"America/Sao_Paulo":   {"2018-02-18T02:00:00Z", "2018-11-04T03:00:00Z"}, // at midnight
	"Australia/Lord_Howe": {"2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z"}, // by half an hour
	"Asia/Kathmandu":      {"2026-01-01T00:00:00Z"},                         // +05:45
	"Pacific/Apia":        {"2011-12-30T10:00:00Z"},                         // a whole day is skipped
	"Africa/Casablanca":   {"2026-02-15T02:00:00Z", "2026-03-22T02:00:00Z"},
}

func drawWindow(t *rapid.T, zone string) *ztv1.Window {
	clock := func(name string, most int) int {
		return rapid.SampledFrom([]int{0, 1, 30, 59, 60, 90, 119, 120, 150, 179, 180, 181, 540, 1020, 1380, 1439, 1440}).
			Filter(func(m int) bool { return m <= most }).Draw(t, name)
	}
	text := func(m int) string { return fmt.Sprintf("%02d:%02d", m/60, m%60) }
	start := clock("start", 1439)
	end := clock("end", 1440)
	if end == start {
		end = start + 1
	}
	w := &ztv1.Window{Zone: zone, Start: text(start), End: text(end)}
	if rapid.Bool().Draw(t, "some days") {
		w.Days = rapid.SliceOfNDistinct(rapid.SampledFrom(spec.Days()), 1, 7, rapid.ID).Draw(t, "days")
	}
	return w
}

// wall is what a clock on the wall shows, and the calendar beside it.
type wall struct {
	date   time.Time // midnight, as if in UTC
	minute int
}

// shown is every reading of the clock that a window has between two dates, made
// by the calendar alone.
func shown(w *ztv1.Window, from, to time.Time) map[wall]bool {
	start, _ := spec.ParseClock(w.Start)
	end, _ := spec.ParseClock(w.End)
	if end <= start {
		end += minutesOfDay
	}
	out := map[wall]bool{}
	for date := from; date.Before(to); date = date.AddDate(0, 0, 1) {
		on := len(w.Days) == 0
		for _, d := range w.Days {
			on = on || spec.Days()[date.Weekday()] == d
		}
		for m := start; on && m < end; m++ {
			out[wall{date.AddDate(0, 0, m/minutesOfDay), m % minutesOfDay}] = true
		}
	}
	return out
}

// TestWindowsByTheMinute holds windows to a calendar on the wall, minute by
// minute over the changes of the clocks of several zones, and nextChange to the
// first minute at which that differs.
func TestWindowsByTheMinute(t *testing.T) {
	flips, steady := 0, 0
	var zones []string
	for zone := range changes {
		zones = append(zones, zone)
	}
	zones = set(zones)
	rapid.Check(t, func(t *rapid.T) {
		when := &ztv1.When{}
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		around, err := time.Parse(time.RFC3339, rapid.SampledFrom(changes[zone]).Draw(t, "around"))
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 2).Draw(t, "windows") {
			when.Windows = append(when.Windows, drawWindow(t, zone))
			zone = rapid.SampledFrom(zones).Draw(t, "other zone")
		}
		first := around.Add(-48 * time.Hour)
		var until *timestamppb.Timestamp
		if rapid.IntRange(0, 3).Draw(t, "ends") == 0 {
			until = timestamppb.New(first.Add(time.Duration(rapid.IntRange(1, 6000).Draw(t, "until")) * time.Minute))
		}
		c, ok := newConditions(nil, when, until)
		if !ok {
			t.Fatalf("%v is not understood", when)
		}
		const minutes = 12 * minutesOfDay
		active := make([]bool, minutes)
		midnight := first.Truncate(24 * time.Hour)
		for _, w := range when.Windows {
			location, err := time.LoadLocation(w.Zone)
			if err != nil {
				t.Fatal(err)
			}
			readings := shown(w, midnight.AddDate(0, 0, -3), midnight.AddDate(0, 0, 16))
			for i := range active {
				local := first.Add(time.Duration(i) * time.Minute).In(location)
				date := time.Date(local.Year(), local.Month(), local.Day(), 0, 0, 0, 0, time.UTC)
				active[i] = active[i] || readings[wall{date, local.Hour()*60 + local.Minute()}]
			}
		}
		for i := range active {
			at := first.Add(time.Duration(i) * time.Minute)
			active[i] = active[i] && (until == nil || at.Before(until.AsTime()))
			for _, late := range []time.Duration{0, time.Minute - 1} {
				if until == nil && c.activeAt(at.Add(late)) != active[i] {
					t.Fatalf("%v at %s: got %v", when, at.Add(late), !active[i])
				}
			}
		}
		for range 8 {
			i := rapid.IntRange(0, minutes-1).Draw(t, "now")
			now := first.Add(time.Duration(i)*time.Minute + time.Duration(rapid.IntRange(0, 59).Draw(t, "seconds"))*time.Second)
			if until != nil && !now.Before(until.AsTime()) {
				continue
			}
			j := i
			for j < minutes && active[j] == active[i] {
				j++
			}
			got, ok := c.nextChange(now)
			switch want := first.Add(time.Duration(j) * time.Minute); {
			case j < minutes && (!ok || !got.Equal(want)):
				t.Fatalf("%v until %v after %s: got %s, %v, want %s", when, until, now, got, ok, want)
			case j == minutes && ok && got.Before(want):
				t.Fatalf("%v until %v after %s: got %s", when, until, now, got)
			case j < minutes:
				flips++
			default:
				steady++
			}
		}
	})
	if flips == 0 || steady == 0 {
		t.Errorf("%d flips, %d without", flips, steady)
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		what, zone, start, end, days, at string
		want                             bool
	}{
		{"its start is in it", "UTC", "09:00", "17:00", "", "2026-06-01T09:00:00Z", true},
		{"its end is not", "UTC", "09:00", "17:00", "", "2026-06-01T17:00:00Z", false},
		{"until the last moment", "UTC", "09:00", "17:00", "", "2026-06-01T16:59:59.999Z", true},
		{"the end of the day", "UTC", "23:00", "24:00", "", "2026-06-01T23:59:59Z", true},
		{"is not the next", "UTC", "23:00", "24:00", "", "2026-06-02T00:00:00Z", false},
		{"midnight is crossed", "UTC", "22:00", "06:00", "mon", "2026-06-02T05:59:00Z", true},
		{"by the day on which it starts", "UTC", "22:00", "06:00", "tue", "2026-06-02T05:59:00Z", false},
		{"00:00 is 24:00 there", "UTC", "22:00", "00:00", "mon", "2026-06-01T23:59:00Z", true},
		{"and no more", "UTC", "22:00", "00:00", "mon", "2026-06-02T00:00:00Z", false},
		{"by the clock of the zone", "Asia/Tokyo", "09:00", "17:00", "", "2026-06-01T00:00:00Z", true},
		{"and its day", "Asia/Tokyo", "00:00", "09:00", "tue", "2026-06-01T16:00:00Z", true},
		{"a skipped hour never comes", "Europe/Berlin", "02:00", "03:00", "sun", "2026-03-29T01:00:00Z", false},
		{"nor before", "Europe/Berlin", "02:00", "03:00", "sun", "2026-03-29T00:59:59Z", false},
		{"a repeated one comes", "Europe/Berlin", "02:00", "03:00", "sun", "2026-10-25T00:30:00Z", true},
		{"twice", "Europe/Berlin", "02:00", "03:00", "sun", "2026-10-25T01:30:00Z", true},
		{"and is over", "Europe/Berlin", "02:00", "03:00", "sun", "2026-10-25T02:00:00Z", false},
	} {
		w := &ztv1.Window{Zone: c.zone, Start: c.start, End: c.end}
		if c.days != "" {
			w.Days = []string{c.days}
		}
		cond, ok := newConditions(nil, &ztv1.When{Windows: []*ztv1.Window{w}}, nil)
		at, err := time.Parse(time.RFC3339Nano, c.at)
		if !ok || err != nil || cond.activeAt(at) != c.want {
			t.Errorf("%s: %s at %s: got %v (%v, %v)", c.what, w, c.at, !c.want, ok, err)
		}
		if cond.activeAt(time.Time{}) {
			t.Errorf("%s: active without a time", c.what)
		}
	}
}

// TestAlways: what is always active never changes, however it is written.
func TestAlways(t *testing.T) {
	now := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
	for _, windows := range [][]*ztv1.Window{
		nil,
		{{Zone: "Europe/Berlin", Start: "00:00", End: "24:00"}},
		{{Zone: "Europe/Berlin", Start: "00:00", End: "24:00", Days: spec.Days()}},
		{{Zone: "Europe/Berlin", Start: "06:00", End: "05:00"}, {Zone: "Europe/Berlin", Start: "04:00", End: "07:00"}},
	} {
		c, ok := newConditions(nil, &ztv1.When{Windows: windows}, nil)
		if at, changes := c.nextChange(now); !ok || changes || !c.activeAt(now) {
			t.Errorf("%v: %v, changes at %s", windows, ok, at)
		}
		until := now.Add(time.Hour * 24 * 400)
		c, _ = newConditions(nil, &ztv1.When{Windows: windows}, timestamppb.New(until))
		if at, changes := c.nextChange(now); !changes || !at.Equal(until) {
			t.Errorf("%v: changes at %s, %v", windows, at, changes)
		}
		if at, changes := c.nextChange(until); changes {
			t.Errorf("%v: changes at %s after its end", windows, at)
		}
	}
}
