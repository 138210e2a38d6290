package controlplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/ztmesh/ztmesh/proto/zt/log/v1"
)

func TestJudge(t *testing.T) {
	rule := Liveness{}.withDefaults()
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	const never = -1
	for name, tt := range map[string]struct {
		enrolled, seen    int // never: not seen by this leader
		withdrawn         bool
		elected, now      int
		withdraw, restore bool
	}{
		"seen now":                            {seen: 500, elected: 0, now: 500},
		"not seen for 59 s":                   {seen: 441, elected: 0, now: 500},
		"not seen for 60 s":                   {seen: 440, elected: 0, now: 500, withdraw: true},
		"not seen for 60 s, elected 119 s":    {seen: 40, elected: 0, now: 119},
		"not seen for 80 s, elected 120 s":    {seen: 40, elected: 0, now: 120, withdraw: true},
		"never seen, elected 119 s":           {seen: never, elected: 0, now: 119},
		"never seen, elected 120 s":           {seen: never, elected: 0, now: 120, withdraw: true},
		"enrolled a moment ago, never seen":   {enrolled: 480, seen: never, elected: 0, now: 500},
		"enrolled 60 s ago, never seen":       {enrolled: 440, seen: never, elected: 0, now: 500, withdraw: true},
		"withdrawn, seen now":                 {seen: 500, withdrawn: true, elected: 0, now: 500, restore: true},
		"withdrawn, seen now, just elected":   {seen: 500, withdrawn: true, elected: 499, now: 500, restore: true},
		"withdrawn, never seen, just elected": {seen: never, withdrawn: true, elected: 499, now: 500},
		"withdrawn, long gone":                {seen: 10, withdrawn: true, elected: 0, now: 500},
	} {
		t.Run(name, func(t *testing.T) {
			i := &logv1.Instance{Id: "i", Withdrawn: tt.withdrawn, Enrolled: timestamppb.New(at(tt.enrolled))}
			seen := map[string]time.Time{}
			if tt.seen != never {
				seen["i"] = at(tt.seen)
			}
			got := rule.judge([]*logv1.Instance{i}, seen, at(tt.elected), at(tt.now))
			if diff := cmp.Diff([]bool{tt.withdraw, tt.restore}, []bool{len(got.Withdraw) == 1, len(got.Restore) == 1}); diff != "" {
				t.Errorf("withdraw, restore (-want +got):\n%s", diff)
			}
		})
	}
}
