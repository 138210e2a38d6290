package controlplane

import (
	"testing"
	"time"
)

// A server that cannot take a key is asked ever more rarely, and is news once for each
// cause; another key is handed over at once.
func TestHanding(t *testing.T) {
	const every = 5 * time.Second
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	h, calls, news := &handing{}, 0, 0
	day := func(key, cause string) {
		calls, news = 0, 0
		for range 24 * time.Hour / every {
			if h.due(key, now) {
				calls++
				if h.failed(key, cause, now, every) {
					news++
				}
			}
			now = now.Add(every)
		}
	}
	day("k1", "read-only file system")
	if calls < 30 || calls > 36 || news != 1 {
		t.Errorf("a day: %d calls, %d times news", calls, news)
	}
	day("k1", "no space left on device")
	if calls < 23 || calls > 25 || news != 1 {
		t.Errorf("a day with another cause: %d calls, %d times news", calls, news)
	}
	if !h.due("k2", now) {
		t.Error("another key is not handed over at once")
	}
	day("k2", "no space left on device")
	if calls < 30 || calls > 36 || news != 1 {
		t.Errorf("a day with another key: %d calls, %d times news", calls, news)
	}
}
