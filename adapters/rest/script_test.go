package rest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// What runs the text that this package makes, over one log that comes whole. The
// suite runs it over the fakes of real clouds.
func TestScript(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 64)
	r := runner(t, c.settings("shell.yaml"))
	in := t.TempDir()
	for name, text := range map[string]string{"a": "alpha\n", "sub dir/b": "beta\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(in, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(in, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(in, "link")); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0123456789abcdef", 8<<10)
	for _, c := range []struct {
		name     string
		command  []string
		change   func(*adapters.Task)
		outcome  pcm.Outcome
		code     int
		out, err string
		files    map[string]string
	}{
		{name: "streams", command: []string{"sh", "-c", "echo out; echo err >&2; printf part; printf tail >&2"}, outcome: pcm.OutcomeOK, out: "out\npart", err: "err\ntail"},
		{name: "exit code", command: []string{"sh", "-c", "exit 3"}, outcome: pcm.OutcomeFailed, code: 3},
		{name: "a signal", command: []string{"sh", "-c", "kill -KILL $$"}, outcome: pcm.OutcomeFailed, code: 137},
		{name: "quotes", command: []string{"printf", "%s|", "it's", "$HOME `x` \\", "", "*", "a\nb"}, outcome: pcm.OutcomeOK, out: "it's|$HOME `x` \\||*|a\nb|"},
		{name: "long", command: []string{"sh", "-c", "printf %s " + long[:60<<10] + "; printf %s " + long[:40<<10] + " >&2"}, outcome: pcm.OutcomeOK, out: long[:60<<10], err: long[:40<<10]},
		{name: "environment", command: []string{"env"}, outcome: pcm.OutcomeOK,
			change: func(t *adapters.Task) {
				t.Env = map[string]string{"A": "it's \"$x\"", "odd-name": "x", "PCM_TASK_INDEX": "forged"}
			}},
		{name: "files", command: []string{"sh", "-c", "cat in/a in/link 'in/sub dir/b' one; mkdir -p d/e; echo r >d/e/real; ln -s real d/e/inside; ln -s /etc d/out; echo s >secret; echo x >-x"}, outcome: pcm.OutcomeOK,
			change: func(t *adapters.Task) {
				t.Inputs = []adapters.Mount{{Path: in, Target: "in"}, {Path: filepath.Join(in, "a"), Target: "one"}}
				t.Outputs = []string{"d", "absent", "d/out/passwd", "-x"}
			}, out: "alpha\nalpha\nbeta\nalpha\n", files: map[string]string{"d/e/real": "r\n", "-x": "x\n"}},
		{name: "too much", command: []string{"sh", "-c", "head -c 100000 /dev/zero >big"}, outcome: pcm.OutcomeOutput,
			change: func(t *adapters.Task) { t.Outputs, t.OutputCap = []string{"big"}, 50000 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			run, o := runOf(t, c.command...)
			if c.change != nil {
				c.change(&run.Task)
			}
			exit := within(t, r, run)
			if exit.Outcome != c.outcome || c.code != 0 && exit.Code != c.code || exit.Outcome == pcm.OutcomeFailed && exit.Code != c.code {
				t.Errorf("%+v", exit)
			}
			if c.name == "environment" {
				for _, want := range []string{"A=it's \"$x\"\n", "odd-name=x\n", "PCM_TASK_INDEX=0\n", "PCM_ATTEMPT=" + run.Key.String() + "\n"} {
					if !strings.Contains(o.out.String(), want) {
						t.Errorf("%q is not in %q", want, o.out.String())
					}
				}
			} else if o.out.String() != c.out || o.errs.String() != c.err {
				t.Errorf("stdout %.200q, stderr %.200q", o.out.String(), o.errs.String())
			}
			if c.files == nil {
				return
			}
			got := map[string]string{}
			filepath.Walk(run.Work, func(p string, info os.FileInfo, err error) error {
				if err == nil && info.Mode().IsRegular() {
					rel, _ := filepath.Rel(run.Work, p)
					data, _ := os.ReadFile(p)
					got[rel] = string(data)
				}
				return nil
			})
			for name, text := range c.files {
				if got[name] != text {
					t.Errorf("%s is %q", name, got[name])
				}
			}
			if len(got) != len(c.files) {
				t.Errorf("files %q", got)
			}
		})
	}
}

// A script hands SIGTERM on, and says what came of it.
func TestScriptStopped(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("shell.yaml"))
	run, o := runOf(t, "sh", "-c", `trap 'trap "" TERM; echo asked; exit 7' TERM; echo ready; while :; do sleep 0.1; done`)
	stop := make(chan supervisor.Stop, 1)
	run.Stopping = stop
	go func() {
		until(t, "it has said that it is ready", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.jobs) == 0 {
				return false
			}
			data, _ := os.ReadFile(filepath.Join(filepath.Dir(c.jobs[0].dir), "stdout"))
			return strings.Contains(string(data), "ready\n")
		})
		stop <- supervisor.Stop{}
	}()
	exit := within(t, r, run)
	if exit.Outcome == pcm.OutcomeOK || exit.Code != 7 || o.out.String() != "ready\nasked\n" {
		t.Errorf("%+v, stdout %q", exit, o.out.String())
	}
	if exit.Memory == 0 {
		t.Error("it used no memory")
	}
}

// What is killed leaves what it has said, and keeps nobody waiting for more.
func TestScriptKilled(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("shell.yaml"))
	run, o := runOf(t, "sh", "-c", "echo ready; exec sleep 300")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan supervisor.Exit, 1)
	go func() { ended <- r.Run(ctx, run) }()
	until(t, "it runs", func() bool { return o.started() == 1 })
	cancel()
	if exit := <-ended; exit.Outcome == pcm.OutcomeOK || exit.Reason != "ended by force" {
		t.Errorf("%+v", exit)
	}
}

// All words of a script get a value, and nothing that a task brings is taken for one.
func TestScriptWords(t *testing.T) {
	word := regexp.MustCompile(`@[A-Z]+@`)
	task := adapters.Task{Key: adapters.Key{Trade: "trd-x"}, Command: []string{"echo", "@NONCE@"}, Outputs: []string{"out"}, OutputCap: 1 << 20}
	url := map[string]any{"url": "https://store.example/x"}
	for _, tail := range []bool{false, true} {
		for _, data := range []map[string]any{nil, {"pack": "files"}, {"outputs": url, "streams": map[string]any{"stdout": url, "stderr": url}}} {
			text := script(task, "job", "pcm-nonce-", data, tail)
			if left := word.FindAllString(text, -1); len(left) != 1 || left[0] != "@NONCE@" || !strings.Contains(text, "'echo' '@NONCE@'") {
				t.Errorf("tail %t, data %v: %q stays", tail, data, left)
			}
		}
		left := map[string]bool{}
		for _, w := range word.FindAllString(ScriptText(tail), -1) {
			left[strings.Trim(w, "@")] = true
		}
		for _, w := range ScriptWords {
			if !left[w] && (tail || w != "LIMIT") {
				t.Errorf("tail %t: the text has no %s", tail, w)
			}
			delete(left, w)
		}
		if len(left) > 0 {
			t.Errorf("tail %t: generated adapters would have to fill in %v, which ScriptWords lacks", tail, left)
		}
	}
}
