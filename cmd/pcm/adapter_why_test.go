package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

// Of what the tests print each failure has its first line, whoever else prints between.
func TestWhys(t *testing.T) {
	text := `=== RUN   Adapter
=== RUN   Adapter/pools
=== PAUSE Adapter/pools
=== RUN   Adapter/exit_codes_and_streams
=== PAUSE Adapter/exit_codes_and_streams
=== CONT  Adapter/pools
=== CONT  Adapter/exit_codes_and_streams
    cases.go:61: it ended as failed, not ok
        with more below
=== NAME  Adapter/pools
    adaptertest.go:12: there are no pools: ` + strings.Repeat("ä", 300) + `
=== NAME  Adapter/exit_codes_and_streams
    adapter_suite.go:88: the plug-in's log:
        panic.go:1: no
=== RUN   Adapter/logs/follow
    cases.go:99: ` + "\x1b[31m" + `nothing was followed
--- FAIL: Adapter (0.10s)
    --- FAIL: Adapter/pools (0.10s)
`
	var out bytes.Buffer
	w := &whys{to: &out}
	for i := 0; i < len(text); i += 7 {
		if n, err := w.Write([]byte(text[i:min(i+7, len(text))])); n == 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	if out.String() != text {
		t.Errorf("handed on is %q", out.String())
	}
	if s := w.of("exit codes and streams"); s != "it ended as failed, not ok" {
		t.Errorf("%q", s)
	}
	if s := w.of("pools"); !strings.HasPrefix(s, "there are no pools: ä") || utf8.RuneCountInString(s) != maxWhy {
		t.Errorf("%q", s)
	}
	if s := w.of("logs"); !strings.Contains(s, "nothing was followed") || strings.Contains(s, "\x1b") {
		t.Errorf("%q", s)
	}
	if s := w.of("exec"); s != "" {
		t.Errorf("%q", s)
	}
}

// What failed says why in the report.
func TestTrialReport(t *testing.T) {
	w := &whys{said: map[string]string{"logs": "line 3 is missing", "time_limit": "it ran on"}}
	r := reportOf(map[string]adaptertest.Finding{
		"logs":       {Capability: "logs", Result: adaptertest.Fail},
		"time limit": {Capability: "time limit", Result: adaptertest.Pass},
		"exec":       {Capability: "exec", Result: adaptertest.Unsupported, Reason: "no such call"},
		"copy":       {Capability: "copy", Result: adaptertest.Fail},
	}, w)
	if r.Passed != 1 || r.Failed != 2 || r.Unsupported != 1 || r.Skipped != len(adapters.Capabilities)-4 {
		t.Errorf("%+v", r)
	}
	for _, f := range r.Findings {
		want := map[string]string{"logs": "line 3 is missing", "exec": "no such call", "copy": noWhy}[f.Capability]
		if f.Reason != want {
			t.Errorf("%s: %q, want %q", f.Capability, f.Reason, want)
		}
	}
}

// The help names all that can be declared, or chosen by --run.
func TestTrialHelp(t *testing.T) {
	long := strings.Join(strings.Fields((&app{}).adapterTestCommand().Long), " ")
	for _, name := range adapters.Capabilities {
		if !strings.Contains(long, " "+name+",") && !strings.HasSuffix(long, " "+name) && !strings.Contains(long, " "+name+" The exit code") {
			t.Errorf("%q is not in the help", name)
		}
	}
}
