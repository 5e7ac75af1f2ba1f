package slurm

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

func TestParseQueue(t *testing.T) {
	all := parseQueue(`1|2-4,7%2|1|PENDING|1795982954|n/a|main|1|100M|gres:gpu:a100:2|ReqNodeNotAvail, UnavailableNodes:n1|pcm 0011|pcm.x
1|0|2|RUNNING|1795982954|n1|main|4|2G|N/A|None|pcm 0011|pcm.x
9|N/A|9|CANCELLED|1795982954||short|1|1500|N/A|None|(null)|a|b | c
nonsense
x|N/A|9|RUNNING|1|n1|p|1|1M|N/A|None||pcm.bad
`)
	if len(all) != 3 {
		t.Fatalf("%d jobs: %+v", len(all), all)
	}
	a, b, c := all[0], all[1], all[2]
	if a.ID != 1 || a.GPUs != 2 || a.Memory != 100<<20 || a.Reason != "ReqNodeNotAvail, UnavailableNodes:n1" || a.Comment != "pcm 0011" || !a.Submitted.Equal(time.Unix(1795982954, 0)) {
		t.Errorf("%+v", a)
	}
	for index, want := range map[int]bool{0: false, 1: false, 2: true, 3: true, 4: true, 5: false, 7: true, 8: false} {
		if a.covers(index) != want {
			t.Errorf("%s covers %d: %v", a.Indexes, index, !want)
		}
	}
	if b.Index != 0 || b.Raw != 2 || !b.covers(0) || b.covers(1) || b.CPUs != 4 || b.Memory != 2<<30 {
		t.Errorf("%+v", b)
	}
	if c.Index != -1 || c.Name != "a|b | c" || c.Memory != 1500<<20 {
		t.Errorf("%+v", c)
	}
	if j := (job{Index: -1, Indexes: "[0-8:4,20]"}); !j.covers(4) || j.covers(2) || !j.covers(20) {
		t.Error("steps in a set of indexes are not read")
	}
}

func TestParseGres(t *testing.T) {
	for text, want := range map[string]map[string]int64{
		"gpu:fake:4":                         {"fake": 4},
		"gpu:a100:4(S:0-1),lustre:1":         {"a100": 4},
		"gpu:a100:2(IDX:0,2),gpu:v100:1":     {"a100": 2, "v100": 1},
		"gpu:a100_3g.20gb:7":                 {"a100_3g.20gb": 7},
		"gpu:2":                              {"": 2},
		"gpu":                                {"": 1},
		"gpu:tesla":                          {"tesla": 1},
		"gres:gpu:fake:3":                    {"fake": 3},
		"gres/gpu:fake:1,gres/gpu:fake:1":    {"fake": 2},
		"":                                   nil,
		"N/A":                                nil,
		"(null)":                             nil,
		"gpu:a100:999999999999999999999":     nil,
		"gpu:a100:-3":                        nil,
		"craynetwork:4,gpu:fake:0(IDX:N/A),": {"fake": 0},
	} {
		if got := parseGres(text); !maps.Equal(got, want) {
			t.Errorf("%q: %v, expected %v", text, got, want)
		}
	}
}

func TestReadDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"UNLIMITED": 0, "INFINITE": 0, "30": 30 * time.Minute, "00:01:00": time.Minute, "1:30": 90 * time.Second,
		"1-12:00:00": 36 * time.Hour, "7-00:00:00": 7 * 24 * time.Hour, "2-1": 49 * time.Hour, "-5": 0, "": 0,
	} {
		if got := readDuration(text); got != want {
			t.Errorf("%q: %s, expected %s", text, got, want)
		}
	}
}

func TestUsable(t *testing.T) {
	for state, want := range map[string]bool{
		"IDLE": true, "MIXED": true, "ALLOCATED": true, "IDLE+CLOUD": true, "MIXED+PLANNED": true, "IDLE+COMPLETING": true,
		"IDLE+DRAIN": false, "DOWN*": false, "IDLE*": false, "DOWN+NOT_RESPONDING": false, "IDLE+RESERVED": false, "MAINT": false, "UNKNOWN": false, "": false,
	} {
		if got := (node{State: state}).usable(); got != want {
			t.Errorf("%q: %v", state, got)
		}
	}
}

// Every state of Slurm's is known, and one that is not keeps running.
func TestStates(t *testing.T) {
	for word, want := range map[string]adapters.Native{
		"PENDING":       {State: adapters.Pending},
		"RUNNING":       {State: adapters.Running},
		"COMPLETING":    {State: adapters.Running},
		"SUSPENDED":     {State: adapters.Suspended},
		"COMPLETED":     {State: adapters.Ended, Outcome: pcm.OutcomeOK},
		"FAILED":        {State: adapters.Ended, Outcome: pcm.OutcomeFailed},
		"TIMEOUT":       {State: adapters.Ended, Outcome: pcm.OutcomeTimeLimit},
		"DEADLINE":      {State: adapters.Ended, Outcome: pcm.OutcomeTimeLimit},
		"OUT_OF_MEMORY": {State: adapters.Ended, Outcome: pcm.OutcomeMemory},
		"NODE_FAIL":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"BOOT_FAIL":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"PREEMPTED":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"CANCELLED":     {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"REVOKED":       {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"REQUEUED":      {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"SPECIAL_EXIT":  {State: adapters.Ended, Outcome: pcm.OutcomeSeller},
		"QUITE_NEW":     {State: adapters.Running},
	} {
		got := states.Of(word)
		if got.State != want.State || got.Outcome != want.Outcome {
			t.Errorf("%s: %+v, expected %+v", word, got, want)
		}
		if needs := got.Outcome == pcm.OutcomeSeller || got.Outcome == pcm.OutcomeTimeLimit; needs && got.Reason == "" {
			t.Errorf("%s has no reason", word)
		}
	}
	if w := why("ReqNodeNotAvail, UnavailableNodes:n1"); !strings.Contains(w, "not available") || !strings.Contains(w, "UnavailableNodes:n1") {
		t.Error(w)
	}
	if w := why("SomethingNew"); !strings.Contains(w, "SomethingNew") {
		t.Error(w)
	}
}

// What a failure means, by what the task left and what Slurm says.
func TestJudge(t *testing.T) {
	a := &attempt{}
	a.Run = newRun(pcm.Resources{Memory: 1 << 30}, "prog")
	for _, c := range []struct {
		o       over
		native  string
		outcome pcm.Outcome
		reason  string
	}{
		{over{Code: 3}, "FAILED", pcm.OutcomeFailed, "exit code 3"},
		{over{Code: 3}, "COMPLETED", pcm.OutcomeFailed, "exit code 3"}, // as accounting lies
		{over{Code: 3}, "", pcm.OutcomeFailed, "exit code 3"},
		{over{Code: 137}, "OUT_OF_MEMORY", pcm.OutcomeMemory, "1GiB"},
		{over{Code: 137, OOM: true}, "FAILED", pcm.OutcomeMemory, "1GiB"},
		{over{Code: 137}, "FAILED", pcm.OutcomeFailed, "signal 9"},
		{over{Code: 143}, "TIMEOUT", pcm.OutcomeTimeLimit, "time limit"},
		{over{Code: 143}, "PREEMPTED", pcm.OutcomeSeller, "preempted"},
		{over{Code: 143}, "CANCELLED", pcm.OutcomeSeller, "somebody else"},
		{over{Code: 143}, "NODE_FAIL", pcm.OutcomeSeller, "node failed"},
		{over{Code: 127, Missing: true}, "FAILED", pcm.OutcomeFailed, "not found"},
		{over{Code: 127}, "FAILED", pcm.OutcomeFailed, "exit code 127"},
	} {
		var said adapters.Native
		if c.native != "" {
			said = states.Of(c.native)
		}
		if o, reason := judge(c.o, a, said); o != c.outcome || !strings.Contains(reason, c.reason) {
			t.Errorf("%+v, %s: %s, %q; expected %s, %q", c.o, c.native, o, reason, c.outcome, c.reason)
		}
	}
}

// The scripts say what they are given, whatever that is, in the shell that is here.
func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a b", "it's", `"$HOME" \ $(id) ` + "`id`", "a\nb", "-n", "'''", "é"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q became %q, %v", s, out, err)
		}
	}
}

// Who makes the start file runs an attempt: a job, once, or nobody.
func TestClaim(t *testing.T) {
	s := spool(t.TempDir())
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	task := adaptertest.NewTask()
	key, work := task.Key.String(), t.TempDir()
	task.Command, task.Env = []string{"sh", "-c", `echo "$GREETING"; kill -9 $$`}, map[string]string{"GREETING": "it's me"}
	run := func(gen int) string {
		t.Helper()
		if err := replaceFile(filepath.Join(s.attempt(key), "script"), []byte(wrapper(s, task, gen, work, nil))); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", filepath.Join(s.attempt(key), "script"))
		cmd.Env = []string{"SLURM_JOB_ID=7", "SLURM_ARRAY_JOB_ID=5", "SLURM_ARRAY_TASK_ID=2", "SLURMD_NODENAME=n9", "SECRET=x"}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if err := exec.Command("mkdir", "-p", s.attempt(key)).Run(); err != nil {
		t.Fatal(err)
	}
	run(1)
	b, ok := s.readBegun(key, 1, "start")
	if !ok || b.Job != "5_2" || b.Host != "n9" {
		t.Errorf("begun %+v, %v", b, ok)
	}
	o, ok := s.readOver(key, 1)
	if !ok || o.Code != 137 || o.Peak <= 0 || o.Fault != "" {
		t.Errorf("over %+v, %v", o, ok)
	}
	if out, _ := readSmall(s.file(key, "stdout")); out != "it's me\n" {
		t.Errorf("stdout %q", out)
	}
	end := time.Now()
	for what, at := range map[string]time.Time{"start": end.Add(-1500 * time.Millisecond), "exit": end} {
		if err := os.Chtimes(s.evidence(key, 1, what), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if took := s.lasted(key, 1); took != 1500*time.Millisecond || s.lasted(key, 2) != 0 {
		t.Errorf("it lasted %s; one without an end %s", took, s.lasted(key, 2))
	}
	run(1) // once more, as after a requeue
	if _, ok := s.readBegun(key, 1, "refused"); !ok {
		t.Error("a second copy was not refused")
	}
	if out, _ := readSmall(s.file(key, "stdout")); out != "it's me\n" {
		t.Errorf("it ran twice: %q", out)
	}
	if ok, err := s.claim(key, 1); ok || err != nil {
		t.Errorf("claimed what has begun: %v, %v", ok, err)
	}
	for range 2 {
		if ok, err := s.claim(key, 2); !ok || err != nil {
			t.Errorf("claim: %v, %v", ok, err)
		}
	}
	run(2)
	if _, ok := s.readOver(key, 2); ok {
		t.Error("what was claimed has run")
	}
}

// What attempts leave in the shared folder goes with them.
func TestForget(t *testing.T) {
	s := spool(t.TempDir())
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := s.saveNumber("", intent{Name: "pcm.x", Index: 0, ID: 63}); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for i := range 2 {
		key := adaptertest.NewTask().Key.String()
		keys = append(keys, key)
		for _, dir := range []string{s.attempt(key), s.array("pcm.x")} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(filepath.Join("..", "..", "attempts", key), filepath.Join(s.array("pcm.x"), strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
		if err := s.saveIntent(key, intent{Name: "pcm.x", Index: i, Generation: 2}); err != nil {
			t.Fatal(err)
		}
		if in, ok := s.loadIntent(key); !ok || in != (intent{Name: "pcm.x", Index: i, Generation: 2, ID: 63}) {
			t.Errorf("its place is %+v, %v", in, ok)
		}
		for gen := 1; gen <= 2; gen++ {
			if _, err := s.claim(key, gen); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.forget(keys[0], 2)
	if _, err := os.Stat(filepath.Join(s.array("pcm.x"), "1")); err != nil {
		t.Errorf("the other task of the array: %v", err)
	}
	if err := os.RemoveAll(s.attempt(keys[1])); err != nil { // as if it had been left behind
		t.Fatal(err)
	}
	s.tidyArrays()
	s.forget(keys[1], 2)
	for _, dir := range []string{s.attempts(), s.array(""), s.number(""), s.events()} {
		if left, err := readNames(dir); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{Dir: "/d", Partitions: []string{"main"}, Account: "lab", Constraint: "a100&nvlink", KeepEnv: []string{"SLURM_JOB_ID"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"relative folder":   func(c *Config) { c.Shared = "x" },
		"url":               func(c *Config) { c.URL = "ftp://x" },
		"no token":          func(c *Config) { c.URL = "http://x" },
		"option as account": func(c *Config) { c.Account = "--uid=0" },
		"space":             func(c *Config) { c.QOS = "a b" },
		"partition":         func(c *Config) { c.Partitions = []string{"a;b"} },
		"variable":          func(c *Config) { c.KeepEnv = []string{"$(id)"} },
		"slots":             func(c *Config) { c.Slots = -1 },
	} {
		c := good
		if spoil(&c); pcm.ErrorCode(c.Validate()) != pcm.Invalid {
			t.Errorf("%s: %v", name, c.Validate())
		}
	}
}

func TestPlaces(t *testing.T) {
	nodes := []node{
		{Name: "a", Partitions: []string{"GPU_long"}, GPUs: map[string]int64{"a100": 4}, State: "IDLE"},
		{Name: "b", Partitions: []string{"GPU_long"}, GPUs: map[string]int64{"v100": 2}, State: "IDLE"},
		{Name: "c", Partitions: []string{"GPU_long", "cpu"}, State: "IDLE"},
	}
	parts := []partition{{Name: "GPU_long", Up: true}, {Name: "cpu", Up: true}, {Name: "down"}}
	var ids []string
	for _, p := range findPlaces(Config{}, parts, nodes) {
		ids = append(ids, string(p.id)+"="+p.gpu)
	}
	if got := strings.Join(ids, " "); got != "slurm-gpu-long= slurm-gpu-long.a100=a100 slurm-gpu-long.v100=v100 slurm-cpu=" {
		t.Error(got)
	}
	if got := findPlaces(Config{Partitions: []string{"cpu"}}, parts, nodes); len(got) != 1 || got[0].partition != "cpu" {
		t.Errorf("%+v", got)
	}
}

func newRun(r pcm.Resources, command ...string) *supervisor.Run {
	t := adaptertest.NewTask()
	t.Resources, t.Command = r, command
	return &supervisor.Run{Task: t, Wake: func() {}}
}

// No task has more than one node, however many the partition has.
func TestLargest(t *testing.T) {
	a := &Adapter{cfg: Config{Slots: 10}}
	nodes := []node{
		{Name: "n1", State: "MIXED", CPUs: 8, Allocated: 6, Memory: 16 << 30, Used: 12 << 30, GPUs: map[string]int64{"a100": 4}},
		{Name: "n2", State: "IDLE", CPUs: 4, Memory: 8 << 30, GPUs: map[string]int64{"a100": 2}},
		{Name: "n3", State: "DOWN", CPUs: 64, Memory: 1 << 40, GPUs: map[string]int64{"a100": 8}},
	}
	jobs := []job{
		{Node: "n1", Partition: "main", CPUs: 4, Memory: 8 << 30},
		{Node: "n1", Partition: "other", CPUs: 2, Memory: 4 << 30},
	}
	p := a.pool(place{id: "main", partition: "main", gpu: "a100", nodes: nodes}, jobs, "24.11")
	if want := (pcm.Resources{CPU: 10_000, Memory: 20 << 30, GPU: 6}); p.Capacity != want {
		t.Errorf("it has %s, not %s", p.Capacity, want)
	}
	if want := (pcm.Resources{CPU: 6000, Memory: 12 << 30, GPU: 4}); p.Largest == nil || *p.Largest != want {
		t.Errorf("its largest has %v, not %s", p.Largest, want)
	}
	if p := a.pool(place{id: "main", partition: "main", nodes: nodes[:1]}, jobs, "24.11"); p.Largest != nil {
		t.Errorf("one node has %s at most of %s", p.Largest, p.Capacity)
	}
}
