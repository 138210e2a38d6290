package controlplane

import (
	"errors"
	"testing"
	"time"

	"github.com/ztmesh/ztmesh/controlplane/api"
	"github.com/ztmesh/ztmesh/identity"
)

// TestAutopilotRule: whom the rule gives a vote, and whom it gives up.
func TestAutopilotRule(t *testing.T) {
	rule := Autopilot{}.withDefaults()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	leader := standing{id: "a", voter: true, recorded: true, leads: true}
	well := func(id string) standing {
		return standing{id: id, voter: true, recorded: true, heard: ago(time.Second), since: ago(time.Hour)}
	}
	silent := func(id string, d time.Duration) standing {
		return standing{id: id, voter: true, recorded: true, heard: ago(d)}
	}
	with := func(s standing, change func(*standing)) standing { change(&s); return s }
	joined := with(well("n"), func(s *standing) { s.voter = false; s.since = ago(10 * time.Second) })
	longAgo := ago(72 * time.Hour)

	for name, tt := range map[string]struct {
		rule    Autopilot
		servers []standing
		elected time.Time
		want    verdict
	}{
		"one that is stable":          {rule, []standing{leader, joined}, longAgo, verdict{promote: "n"}},
		"one at a time":               {rule, []standing{leader, joined, with(joined, func(s *standing) { s.id = "o" })}, longAgo, verdict{promote: "n"}},
		"not yet stable":              {rule, []standing{leader, with(joined, func(s *standing) { s.since = ago(9 * time.Second) })}, longAgo, verdict{}},
		"not well":                    {rule, []standing{leader, with(joined, func(s *standing) { s.since = time.Time{} })}, longAgo, verdict{}},
		"clock off":                   {rule, []standing{leader, with(joined, func(s *standing) { s.clockOff = true })}, longAgo, verdict{}},
		"a replica":                   {rule, []standing{leader, with(joined, func(s *standing) { s.replica = true })}, longAgo, verdict{}},
		"about to be removed":         {rule, []standing{leader, with(joined, func(s *standing) { s.recorded = false })}, longAgo, verdict{remove: "n"}},
		"beside one that is silent":   {rule, []standing{leader, silent("b", time.Hour), well("c"), joined}, longAgo, verdict{promote: "n"}},
		"no majority would be well":   {rule, []standing{leader, silent("b", time.Hour), silent("c", time.Hour), well("d"), joined}, longAgo, verdict{promote: "n"}},
		"even with it no majority":    {rule, []standing{leader, silent("b", time.Hour), silent("c", time.Hour), silent("d", time.Hour), joined}, longAgo, verdict{}},
		"a demotion not finished":     {rule, []standing{leader, well("b"), with(well("c"), func(s *standing) { s.replica = true })}, longAgo, verdict{demote: "c"}},
		"a demotion that costs":       {rule, []standing{leader, silent("b", time.Hour), with(well("c"), func(s *standing) { s.replica = true })}, longAgo, verdict{}},
		"dead, and three are left":    {rule, []standing{leader, silent("b", 24*time.Hour), well("c"), well("d")}, longAgo, verdict{remove: "b"}},
		"never heard":                 {rule, []standing{leader, with(silent("b", 0), func(s *standing) { s.heard = time.Time{} }), well("c"), well("d")}, ago(24 * time.Hour), verdict{remove: "b"}},
		"silent for less":             {rule, []standing{leader, silent("b", 24*time.Hour-1), well("c"), well("d")}, longAgo, verdict{}},
		"a leader of yesterday":       {rule, []standing{leader, silent("b", 48*time.Hour), well("c"), well("d")}, ago(23 * time.Hour), verdict{}},
		"too few would be left":       {rule, []standing{leader, silent("b", 48*time.Hour), well("c")}, longAgo, verdict{}},
		"while another is not well":   {rule, []standing{leader, silent("b", 48*time.Hour), silent("c", time.Minute), well("d"), well("e")}, longAgo, verdict{}},
		"while another lags":          {rule, []standing{leader, silent("b", 48*time.Hour), well("c"), with(well("d"), func(s *standing) { s.lag = 1001 })}, longAgo, verdict{}},
		"a dead replica":              {rule, []standing{leader, well("b"), well("c"), with(silent("r", 72*time.Hour), func(s *standing) { s.voter, s.replica = false, true })}, longAgo, verdict{}},
		"dead before it voted":        {rule, []standing{leader, with(silent("n", 48*time.Hour), func(s *standing) { s.voter = false })}, longAgo, verdict{remove: "n"}},
		"removal is off":              {Autopilot{DeadAfter: -1}.withDefaults(), []standing{leader, silent("b", 48*time.Hour), well("c"), well("d")}, longAgo, verdict{}},
		"a smaller minimum":           {Autopilot{MinVoters: 2}.withDefaults(), []standing{leader, silent("b", 48*time.Hour), well("c")}, longAgo, verdict{remove: "b"}},
		"nobody else, and it is fine": {rule, []standing{leader}, longAgo, verdict{}},
	} {
		if got := tt.rule.judge(tt.servers, tt.elected, now); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// TestSkewRule: a clock is off if it is far from the median of the voters', and
// nobody judges without a majority of them.
func TestSkewRule(t *testing.T) {
	const hour, ok = time.Hour, 59 * time.Second
	for name, tt := range map[string]struct {
		ahead      []time.Duration
		voters     int
		off, known bool
	}{
		"alone":                         {[]time.Duration{0}, 1, false, true},
		"all agree":                     {[]time.Duration{0, ok, -ok}, 3, false, true},
		"this one is behind":            {[]time.Duration{0, hour, hour}, 3, true, true},
		"this one is ahead":             {[]time.Duration{0, -hour, -hour + ok}, 3, true, true},
		"another one is off":            {[]time.Duration{0, hour, ok}, 3, false, true},
		"of two, nobody knows":          {[]time.Duration{0, hour}, 2, false, true},
		"no majority can be asked":      {[]time.Duration{0}, 3, false, false},
		"two of five are off":           {[]time.Duration{0, hour, -hour, ok, 0}, 5, false, true},
		"two of four, and this one":     {[]time.Duration{0, hour, hour, hour}, 4, true, true},
		"half of four":                  {[]time.Duration{0, 0, hour, hour}, 4, false, true},
		"a replica that is behind":      {[]time.Duration{hour, hour, 0}, 3, true, true},
		"nobody":                        {nil, 0, false, false},
		"exactly a minute is near":      {[]time.Duration{0, maxSkew, maxSkew}, 3, false, true},
		"a nanosecond more is far":      {[]time.Duration{0, maxSkew + 1, maxSkew + 1}, 3, true, true},
		"a voter that cannot be asked":  {[]time.Duration{0, hour}, 3, false, true},
		"a replica and a silent quorum": {[]time.Duration{hour}, 3, false, false},
	} {
		if off, known := skewed(tt.ahead, tt.voters); off != tt.off || known != tt.known {
			t.Errorf("%s: %v, %v, want %v, %v", name, off, known, tt.off, tt.known)
		}
	}
}

// TestWrongClockSignsNothing: neither with the root nor with the intermediate.
func TestWrongClockSignsNothing(t *testing.T) {
	i := &issuer{clock: &clock{}}
	i.clock.off.Store(true)
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	_, _, node := i.Node(csr, "i1")
	_, _, workload := i.Workload(csr, "shop", "web", time.Hour)
	_, _, admin := i.Admin(csr, "alice")
	_, server := i.Intermediate(csr, "s1")
	_, proposed := agreed{clock: i.clock}.Propose(t.Context(), nil)
	for name, err := range map[string]error{"node": node, "workload": workload, "admin": admin, "server": server, "an entry": proposed} {
		if !errors.Is(err, api.ErrClock) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
