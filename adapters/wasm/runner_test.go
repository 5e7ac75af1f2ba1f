package wasm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
	experimental "github.com/tetratelabs/wazero/experimental/sys"
)

func newRunner(t *testing.T, cfg RunnerConfig) *Runner {
	t.Helper()
	r, err := NewRunner(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func prepared(t *testing.T, module string, memory pcm.Bytes) *supervisor.Run {
	task := adaptertest.NewTask()
	task.Module, task.Resources.Memory = module, memory
	return &supervisor.Run{Task: task, Work: t.TempDir(), Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Started: func() {}, Stopping: make(chan supervisor.Stop)}
}

// The ends of a module, each told for what it is.
func TestEnds(t *testing.T) {
	r := newRunner(t, RunnerConfig{})
	for name, c := range map[string]struct {
		module  []byte
		memory  pcm.Bytes
		outcome pcm.Outcome
		code    int
		reason  string
	}{
		"nothing":                {adaptertest.Module("_start", -1, adaptertest.BodyNothing...), 1 << 20, pcm.OutcomeOK, 0, ""},
		"trap":                   {adaptertest.Module("_start", 1, adaptertest.BodyTrap...), 1 << 20, pcm.OutcomeFailed, 134, "trap: unreachable"},
		"grows for ever":         {adaptertest.Module("_start", 1, adaptertest.BodyGrow...), 1 << 20, pcm.OutcomeMemory, 134, "wanted more than its 1MiB"},
		"too big from the start": {adaptertest.Module("_start", 64, adaptertest.BodyNothing...), 1 << 20, pcm.OutcomeMemory, 134, "wanted more than its 1MiB"},
		"just fits":              {adaptertest.Module("_start", 16, adaptertest.BodyNothing...), 1 << 20, pcm.OutcomeOK, 0, ""},
		"default memory":         {adaptertest.Module("_start", 16, adaptertest.BodyNothing...), 0, pcm.OutcomeOK, 0, ""},
		"a library":              {adaptertest.Module("run", 1), 1 << 20, pcm.OutcomeFailed, 126, "no _start"},
		"garbage":                {[]byte("#!/bin/sh\n"), 1 << 20, pcm.OutcomeFailed, 126, "not a WebAssembly module"},
		"empty":                  {nil, 1 << 20, pcm.OutcomeFailed, 126, "not a WebAssembly module"},
		"cut short":              {adaptertest.Module("_start", 1)[:30], 1 << 20, pcm.OutcomeFailed, 126, "not a WebAssembly module"},
	} {
		exit := r.Run(t.Context(), prepared(t, write(t, c.module), c.memory))
		if exit.Outcome != c.outcome || exit.Code != c.code || !strings.Contains(exit.Reason, c.reason) {
			t.Errorf("%s: %+v", name, exit)
		}
	}
	if exit := r.Run(t.Context(), prepared(t, "/no/such/module", 0)); exit.Outcome != pcm.OutcomeSeller {
		t.Errorf("no module: %+v", exit)
	}
	if exit := r.Run(t.Context(), prepared(t, t.TempDir(), 0)); exit.Outcome != pcm.OutcomeFailed || exit.Code != 126 {
		t.Errorf("a folder: %+v", exit)
	}
	small := newRunner(t, RunnerConfig{MaxModule: 10})
	if exit := small.Run(t.Context(), prepared(t, write(t, adaptertest.Module("_start", 1)), 0)); exit.Code != 126 || !strings.Contains(exit.Reason, "at most") {
		t.Errorf("too large: %+v", exit)
	}
}

// A module that never ends, ends when it is told to.
func TestEndless(t *testing.T) {
	r := newRunner(t, RunnerConfig{})
	module := write(t, adaptertest.Module("_start", 1, adaptertest.BodyLoop...))
	ctx, cancel := context.WithCancel(t.Context())
	run := prepared(t, module, 1<<20)
	run.Started = cancel
	if exit := r.Run(ctx, run); exit.Outcome != pcm.OutcomeFailed || exit.Code != 137 {
		t.Errorf("killed: %+v", exit)
	}
	stop := make(chan supervisor.Stop, 1)
	stop <- supervisor.Stop{}
	run = prepared(t, module, 1<<20)
	run.Stopping = stop
	if exit := r.Run(t.Context(), run); exit.Outcome != pcm.OutcomeFailed {
		t.Errorf("stopped: %+v", exit)
	}
}

// Compiled modules are kept within bounds, and never freed under a user.
func TestModules(t *testing.T) {
	r := newRunner(t, RunnerConfig{MaxModules: 2})
	var paths []string
	for i := range 5 {
		paths = append(paths, write(t, adaptertest.Module("_start", i+1)))
	}
	held, err := r.modules.get(t.Context(), paths[0])
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 40 {
				if exit := r.Run(t.Context(), prepared(t, paths[i%5], 1<<20)); exit.Outcome != pcm.OutcomeOK {
					t.Errorf("%+v", exit)
				}
			}
		})
	}
	wg.Wait()
	if n := r.modules.order.Len(); n != 2 || len(r.modules.known) != 2 {
		t.Errorf("%d and %d modules are kept", n, len(r.modules.known))
	}
	if held.element == nil && held.users != 1 {
		t.Errorf("%d users", held.users)
	}
	r.modules.put(held)

	// A file that changes is another module.
	p := write(t, adaptertest.Module("_start", 1))
	if exit := r.Run(t.Context(), prepared(t, p, 1<<20)); exit.Outcome != pcm.OutcomeOK {
		t.Errorf("%+v", exit)
	}
	if err := os.WriteFile(p, adaptertest.Module("_start", 1, adaptertest.BodyTrap...), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit := r.Run(t.Context(), prepared(t, p, 1<<20)); exit.Code != 134 {
		t.Errorf("the old module still runs: %+v", exit)
	}
}

// Everything that a module could try with paths stays in its folder.
func TestRoot(t *testing.T) {
	top := t.TempDir()
	work, in := filepath.Join(top, "work"), filepath.Join(top, "in")
	for _, d := range []string{work, in, filepath.Join(in, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"secret": "treasure", "in/a": "alpha", "in/sub/b": "beta", "one": "single"} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := newRoot(work, []adapters.Mount{{Path: in, Target: "in"}, {Path: filepath.Join(top, "one"), Target: "d/one"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	// Links as a hostile process adapter, or a bug, could leave them.
	for name, to := range map[string]string{"abs": filepath.Join(top, "secret"), "up": "../secret", "dir": "..", "ok": "mine"} {
		if err := os.Symlink(to, filepath.Join(work, name)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(p string, flag experimental.Oflag) (string, experimental.Errno) {
		f, errno := r.OpenFile(p, flag, 0)
		if errno != 0 {
			return "", errno
		}
		defer f.Close()
		buf := make([]byte, 100)
		n, errno := f.Read(buf)
		return string(buf[:n]), errno
	}
	f, errno := r.OpenFile("mine", experimental.O_RDWR|experimental.O_CREAT|experimental.O_EXCL, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if n, errno := f.Pwrite([]byte("abc"), 2); n != 3 || errno != 0 {
		t.Errorf("pwrite: %d, %v", n, errno)
	}
	if errno := f.SetAppend(true); errno != 0 || !f.IsAppend() {
		t.Errorf("append: %v", errno)
	}
	f.Write([]byte("de"))
	if at, errno := f.Seek(2, 0); at != 2 || errno != 0 {
		t.Errorf("seek: %d, %v", at, errno)
	}
	buf := make([]byte, 9)
	if n, errno := f.Read(buf); string(buf[:n]) != "abcde" || errno != 0 {
		t.Errorf("read %q, %v", buf[:n], errno)
	}
	if errno := f.Truncate(3); errno != 0 {
		t.Errorf("truncate: %v", errno)
	}
	if errno := f.Utimens(experimental.UTIME_OMIT, 1e9); errno != 0 {
		t.Errorf("utimens: %v", errno)
	}
	if st, errno := f.Stat(); st.Size != 3 || st.Mtim != 1e9 || errno != 0 {
		t.Errorf("stat: %+v, %v", st, errno)
	}
	f.Close()
	if _, errno := f.Read(buf); errno != experimental.EBADF {
		t.Errorf("read of a closed file: %v", errno)
	}

	for p, want := range map[string]string{"in/a": "alpha", "in/sub/b": "beta", "d/one": "single", "ok": "\x00\x00a", "./in/../in/a": "alpha", "in/sub/../a": "alpha"} {
		if got, errno := read(p, experimental.O_RDONLY); got != want || errno != 0 {
			t.Errorf("%s: %q, %v", p, got, errno)
		}
	}
	for _, p := range []string{"../secret", "/../secret", "abs", "up", "dir/secret", "in/../../secret", "in/sub/../../../secret", "dir/in/a", "secret", filepath.Join(top, "secret")} {
		if got, errno := read(p, experimental.O_RDONLY); errno == 0 {
			t.Errorf("%s leads to %q", p, got)
		}
	}
	for what, errno := range map[string]experimental.Errno{
		"rename out":      r.Rename("mine", "dir/mine"),
		"rename in":       r.Rename("dir/secret", "stolen"),
		"link in":         r.Link("up", "stolen"),
		"link of outside": r.Link("dir/secret", "stolen"),
		"mkdir out":       r.Mkdir("dir/new", 0o755),
		"unlink out":      r.Unlink("dir/secret"),
		"chmod out":       r.Chmod("up", 0o777),
		"utimens out":     r.Utimens("up", 0, 0),
		"absolute link":   r.Symlink("/etc", "etc"),
		"write through":   second(r.OpenFile("up", experimental.O_WRONLY|experimental.O_TRUNC, 0)),
		"create through":  second(r.OpenFile("dir/new", experimental.O_WRONLY|experimental.O_CREAT, 0o644)),
		"no follow":       second(r.OpenFile("ok", experimental.O_NOFOLLOW, 0)),
		"not a folder":    second(r.OpenFile("mine/", 0, 0)),
		"below a file":    second(r.OpenFile("d/one/x", 0, 0)),
	} {
		// A hard link to a link is the link itself, which leads nowhere.
		if errno == 0 && what != "link in" {
			t.Errorf("%s went through", what)
		}
	}
	for what, errno := range map[string]experimental.Errno{
		"write":  second(r.OpenFile("in/a", experimental.O_RDWR, 0)),
		"trunc":  second(r.OpenFile("d/one", experimental.O_TRUNC, 0)),
		"create": second(r.OpenFile("in/new", experimental.O_CREAT, 0)),
		"mkdir":  r.Mkdir("in/new", 0o755), "rmdir": r.Rmdir("in/sub"), "unlink": r.Unlink("in/a"), "unlink one": r.Unlink("d/one"),
		"chmod": r.Chmod("in/a", 0), "rename from": r.Rename("in/a", "x"), "rename to": r.Rename("mine", "in/x"),
		"link": r.Link("in/a", "x"), "symlink": r.Symlink("a", "in/x"), "utimens": r.Utimens("in/a", 0, 0),
	} {
		if errno != experimental.EROFS {
			t.Errorf("%s of an input: %v", what, errno)
		}
	}
	if data, err := os.ReadFile(filepath.Join(top, "secret")); string(data) != "treasure" || err != nil {
		t.Errorf("outside: %q, %v", data, err)
	}
	if entries, _ := os.ReadDir(top); len(entries) != 4 {
		t.Errorf("outside: %v", entries)
	}

	d, errno := r.OpenFile(".", experimental.O_DIRECTORY, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer d.Close()
	for range 2 { // the second time after a rewind
		names := map[string]fs.FileMode{}
		list, errno := d.Readdir(-1)
		for _, e := range list {
			names[e.Name] = e.Type
			if e.Ino == 0 {
				t.Errorf("%s has no inode", e.Name)
			}
		}
		if errno != 0 || names["in"] != fs.ModeDir || names["ok"] != fs.ModeSymlink || len(names) < 6 {
			t.Errorf("%v, %v", names, errno)
		}
		if _, errno := d.Seek(0, 0); errno != 0 {
			t.Error(errno)
		}
	}
	if errno := r.Unlink("d"); errno != experimental.EISDIR {
		t.Errorf("unlink of a folder: %v", errno)
	}
	if errno := r.Rmdir("mine"); errno != experimental.ENOTDIR {
		t.Errorf("rmdir of a file: %v", errno)
	}
	if to, errno := r.Readlink("ok"); to != "mine" || errno != 0 {
		t.Errorf("readlink: %q, %v", to, errno)
	}
}

func second[T any](_ T, errno experimental.Errno) experimental.Errno { return errno }

// A module of common size runs many times in flat memory.
func TestFlatMemory(t *testing.T) {
	module := adaptertest.BuildWASI(t, adaptertest.ScriptPackage)
	box := adaptertest.NewBox(t, "")
	a := New(Config{}, box.Client())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	runs := func(n int) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range n / 4 {
					task := adaptertest.NewTask()
					task.Module, task.Args = module, []string{"alloc", "8", "out", "hello"}
					if err := a.Start(ctx, task); err != nil {
						t.Error(err)
						return
					}
					st, err := adaptertest.Wait(ctx, a, task.Key, adapters.Ended)
					if err != nil || st.Outcome != pcm.OutcomeOK {
						t.Errorf("%+v, %v", st, err)
					}
					if err := a.Remove(ctx, task.Key); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	runs(40)
	before := rss(t, box.PID())
	runs(160)
	after := rss(t, box.PID())
	t.Logf("resident: %s after 40 runs, %s after 200", before, after)
	if after > before+24<<20 {
		t.Errorf("memory grows: %s after 40 runs, %s after 200", before, after)
	}
}

// After 10,000 runs the supervisor is no bigger than after 2,000, but for what its
// garbage collector may be behind by.
func TestTenThousandRuns(t *testing.T) {
	const most = 16 << 20 // growth
	module := write(t, adaptertest.Module("_start", 1))
	box := adaptertest.NewBox(t, "")
	a := New(Config{}, box.Client())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ends, err := a.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	runs := func(n int) pcm.Bytes {
		t.Helper()
		var g sync.WaitGroup
		slots := make(chan struct{}, 32)
		g.Go(func() {
			for range n {
				slots <- struct{}{}
				task := adaptertest.NewTask()
				task.Module, task.Resources.Memory = module, 1<<20
				if err := a.Start(ctx, task); err != nil {
					t.Error(err)
					cancel()
					return
				}
			}
		})
		for left := n; left > 0; {
			st, ok := <-ends
			if !ok {
				t.Fatal("the watch ended")
			}
			if st.State != adapters.Ended {
				continue
			}
			if st.Outcome != pcm.OutcomeOK {
				t.Fatalf("%+v", st)
			}
			left--
			g.Go(func() {
				if err := a.Remove(ctx, st.Key); err != nil {
					t.Error(err)
				}
				<-slots
			})
		}
		g.Wait()
		return rss(t, box.PID())
	}
	first := runs(2000)
	last := runs(8000)
	t.Logf("resident: %s after 2,000 runs, %s after 10,000", first, last)
	if last > first+most {
		t.Errorf("memory grows: %s after 2,000 runs, %s after 10,000", first, last)
	}
}

func rss(t *testing.T, pid int) pcm.Bytes {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return pcm.Bytes(resident * int64(os.Getpagesize()))
}
