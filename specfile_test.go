package pcm_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func TestParseSpecFaults(t *testing.T) {
	tests := []struct {
		name, spec string
		want       string // the whole text of the error
	}{
		{"unknown field", "nmae: x\nsteps:\n  - command: [a]\n",
			`f:1:1: nmae: no such field; did you mean name?`},
		{"unknown field deep", "steps:\n  - command: [a]\n    resources:\n      mem: 1GiB\n",
			`f:4:7: steps[0].resources.mem: no such field; known: cpu, memory, gpu, disk, accelerator, software, bandwidth, fabric`},
		{"shorthand at the top", "command: [a]\n",
			"f:1:1: command: no such field; known: name, budget, deadline, takeover, strategy, pay_after, steps\n" +
				"f:1:1: steps: a job has at least one step"},
		{"wrong type", "steps:\n  - command: [a]\n    count: many\n",
			`f:3:12: steps[0].count: is the text "many"; a whole number is needed`},
		{"text for a list", "steps:\n  - command: echo hi\n",
			`f:2:14: steps[0].command: is the text "echo hi"; a list is needed`},
		{"list for text", "name: [a]\nsteps:\n  - command: [a]\n",
			`f:1:1: name: is a list; text is needed`},
		{"fraction", "steps:\n  - command: [a]\n    retries: 1.5\n",
			`f:3:14: steps[0].retries: is 1.5; a whole number is needed`},
		{"negative count", `{"steps": [{"command": ["a"], "count": -4}]}`,
			`f:1:40: steps[0].count: -4 is out of range: 1 to 100000`},
		{"huge count", "steps:\n  - command: [a]\n    count: 99999999999999999999\n",
			`f:3:12: steps[0].count: 99999999999999999999 is out of range`},
		{"wrong units", "budget: 5 euro!\nsteps:\n  - command: [a]\n    time_limit: 90\n    resources: {cpu: two, memory: 1 GX}\n",
			"f:1:9: budget: budget \"5 euro!\" is not an amount above zero with a unit, like '5 credit'; units are lower-case names\n" +
				"f:4:17: steps[0].time_limit: \"90\" is not a length of time; write it like 90s, 10m or 2h\n" +
				"f:5:5: steps[0].resources: cpu \"two\" is not an amount of CPU; write it like 2, 0.5 or 500m"},
		{"memory without its unit", "steps:\n  - command: [a]\n    resources:\n      cpu: 1\n      memory: 512\n",
			`f:5:15: steps[0].resources.memory: memory 512B is below 1MiB: did you mean 512MiB?`},
		{"duplicate key", "name: a\nsteps:\n  - command: [a]\nname: b\n",
			`f:4:1: name: stands twice: first in line 1`},
		{"empty value", "steps:\n  - command: [a]\n    labels:\n",
			`f:3:5: steps[0].labels: has no value: give one, or leave the field out`},
		{"out of the folder", "steps:\n  - command: [a]\n    outputs: [../x]\n    inputs:\n      - {source: a, target: x}\n      - {source: b, target: ./x}\n      - {source: .}\n",
			"f:3:15: steps[0].outputs[0]: \"../x\" leads out of the task's working folder: give a relative path without ..\n" +
				"f:6:29: steps[0].inputs[1].target: another input stands at \"x\" already\n" +
				"f:7:9: steps[0].inputs[2].target: \".\" is the task's working folder itself: name a place in it"},
		{"control characters", "name: \"a\\eb\"\nsteps:\n  - command: [\"a\\0b\"]\n",
			"f:1:7: name: \"a\\x1bb\" is not a name of at most 63 printable characters\n" +
				"f:3:15: steps[0].command[0]: \"a\\x00b\" holds a NUL character or isn't UTF-8"},
		{"needs", "steps:\n  - {name: a, command: [a], needs: [b]}\n  - {name: b, command: [b]}\n",
			`f:2:37: steps[0].needs[0]: "b" is not a step before this one`},
		{"several", "steps:\n  - comand: [a]\n  - command: [b]\n    retries: 101\n  - module: m\n    command: [c]\n",
			"f:2:5: steps[0].comand: no such field; did you mean command?\n" +
				"f:4:14: steps[1].retries: 101 is out of range: 0 to 100\n" +
				"f:5:13: steps[2].module: a step has a command or a module, not both"},
		{"empty", "", `f:1:1: the file is empty`},
		{"only a comment", "# nothing\n", `f:1:1: the file is empty`},
		{"a list", "- a\n", `f:1:1: is a list; fields are needed`},
		{"syntax", "steps: [\n", `f:1:8: not valid YAML: sequence end token ']' not found`},
		{"second document", "steps:\n  - command: [a]\n---\nname: b\n", `f:4:1: the file has a second document: only one is read`},
		{"alias of nothing", "steps:\n  - command: *x\n", `f:2:15: steps[0].command: no anchor &x stands before this alias`},
		{"too large", strings.Repeat("#", 10_000_000), `f: the file has 9.5MiB, at most 1MiB are read: name large data as inputs instead of writing it here`},
		{"deep flow", strings.Repeat("[", 500_000), `f:1:65: nested deeper than 64 levels`},
		{"deep list", strings.Repeat("- ", 500_000), `f:1:129: nested deeper than 64 levels`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := pcm.ParseSpec([]byte(tt.spec), "f")
			if err == nil {
				t.Fatal("no error")
			}
			if err.Error() != tt.want {
				t.Errorf("got\n%s\nwant\n%s", err, tt.want)
			}
			var fe *pcm.FileError
			if !errors.As(err, &fe) || pcm.ErrorCode(err) != pcm.Invalid {
				t.Errorf("%T with code %s, want *FileError, invalid", err, pcm.ErrorCode(err))
			}
		})
	}
}

func TestParseSpec(t *testing.T) {
	yaml := `
name: demo
budget: 2.5
takeover: any
steps:
  - &first
    name: one
    command: [sh, -c, "echo $X", 7, true]
    env: {X: 0x10, Y: no, Z: 1_000, W: "5"}
    resources: {cpu: 0.5, memory: 64 MiB}
    count: 3
    time_limit: 90s
  - <<: *first
    name: two
    needs: [one]
    command: &words [a, b]
  - name: three
    module: m.wasm
    args: *words
    inputs: [{source: data/in.txt}]
`
	got, err := pcm.ParseSpec([]byte(yaml), "f")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"X": "0x10", "Y": "no", "Z": "1_000", "W": "5"}
	want := pcm.Spec{Name: "demo", Budget: "2.5", Takeover: pcm.TakeoverAny, Strategy: "cheapest", Steps: []pcm.Step{
		{Name: "one", Count: 3, Command: []string{"sh", "-c", "echo $X", "7", "true"}, Env: env,
			Resources: pcm.Ask{CPU: "0.5", Memory: "64 MiB"}, TimeLimit: "90s"},
		{Name: "two", Count: 3, Command: []string{"a", "b"}, Env: env, Needs: []string{"one"},
			Resources: pcm.Ask{CPU: "0.5", Memory: "64 MiB"}, TimeLimit: "90s"},
		{Name: "three", Count: 1, Module: "m.wasm", Args: []string{"a", "b"},
			Inputs: []pcm.Input{{Source: "data/in.txt", Target: "in.txt"}}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

// Aliases of aliases may not stand for more than fits.
func TestParseSpecAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("steps:\n  - command: [a]\n    env: &e0 {A: x}\n")
	b.WriteString("  - &s0 {command: &c0 [a, a, a, a, a, a, a, a, a, a]}\n")
	for i := range 60_000 {
		fmt.Fprintf(&b, "  - *s%d\n", min(i, 0))
	}
	start := time.Now()
	_, err := pcm.ParseSpec([]byte(b.String()), "f")
	if err == nil || !strings.Contains(err.Error(), "aliases stand for too much") {
		t.Errorf("got %.300v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestDecodeYAMLKinds(t *testing.T) {
	type inner struct {
		On    bool          `json:"on"`
		Every time.Duration `json:"every"`
	}
	type config struct {
		inner
		Size  uint16            `json:"size"`
		Ratio float64           `json:"ratio"`
		Inner *inner            `json:"inner"`
		Map   map[string]*inner `json:"map"`
		Skip  string            `json:"-"`
	}
	var c config
	at, err := pcm.DecodeYAML([]byte("on: true\nsize: 80\nratio: 1\ninner: {every: 5s}\nmap:\n  a: {on: true}\n"), "f", &c)
	if err != nil {
		t.Fatal(err)
	}
	if !c.On || c.Size != 80 || c.Ratio != 1 || c.Inner.Every != 5*time.Second || !c.Map["a"].On {
		t.Errorf("got %+v", c)
	}
	if p := at.Of("map.a.on.more[3]"); p != (pcm.Position{Line: 6, Column: 11}) {
		t.Errorf("the nearest position of a missing field is %v", p)
	}
	_, err = pcm.DecodeYAML([]byte("on: maybe\nsize: 70000\nratio: wide\nevery: soon\nskip: x\n"), "f", &c)
	want := `f:1:5: on: is the text "maybe"; true or false is needed
f:2:7: size: 70000 is out of range
f:3:8: ratio: is the text "wide"; a number is needed
f:4:8: every: "soon" is not a length of time; write it like 90s, 10m or 2h
f:5:1: skip: no such field; known: on, every, size, ratio, inner, map`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"name", "count", "command", "time_limit", "retries"}
	for in, want := range map[string]string{
		"comand": "command", "cuont": "count", "Name": "name", "time-limit": "time_limit", "timeLimit": "time_limit",
		"retry": "", "zzz": "", "": "", "nam": "name", strings.Repeat("n", 100): "",
	} {
		if got := pcm.Nearest(in, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"steps:\n- command: [a]\n", "a: &x [*x]", "<<: *a", "? a\n: b", "!!x {a: 1}", "a: |\n b\n", "{\"steps\":[{}]}", "*", "&a", "- - ? -"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := pcm.ParseSpec([]byte(s), "f")
		var fe *pcm.FileError
		if err != nil {
			if !errors.As(err, &fe) || len(fe.Faults) == 0 || slices.ContainsFunc(fe.Faults, func(f pcm.FileFault) bool { return f.Message == "" }) {
				t.Fatalf("error without faults: %#v", err)
			}
			return
		}
		if faults := spec.Normalize(); len(faults) > 0 {
			t.Fatalf("accepted, then found faulty: %v", faults)
		}
		var again pcm.Spec
		if err := pcm.Unmarshal(pcm.MustMarshal(spec), &again); err != nil {
			t.Fatalf("accepted, but can't travel: %v", err)
		}
	})
}
