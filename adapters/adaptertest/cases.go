package adaptertest

import (
	"bufio"
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func testPools(t *testing.T, s Subject) {
	b := setUp(t, s)
	pools, err := b.ins.Adapter.Pools(b.ctx)
	if err != nil || len(pools) == 0 {
		t.Fatalf("pools: %v, %v", pools, err)
	}
	for _, p := range pools {
		p.Price.Unit = pcm.DefaultUnit // the seller sets the price
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		if p.Adapter != b.ins.Adapter.Name() || p.Sandbox == "" || p.Slots <= 0 || p.Capacity.CPU <= 0 || p.Capacity.Memory <= 0 {
			t.Errorf("pool is not described: %+v", p)
		}
	}
}

func testExit(t *testing.T, s Subject) {
	b := setUp(t, s)
	st := b.run(b.task("out", "hello", "err", "world"))
	b.expect(st, pcm.OutcomeOK, 0)
	if st.Started.IsZero() || time.Since(st.Started) > patience || st.Usage.WallMS < 0 || st.Usage.MaxMemory <= 0 {
		t.Errorf("start or usage is wrong: %+v", st)
	}
	if out, errs := b.logs(st.Key, adapters.Stdout, 0, false), b.logs(st.Key, adapters.Stderr, 0, false); out != "hello\n" || errs != "world\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	b.expect(b.run(b.task("out", "bye", "exit", "3")), pcm.OutcomeFailed, 3)
	b.expect(b.run(b.task("exit", "137")), pcm.OutcomeFailed, 137)
	st = b.run(b.task("abort"))
	b.expect(st, pcm.OutcomeFailed, -1)
	if st.ExitCode == 0 {
		t.Error("a crash has exit code 0")
	}
}

func testIdempotent(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("out", "once", "sleep", "300ms")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := b.ins.Adapter.Start(b.ctx, task); err != nil {
				t.Errorf("start again: %v", err)
			}
		})
	}
	wg.Wait()
	b.expect(b.wait(task.Key, adapters.Ended), pcm.OutcomeOK, 0)
	b.start(task) // after its end as well
	b.expect(b.wait(task.Key, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(task.Key, adapters.Stdout, 0, false); out != "once\n" {
		t.Errorf("ran more than once: %q", out)
	}
}

func testRefusals(t *testing.T, s Subject) {
	b := setUp(t, s)
	outside := filepath.Join(t.TempDir(), "f")
	for name, spoil := range map[string]func(*adapters.Task){
		"nothing to run":        func(t *adapters.Task) { t.Command, t.Module = nil, "" },
		"output that leads out": func(t *adapters.Task) { t.Outputs = []string{"../x"} },
		"absolute output":       func(t *adapters.Task) { t.Outputs = []string{"/etc"} },
		"input that leads out": func(t *adapters.Task) {
			t.Inputs = append(t.Inputs, adapters.Mount{Path: outside, Target: "a/../../x"})
		},
		"input over all": func(t *adapters.Task) { t.Inputs = append(t.Inputs, adapters.Mount{Path: outside, Target: "."}) },
		"input within an input": func(t *adapters.Task) {
			t.Inputs = append(t.Inputs, adapters.Mount{Path: outside, Target: "i"}, adapters.Mount{Path: outside, Target: "i/j"})
		},
		"NUL in a variable": func(t *adapters.Task) { t.Env = map[string]string{"A": "\x00"} },
		"negative limit":    func(t *adapters.Task) { t.Limit = -time.Second },
		"no lease":          func(t *adapters.Task) { t.Deadline = 0 },
		"lease over":        func(t *adapters.Task) { t.Deadline = adapters.Now().Add(-time.Second) },
	} {
		task := b.task("out", "x")
		spoil(&task)
		err := b.ins.Adapter.Start(b.ctx, task)
		if code := pcm.ErrorCode(err); code != pcm.Invalid && code != pcm.Refused {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := b.find(task.Key); ok {
			t.Errorf("%s: refused, but listed", name)
		}
	}
	// An input that is not there is the seller's fault, seen at the start or after it.
	task := b.task("out", "x")
	task.Inputs = append(task.Inputs, adapters.Mount{Path: outside, Target: "in"})
	if err := b.ins.Adapter.Start(b.ctx, task); err == nil {
		b.expect(b.wait(task.Key, adapters.Ended), pcm.OutcomeSeller, -1)
	}
	// Nobody there.
	none := NewTask().Key
	if err := b.ins.Adapter.Stop(b.ctx, none, 0, "x"); pcm.ErrorCode(err) != pcm.NotFound && err != nil {
		t.Errorf("stop of nothing: %v", err)
	}
	if _, err := b.ins.Adapter.Logs(b.ctx, none, adapters.Stdout, 0, false); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("logs of nothing: %v", err)
	}
	if _, err := b.ins.Adapter.Results(b.ctx, none); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("results of nothing: %v", err)
	}
	if err := b.ins.Adapter.Remove(b.ctx, none); err != nil {
		t.Errorf("remove of nothing: %v", err)
	}
}

func testMissing(t *testing.T, s Subject) {
	if s.Missing == nil {
		t.Skip("this adapter's tasks bring their program along")
	}
	b := setUp(t, s)
	task := b.task("out", "x")
	s.Missing(&task)
	st := b.run(task)
	b.expect(st, pcm.OutcomeFailed, 127)
	if !strings.Contains(st.Reason, "not found") {
		t.Errorf("reason: %q", st.Reason)
	}
}

func testEnvironment(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("env")
	task.Index, task.Count = 3, 7
	task.Env = maps.Clone(task.Env)
	if task.Env == nil {
		task.Env = map[string]string{}
	}
	task.Env["GREETING"] = "hello world"
	task.Env["PCM_TASK_COUNT"] = "forged"
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	out := b.logs(st.Key, adapters.Stdout, 0, false)
	for _, want := range []string{"GREETING=hello world", "PCM_TASK_INDEX=3", "PCM_TASK_COUNT=7", "PCM_JOB=" + string(task.Job), "PCM_ATTEMPT=" + task.Key.String()} {
		if !slices.Contains(strings.Split(out, "\n"), want) {
			t.Errorf("%s is missing in\n%s", want, out)
		}
	}
	allowed := []string{"PATH", "HOME", "PWD", "GREETING", "PCM_TASK_INDEX", "PCM_TASK_COUNT", "PCM_JOB", "PCM_ATTEMPT", EnvTask}
	for line := range strings.Lines(out) {
		if k, _, _ := strings.Cut(line, "="); !slices.Contains(allowed, k) {
			t.Errorf("not of the task's environment: %q", line)
		}
	}
}

// folder makes an input folder with a file and a link in it.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"a.txt": "alpha\n", "sub/b.txt": "beta\n"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a.txt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testInputs(t *testing.T, s Subject) {
	b := setUp(t, s)
	dir := folder(t)
	task := b.task("cat", "in/a.txt", "cat", "in/sub/b.txt", "cat", "in/link", "cat", "deep/er/one.txt", "ls", "in",
		"try", "append", "in/a.txt", "!", "try", "write", "in/new", "!", "try", "append", "deep/er/one.txt", "!", "write", "mine", "ok", "out", "done")
	task.Inputs = append(task.Inputs, adapters.Mount{Path: dir, Target: "in"}, adapters.Mount{Path: filepath.Join(dir, "a.txt"), Target: "deep/er/one.txt"})
	task.Outputs = []string{"."}
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	out := b.logs(st.Key, adapters.Stdout, 0, false)
	if !strings.HasPrefix(out, "alpha\nbeta\nalpha\nalpha\na.txt\nlink\nsub\n") || !strings.HasSuffix(out, "done\n") {
		t.Errorf("the task saw %q", out)
	}
	want := map[string]string{"a.txt": "alpha\n", "link": "alpha\n", "sub/b.txt": "beta\n"}
	if got := b.files(os.DirFS(dir)); got["a.txt"] != want["a.txt"] || got["sub/b.txt"] != want["sub/b.txt"] || len(got) != 3 {
		t.Errorf("the input is changed: %q", got)
	}
	// Inputs are no outputs, whatever was declared.
	got := b.files(b.results(st.Key))
	if got["out/mine"] != "ok" {
		t.Errorf("results: %q", got)
	}
	for name := range got {
		if strings.HasPrefix(name, "out/in") || strings.HasPrefix(name, "out/deep/er/one") {
			t.Errorf("an input is among the results: %s", name)
		}
	}
}

func testOutputs(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("write", "one", "1", "write", "d/two", "2", "write", "d/e/three", "3", "write", "deep/er/four", "4", "write", "secret", "s", "out", "o", "err", "e")
	task.Outputs = []string{"one", "d", "deep/er/four", "absent", "ab/sent"}
	k := b.start(task)
	st := b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeOK, 0)
	fsys := b.results(k)
	got := b.files(fsys)
	want := map[string]string{"stdout": "o\n", "stderr": "e\n", "out/one": "1", "out/d/two": "2", "out/d/e/three": "3", "out/deep/er/four": "4"}
	if !maps.Equal(got, want) {
		t.Errorf("results %q, expected %q", got, want)
	}
	if err := fstest.TestFS(fsys, slices.Collect(maps.Keys(want))...); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"out/secret", "task.cbor", "out/../secret", "work/secret", "out/absent"} {
		if _, err := fs.ReadFile(fsys, name); err == nil {
			t.Errorf("%s can be read", name)
		}
	}
	// A task without any output leaves two empty streams.
	st = b.run(b.task())
	b.expect(st, pcm.OutcomeOK, 0)
	if got := b.files(b.results(st.Key)); !maps.Equal(got, map[string]string{"stdout": "", "stderr": ""}) {
		t.Errorf("results of nothing: %q", got)
	}
}

func testHostileOutputs(t *testing.T, s Subject) {
	if !s.Links {
		t.Skip("tasks of this adapter can't make links")
	}
	b := setUp(t, s)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("treasure"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	task := b.task("write", "d/real", "r",
		"try", "symlink", secret, "d/absolute", "try", "symlink", up+secret[1:], "d/relative", "try", "symlink", up, "d/up",
		"symlink", "real", "d/inside", "symlink", ".", "d/loop", "symlink", "nowhere", "d/dangling",
		"try", "symlink", secret, "direct", "try", "symlink", filepath.Dir(secret), "dir",
		"try", "cat", "d/relative", "try", "cat", "d/up/etc/hostname")
	task.Outputs = []string{"d", "direct", "dir", "dir/secret"}
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	got := b.files(b.results(st.Key))
	want := map[string]string{"out/d/real": "r", "out/d/inside": "r", "stderr": ""}
	delete(got, "stdout")
	if !maps.Equal(got, want) {
		t.Errorf("results %q, expected %q", got, want)
	}
	for _, name := range []string{"out/direct", "out/d/absolute", "out/d/relative", "out/dir/secret", "out/d/up" + secret} {
		if data, err := fs.ReadFile(b.results(st.Key), name); err == nil {
			t.Errorf("%s leads out: %q", name, data)
		}
	}
}

func testLogs(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("out", "first", "sleep", "400ms", "out", "second", "err", "late")
	k := b.start(task)
	r, err := b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines := bufio.NewReader(r)
	if line, err := lines.ReadString('\n'); line != "first\n" {
		t.Fatalf("live: %q, %v", line, err)
	}
	if st, _ := b.find(k); st.State != adapters.Running {
		t.Errorf("its first line came only when it was %s", st.State)
	}
	rest, err := io.ReadAll(lines)
	if string(rest) != "second\n" || err != nil {
		t.Errorf("the rest: %q, %v", rest, err)
	}
	b.expect(b.wait(k, adapters.Ended), pcm.OutcomeOK, 0)
	if got := b.logs(k, adapters.Stdout, 6, false); got != "second\n" {
		t.Errorf("from offset 6: %q", got)
	}
	if got := b.logs(k, adapters.Stdout, 1000, true); got != "" {
		t.Errorf("from beyond the end: %q", got)
	}
	if got := b.logs(k, adapters.Stderr, 0, true); got != "late\n" {
		t.Errorf("stderr: %q", got)
	}
	if _, err := b.ins.Adapter.Logs(b.ctx, k, "../status", 0, false); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("a stream of another name: %v", err)
	}

	// A reader that waits ends with its context, and with its close.
	k = b.start(b.task("sleep", "5m"))
	ctx, cancel := context.WithCancel(b.ctx)
	r, err = b.ins.Adapter.Logs(ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("reading after the context's end: %v", err)
	}
	r.Close()
	r, err = b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := io.ReadAll(r); done <- err }()
	r.Close()
	if err := <-done; err == nil {
		t.Error("reading went on to a good end after close")
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
		t.Error(err)
	}
}

func testWatch(t *testing.T, s Subject) {
	b := setUp(t, s)
	ctx, cancel := context.WithCancel(b.ctx)
	ch, err := b.ins.Adapter.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task := b.task("out", "x", "exit", "5")
	b.start(task)
	var states []adapters.State
	for st := range ch {
		if st.Key != task.Key {
			continue
		}
		states = append(states, st.State)
		if st.State == adapters.Ended {
			b.expect(st, pcm.OutcomeFailed, 5)
			break
		}
	}
	if !slices.Equal(states, []adapters.State{adapters.Running, adapters.Ended}) {
		t.Errorf("watched %v", states)
	}
	cancel()
	for range ch { // must be closed
	}
}

func testStop(t *testing.T, s Subject) {
	if !s.Signals {
		t.Skip("tasks of this adapter can't be asked to end")
	}
	b := setUp(t, s)
	k := b.start(b.task("term", "out", "ready", "sleep", "5m"))
	b.firstLine(k)
	if err := b.ins.Adapter.Stop(b.ctx, k, time.Minute, "no longer wanted"); err != nil {
		t.Fatal(err)
	}
	st := b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeStopped, -1)
	if out := b.logs(k, adapters.Stdout, 0, false); out != "ready\nasked to end\n" || st.Reason != "no longer wanted" {
		t.Errorf("stdout %q, reason %q", out, st.Reason)
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "again"); err != nil {
		t.Errorf("stop of what has ended: %v", err)
	}
	if again, _ := b.find(k); again.Reason != st.Reason {
		t.Errorf("a late stop changed the reason to %q", again.Reason)
	}

	k = b.start(b.task("deaf", "out", "ready", "sleep", "5m"))
	b.firstLine(k)
	if err := b.ins.Adapter.Stop(b.ctx, k, 300*time.Millisecond, "deaf"); err != nil {
		t.Fatal(err)
	}
	st = b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeStopped, -1)
	if st.Usage.WallMS < 300 {
		t.Errorf("killed after %d ms, before its grace was over", st.Usage.WallMS)
	}
}

// firstLine waits until the task has printed a line.
func (b *bench) firstLine(k adapters.Key) string {
	b.t.Helper()
	r, err := b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		b.t.Fatalf("first line: %q, %v", line, err)
	}
	return line
}

func testStopForce(t *testing.T, s Subject) {
	b := setUp(t, s)
	for _, steps := range [][]string{{"out", "ready", "sleep", "5m"}, {"out", "ready", "spin"}} {
		k := b.start(b.task(steps...))
		b.firstLine(k)
		if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
			t.Fatal(err)
		}
		st := b.wait(k, adapters.Ended)
		b.expect(st, pcm.OutcomeStopped, -1)
		if st.Reason != "enough" {
			t.Errorf("reason %q", st.Reason)
		}
	}
	// At once after the start, too.
	for range 5 {
		k := b.start(b.task("sleep", "5m"))
		if err := b.ins.Adapter.Stop(b.ctx, k, 0, "never mind"); err != nil {
			t.Fatal(err)
		}
		b.expect(b.wait(k, adapters.Ended), pcm.OutcomeStopped, -1)
	}
}

func testTimeLimit(t *testing.T, s Subject) {
	b := setUp(t, s)
	for _, steps := range [][]string{{"sleep", "5m"}, {"spin"}} {
		task := b.task(steps...)
		task.Limit = 400 * time.Millisecond
		st := b.run(task)
		b.expect(st, pcm.OutcomeTimeLimit, -1)
		if st.Usage.Wall() < task.Limit || st.Usage.Wall() > task.Limit+10*time.Second {
			t.Errorf("ended after %s at a limit of %s", st.Usage.Wall(), task.Limit)
		}
		if !strings.Contains(st.Reason, "time limit") {
			t.Errorf("reason %q", st.Reason)
		}
	}
}

func testLease(t *testing.T, s Subject) {
	b := setUp(t, s)
	fencer, ok := b.ins.Adapter.(adapters.Fencer)
	if !ok {
		t.Skip("this adapter can't end attempts by itself")
	}
	short, long := b.task("sleep", "5m"), b.task("sleep", "1500ms", "out", "survived")
	short.Deadline = adapters.Now().Add(time.Second)
	long.Deadline = short.Deadline
	b.start(short)
	b.start(long)
	ghost := NewTask().Key
	err := fencer.Extend(b.ctx, map[adapters.Key]adapters.BootTime{
		long.Key: adapters.Now().Add(time.Minute), ghost: adapters.Now().Add(time.Minute),
		short.Key: adapters.Now(), // never back: this changes nothing
	})
	if err != nil {
		t.Fatal(err)
	}
	st := b.wait(short.Key, adapters.Ended)
	b.expect(st, pcm.OutcomeSeller, -1)
	if !strings.HasPrefix(st.Reason, "lease ended") || short.Deadline.Until() > 0 {
		t.Errorf("reason %q, %s before its lease's end", st.Reason, short.Deadline.Until())
	}
	b.expect(b.wait(long.Key, adapters.Ended), pcm.OutcomeOK, 0)
}

func testMemory(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("alloc", "400", "out", "fits")
	task.Resources.Memory = 128 << 20
	st := b.run(task)
	if s.Memory {
		b.expect(st, pcm.OutcomeMemory, -1)
	} else {
		b.expect(st, pcm.OutcomeFailed, -1)
	}
	task = b.task("alloc", "400", "out", "fits")
	task.Resources.Memory = 16 << 30 // also enough for a task with the race detector in it
	b.expect(b.run(task), pcm.OutcomeOK, 0)
}

// A task that gets too little memory to begin with is refused or ends for want
// of it; others start as before, however often that was tried.
func testTooLittleMemory(t *testing.T, s Subject) {
	b := setUp(t, s)
	for _, memory := range []pcm.Bytes{512, pcm.MinMemory} {
		for range 8 {
			task := b.task("alloc", "400")
			task.Resources.Memory = memory
			err := b.ins.Adapter.Start(b.ctx, task)
			if code := pcm.ErrorCode(err); code == pcm.Invalid || code == pcm.Refused {
				continue
			}
			if err != nil {
				t.Fatalf("memory %s: %v", memory, err)
			}
			if st := b.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeMemory && st.Outcome != pcm.OutcomeFailed {
				t.Errorf("memory %s: ended as %s, %q", memory, st.Outcome, st.Reason)
			}
		}
	}
	for range 8 {
		b.expect(b.run(b.task("out", "fits")), pcm.OutcomeOK, 0)
	}
}

func testOutputCap(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("flood", "100000000", "sleep", "5m")
	task.OutputCap = 50000
	st := b.run(task)
	b.expect(st, pcm.OutcomeOutput, -1)
	if got := b.logs(st.Key, adapters.Stdout, 0, false); len(got) != 50000 {
		t.Errorf("%d bytes were kept of 50000", len(got))
	}
	task = b.task("flood", "30000", "write", "big", strings.Repeat("x", 20000))
	task.OutputCap, task.Outputs = 49000, []string{"big"}
	b.expect(b.run(task), pcm.OutcomeOutput, -1)
	task = b.task("flood", "30000", "write", "big", strings.Repeat("x", 20000))
	task.OutputCap, task.Outputs = 50100, []string{"big"}
	b.expect(b.run(task), pcm.OutcomeOK, 0)
}

func testRemove(t *testing.T, s Subject) {
	b := setUp(t, s)
	task := b.task("out", "ready", "sleep", "5m")
	k := b.start(task)
	b.firstLine(k)
	if err := b.ins.Adapter.Remove(b.ctx, k); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("remove of what runs: %v", err)
	}
	if _, err := b.ins.Adapter.Results(b.ctx, k); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("results of what runs: %v", err)
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	b.wait(k, adapters.Ended)
	for range 2 {
		if err := b.ins.Adapter.Remove(b.ctx, k); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, ok := b.find(k); ok {
		t.Error("listed after its removal")
	}
	if _, err := b.ins.Adapter.Results(b.ctx, k); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("results after removal: %v", err)
	}
}

func testMany(t *testing.T, s Subject) {
	b := setUp(t, s)
	const n = 24
	ch, err := b.ins.Adapter.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := b.task()
	var wg sync.WaitGroup
	for i := range n {
		task := b.task("out", "mine", "exit", string(rune('0'+i%10)))
		task.Trade, task.Job, task.Index, task.Count = first.Trade, first.Job, i, n
		wg.Go(func() {
			if err := b.ins.Adapter.Start(b.ctx, task); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	left := n
	for st := range ch {
		if st.State == adapters.Ended {
			want := st.Index % 10
			if st.ExitCode != want {
				t.Errorf("task %d: exit code %d (%s)", st.Index, st.ExitCode, st.Reason)
			}
			if left--; left == 0 {
				break
			}
		}
	}
	all, err := b.ins.Adapter.List(b.ctx)
	if err != nil || len(all) != n {
		t.Errorf("%d of %d listed, %v", len(all), n, err)
	}
}

func testAdoption(t *testing.T, s Subject) {
	b := setUp(t, s)
	before := b.run(b.task("out", "before", "exit", "4"))
	running := b.task("out", "ready", "sleep", "700ms", "out", "went on")
	b.start(running)
	b.firstLine(running.Key)
	watch, err := b.ins.Adapter.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}

	b.ins.Adapter = b.ins.Reconnect()
	for range watch { // the lost one's watch must be closed
	}
	if st, ok := b.find(running.Key); !ok || st.State != adapters.Running || st.Fence != running.Fence {
		t.Fatalf("after the restart: %+v, %v", st, ok)
	}
	if st, ok := b.find(before.Key); !ok || st.ExitCode != 4 || st.Outcome != pcm.OutcomeFailed {
		t.Errorf("what had ended: %+v, %v", st, ok)
	}
	b.start(running) // again: must not run twice
	b.expect(b.wait(running.Key, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(running.Key, adapters.Stdout, 0, true); out != "ready\nwent on\n" {
		t.Errorf("stdout %q", out)
	}
}

func testHung(t *testing.T, s Subject) {
	b := setUp(t, s)
	if b.ins.Hang == nil {
		t.Skip("this back end can't be made to hang")
	}
	k := b.start(b.task("out", "x"))
	b.wait(k, adapters.Ended)
	resume := b.ins.Hang()
	defer resume()
	for name, call := range map[string]func(context.Context) error{
		"list":   func(ctx context.Context) error { _, err := b.ins.Adapter.List(ctx); return err },
		"start":  func(ctx context.Context) error { return b.ins.Adapter.Start(ctx, b.task("out", "y")) },
		"stop":   func(ctx context.Context) error { return b.ins.Adapter.Stop(ctx, k, 0, "x") },
		"remove": func(ctx context.Context) error { return b.ins.Adapter.Remove(ctx, NewTask().Key) },
	} {
		ctx, cancel := context.WithTimeout(b.ctx, 200*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if pcm.ErrorCode(err) != pcm.Unavailable || time.Since(began) > 20*time.Second {
			t.Errorf("%s of a hung back end: %v after %s", name, err, time.Since(began))
		}
	}
	resume()
	b.expect(b.run(b.task("out", "back")), pcm.OutcomeOK, 0)
}
