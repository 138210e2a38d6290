package spec

import (
	_ "embed" // zones.txt
	"fmt"
	"slices"
	"strings"
	_ "time/tzdata" // every zone of zones.txt can be loaded, whatever the host has
)

//go:embed zones.txt
var zoneNames string

// zones are the names of the IANA time zone database (RFC 6557), sorted: those of
// the Go release, not of the host, so that every replica knows the same ones.
var zones = strings.Fields(zoneNames)

// ZoneKnown tells whether zone is an IANA time zone, which time.LoadLocation then
// loads.
func ZoneKnown(zone string) bool {
	_, ok := slices.BinarySearch(zones, zone)
	return ok
}

// Days are the days of a window as a user writes them, in the order of
// time.Weekday.
func Days() []string { return []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

// ParseClock reads "HH:MM" as minutes from midnight: "09:30" is 570, "24:00"
// is 1440.
func ParseClock(s string) (minutes int, err error) {
	digit := func(i int) int { return int(s[i]) - '0' }
	if len(s) == 5 && s[2] == ':' && !slices.ContainsFunc([]int{0, 1, 3, 4}, func(i int) bool { return s[i] < '0' || s[i] > '9' }) {
		hours := 10*digit(0) + digit(1)
		minutes = 60*hours + 10*digit(3) + digit(4)
		if digit(3) < 6 && minutes <= 24*60 {
			return minutes, nil
		}
	}
	return 0, fmt.Errorf("%s is not HH:MM between 00:00 and 24:00", show(s))
}
