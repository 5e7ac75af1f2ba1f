package adaptertest

import (
	"errors"
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

func testPools(b *bench) {
	t := b.t
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

func testExit(b *bench) {
	t := b.t
	st := b.run(b.task("out", "hello", "err", "world"))
	b.expect(st, pcm.OutcomeOK, 0)
	if st.Started.IsZero() || time.Since(st.Started) > b.s.Patience || st.Usage.WallMS < 0 {
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

func testIdempotent(b *bench) {
	t := b.t
	task := b.task("out", "once", "sleep", b.times(0.75))
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

func testRefusals(b *bench) {
	t := b.t
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

func testMissing(b *bench) {
	t := b.t
	b.needs(b.s.Missing != nil, "the subject names no program that isn't there")
	task := b.task("out", "x")
	b.s.Missing(&task)
	st := b.run(task)
	b.expect(st, pcm.OutcomeFailed, 127)
	if !strings.Contains(st.Reason, "not found") {
		t.Errorf("reason: %q", st.Reason)
	}
}

func testEnvironment(b *bench) {
	t := b.t
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
		if k, _, _ := strings.Cut(line, "="); !slices.Contains(allowed, k) && !slices.ContainsFunc(b.s.Env, func(own string) bool {
			prefix, all := strings.CutSuffix(own, "*")
			return k == own || all && strings.HasPrefix(k, prefix)
		}) {
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

func testInputs(b *bench) {
	t := b.t
	dir := folder(t)
	task := b.task("cat", "in/a.txt", "cat", "in/sub/b.txt", "cat", "in/link", "cat", "deep/er/one.txt", "ls", "in", "write", "mine", "ok", "out", "done")
	task.Inputs = append(task.Inputs, adapters.Mount{Path: dir, Target: "in"}, adapters.Mount{Path: filepath.Join(dir, "a.txt"), Target: "deep/er/one.txt"})
	task.Outputs = []string{"."}
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	out := b.logs(st.Key, adapters.Stdout, 0, false)
	if out != "alpha\nbeta\nalpha\nalpha\na.txt\nlink\nsub\ndone\n" {
		t.Errorf("the task saw %q", out)
	}
	unchanged(t, dir)
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

func testReadOnlyInputs(b *bench) {
	t := b.t
	dir := folder(t)
	task := b.task("try", "append", "in/a.txt", "!", "try", "write", "in/new", "!", "try", "append", "deep/er/one.txt", "!", "out", "done")
	task.Inputs = append(task.Inputs, adapters.Mount{Path: dir, Target: "in"}, adapters.Mount{Path: filepath.Join(dir, "a.txt"), Target: "deep/er/one.txt"})
	st := b.run(task)
	b.expect(st, pcm.OutcomeOK, 0)
	out := b.logs(st.Key, adapters.Stdout, 0, false)
	if strings.Count(out, "refused: ") != 3 || !strings.HasSuffix(out, "done\n") {
		t.Errorf("the task saw %q", out)
	}
	unchanged(t, dir)
}

// unchanged checks that the folder is as it was made.
func unchanged(t *testing.T, dir string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	a, err1 := os.ReadFile(filepath.Join(dir, "a.txt"))
	sub, err2 := os.ReadFile(filepath.Join(dir, "sub/b.txt"))
	if err = errors.Join(err, err1, err2); err != nil || len(names) != 3 || string(a) != "alpha\n" || string(sub) != "beta\n" {
		t.Errorf("the input is changed: %v, %q, %q, %v", names, a, sub, err)
	}
}

func testOutputs(b *bench) {
	t := b.t
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

func testHostileOutputs(b *bench) {
	t := b.t
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
