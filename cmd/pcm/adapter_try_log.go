package main

import (
	"strings"

	"github.com/jointcloud/pcm/adapters/rest"
)

// tryLog shows the steps of a trial as they come. What an error says again that
// comes right after it is said once.
type tryLog struct {
	held string // the error of the last step, with its part before it, not shown yet
	why  string // that error alone
}

// step draws a step, and what the one before it held back.
func (l *tryLog) step(t *table, s rest.Step) {
	if s.Exchange != nil || len(s.Facts) > 0 || !strings.Contains(s.Err, l.why) {
		l.release(t)
	}
	if x := s.Exchange; x != nil {
		drawExchange(t, s)
	}
	for _, f := range s.Facts {
		switch {
		case f.Theirs != "":
			t.text("  %s: %s = %s", s.Part, plain(f.Ours), plain(f.Theirs))
		case s.Part == "end":
			t.text("  %s: %s = nothing", s.Part, plain(f.Ours))
		default:
			t.text("  %s: %s", s.Part, plain(f.Ours))
		}
	}
	if l.held, l.why = "", s.Err; s.Err != "" {
		l.held = "  " + s.Part + ": error: " + plain(s.Err)
	}
}

// release shows the error held back.
func (l *tryLog) release(t *table) {
	if l.held != "" {
		t.text("%s", l.held)
	}
	l.held, l.why = "", ""
}

// end shows it unless err, with which the command ends, says the same.
func (l *tryLog) end(t *table, err error) {
	if err == nil || !strings.Contains(err.Error(), l.why) {
		l.release(t)
	}
}

func drawExchange(t *table, s rest.Step) {
	x := s.Exchange
	switch {
	case s.Sent && x.Try > 1:
		t.text("%s: sent again, try %d", s.Part, x.Try)
	case s.Sent:
		t.text("%s: sent %s %s", s.Part, plain(x.Method), plain(x.URL))
	default:
		t.text("%s: would send %s %s", s.Part, plain(x.Method), plain(x.URL))
	}
	if x.RequestBody != "" && x.Try <= 1 {
		for _, l := range showBody(x.RequestBody) {
			t.text("    %s", l)
		}
	}
	if s.Sent && x.Status == 0 {
		t.text("  no answer")
	}
	if x.Status != 0 {
		t.text("  answer: HTTP %d", x.Status)
		if x.ResponseBody != "" {
			for _, l := range showBody(x.ResponseBody) {
				t.text("    %s", l)
			}
		}
	}
}
