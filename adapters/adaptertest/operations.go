package adaptertest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func testSuspend(b *bench) {
	t := b.t
	a, ok := b.ins.Adapter.(adapters.Suspender)
	b.needs(ok && b.offers(pcm.FeatureSuspend), "the adapter is no Suspender whose pools say so")
	ticks, k, st := 20, adapters.Key{}, adapters.Status{}
	for ; st.State != adapters.Suspended; ticks *= 2 { // it may be over before a slow back end gets to it
		k = b.start(b.task("ticks", strconv.Itoa(ticks), b.times(0.25), "out", "over"))
		b.firstLine(k)
		for range 2 { // again: nothing
			if err := a.Suspend(b.ctx, k); err != nil && !gone(err) {
				t.Fatal(err)
			}
		}
		b.until("it is suspended, or has ended", func() bool { st, _ = b.find(k); return st.State == adapters.Suspended || st.State == adapters.Ended })
	}
	ticks /= 2
	b.after(b.pace(1)) // what was on its way
	before := b.logs(k, adapters.Stdout, 0, false)
	b.after(b.pace(2))
	if after := b.logs(k, adapters.Stdout, 0, false); after != before {
		t.Errorf("it went on while it was suspended: %q, then %q", before, after)
	}
	if x, ok := b.ins.Adapter.(adapters.Execer); ok && b.offers(pcm.FeatureExec) {
		// It runs where only the task's own processes stand still; else it must be
		// refused, since it would wait for as long as the task does.
		_, err := x.Exec(b.ctx, k, adapters.Exec{Command: []string{"true"}, Stdout: io.Discard, Stderr: io.Discard})
		if err != nil && !gone(err) {
			t.Errorf("a command beside what is suspended: %v", err)
		}
	}
	for range 2 {
		if err := a.Resume(b.ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	b.expect(b.wait(k, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(k, adapters.Stdout, 0, false); strings.Count(out, "tick") != ticks || !strings.HasSuffix(out, "over\n") {
		t.Errorf("stdout %q", out)
	}
	// What is suspended can be stopped, and its time limit holds.
	stopped, limited := b.task("out", "ready", "sleep", "5m"), b.task("out", "ready", "sleep", "5m")
	limited.Limit = b.pace(5)
	for _, task := range []adapters.Task{stopped, limited} {
		b.start(task)
		b.firstLine(task.Key)
		if err := a.Suspend(b.ctx, task.Key); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.ins.Adapter.Stop(b.ctx, stopped.Key, b.pace(1), "enough"); err != nil {
		t.Fatal(err)
	}
	b.expect(b.wait(stopped.Key, adapters.Ended), pcm.OutcomeStopped, -1)
	b.expect(b.wait(limited.Key, adapters.Ended), pcm.OutcomeTimeLimit, -1)
	for _, key := range []adapters.Key{stopped.Key, NewTask().Key} {
		if err := a.Suspend(b.ctx, key); !gone(err) {
			t.Errorf("suspend of what doesn't run: %v", err)
		}
		if err := a.Resume(b.ctx, key); !gone(err) {
			t.Errorf("resume of what doesn't run: %v", err)
		}
	}
}

// gone tells whether an error says that an attempt doesn't run.
func gone(err error) bool {
	code := pcm.ErrorCode(err)
	return err != nil && (code == pcm.NotFound || code == pcm.Conflict)
}

func testExec(b *bench) {
	t := b.t
	a, ok := b.ins.Adapter.(adapters.Execer)
	b.needs(ok && b.offers(pcm.FeatureExec), "the adapter is no Execer whose pools say so")
	task := b.task("write", "mine", "of the task", "out", "ready", "await", "made", "out", "over")
	task.Env = maps.Clone(task.Env)
	if task.Env == nil {
		task.Env = map[string]string{}
	}
	task.Env["GREETING"] = "hello"
	command := b.s.Exec
	if command == nil {
		command = func(steps ...string) []string { return append([]string{task.Command[0]}, steps...) }
	}
	k := b.start(task)
	b.firstLine(k)
	exec := func(ctx context.Context, x adapters.Exec, steps ...string) (string, string, int, error) {
		var out, errs bytes.Buffer
		x.Command, x.Stdout, x.Stderr = command(steps...), &out, &errs
		code, err := a.Exec(ctx, k, x)
		return out.String(), errs.String(), code, err
	}
	if out, errs, code, err := exec(b.ctx, adapters.Exec{}, "cat", "mine", "out", "", "err", "e", "exit", "7"); err != nil || out != "of the task\n" || errs != "e\n" || code != 7 {
		t.Errorf("exec: %q, %q, %d, %v", out, errs, code, err)
	}
	if out, _, code, err := exec(b.ctx, adapters.Exec{}, "env"); err != nil || code != 0 || !strings.Contains(out, "GREETING=hello\n") || strings.Contains(out, "PCM_TEST_SECRET") {
		t.Errorf("environment: %q, %d, %v", out, code, err)
	}
	text := strings.Repeat("0123456789abcdef", 16<<10)
	if out, _, code, err := exec(b.ctx, adapters.Exec{Stdin: strings.NewReader(text)}, "echo"); err != nil || code != 0 || out != text {
		t.Errorf("%d bytes of standard input came back as %d, %d, %v", len(text), len(out), code, err)
	}
	if out, _, code, err := exec(b.ctx, adapters.Exec{TTY: true, Rows: 33, Cols: 77}, "window"); err != nil || code != 0 || !strings.Contains(out, "33 77") {
		t.Errorf("terminal: %q, %d, %v", out, code, err)
	}
	// It ends with its context.
	ctx, cancel := context.WithTimeout(b.ctx, b.pace(1))
	began := time.Now()
	_, _, code, err := exec(ctx, adapters.Exec{}, "sleep", "5m")
	cancel()
	if err == nil && code == 0 || time.Since(began) > 20*time.Second {
		t.Errorf("after its context: %d, %v, after %s", code, err, time.Since(began))
	}
	if _, _, code, err := exec(b.ctx, adapters.Exec{}, "write", "made", "x"); err != nil || code != 0 && code != 137 { // 137: ended with the task that it ends
		t.Errorf("exec: %d, %v", code, err)
	}
	st := b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeOK, 0)
	if _, _, _, err := exec(b.ctx, adapters.Exec{}, "out", "x"); !gone(err) {
		t.Errorf("exec in what has ended: %v", err)
	}
}

// archive makes a tar stream; names that end in / are folders, texts that begin with -> links.
func archive(files ...string) *bytes.Buffer {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Typeflag: tar.TypeReg}
		to, link := strings.CutPrefix(files[i+1], "->")
		switch {
		case strings.HasSuffix(files[i], "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case link:
			h.Typeflag, h.Linkname = tar.TypeSymlink, to
		default:
			h.Size = int64(len(files[i+1]))
		}
		w.WriteHeader(h)
		if h.Size > 0 {
			io.WriteString(w, files[i+1])
		}
	}
	w.Close()
	return &buf
}

func testCopy(b *bench) {
	t := b.t
	a, ok := b.ins.Adapter.(adapters.Copier)
	b.needs(ok && b.offers(pcm.FeatureCopy), "the adapter is no Copier whose pools say so")
	k := b.start(b.task("write", "d/one", "1", "write", "d/e/two", "2", "try", "symlink", "/etc/passwd", "d/leak", "try", "symlink", "/", "root",
		"out", "ready", "await", "in/go", "cat", "in/a", "cat", "in/sub/b", "out", "over"))
	b.firstLine(k)
	read := func(path string) (map[string]string, error) {
		var buf bytes.Buffer
		if err := a.CopyOut(b.ctx, k, path, &buf); err != nil {
			return nil, err
		}
		all := map[string]string{}
		r := tar.NewReader(&buf)
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			if err != nil {
				return nil, err
			}
			if data, _ := io.ReadAll(r); h.Typeflag == tar.TypeReg {
				all[strings.TrimPrefix(h.Name, "./")] = string(data)
			}
		}
	}
	if got, err := read("d/one"); err != nil || len(got) != 1 || got["one"] != "1" {
		t.Errorf("a file: %v, %v", got, err)
	}
	if got, err := read("d"); err != nil || len(got) != 2 || got["d/one"] != "1" || got["d/e/two"] != "2" {
		t.Errorf("a folder: %v, %v", got, err)
	}
	for _, path := range []string{"absent", "../x", "/etc/passwd", "root/etc/passwd", "d/leak"} {
		if got, err := read(path); err == nil && len(got) > 0 {
			t.Errorf("%s: %v", path, got)
		} else if code := pcm.ErrorCode(err); err != nil && code != pcm.NotFound && code != pcm.Invalid && code != pcm.Refused && code != pcm.Forbidden {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, hostile := range [][]string{{"../../out", "x"}, {"/tmp/pcm-out", "x"}, {"l", "->/tmp", "l/pcm-out", "x"}} {
		a.CopyIn(b.ctx, k, "h", archive(hostile...)) // what counts is what it leaves
	}
	outside := []string{"../up", "/tmp"}
	if !strings.Contains(b.logs(k, adapters.Stdout, 0, false), "refused") { // it could make the link
		outside = append(outside, "root/tmp")
	}
	for _, folder := range outside {
		if err := a.CopyIn(b.ctx, k, folder, archive("pcm-out", "x")); err == nil {
			t.Errorf("copied into %s", folder)
		}
	}
	for _, name := range []string{"/tmp/pcm-out", "/tmp/up/pcm-out"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("a copy made %s", name)
			os.Remove(name)
		}
	}
	if err := a.CopyIn(b.ctx, k, "in", archive("sub/", "", "a", "alpha\n", "sub/b", "beta\n", "go", "x")); err != nil {
		t.Fatal(err)
	}
	b.expect(b.wait(k, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(k, adapters.Stdout, 0, false); !strings.HasSuffix(out, "ready\nalpha\nbeta\nover\n") {
		t.Errorf("stdout %q", out)
	}
	if err := a.CopyIn(b.ctx, NewTask().Key, "in", archive("a", "x")); !gone(err) {
		t.Errorf("copy to what doesn't run: %v", err)
	}
}

func testService(b *bench) {
	t := b.t
	a, ok := b.ins.Adapter.(adapters.Dialer)
	b.needs(ok && b.offers(pcm.FeatureService), "the adapter is no Dialer whose pools say so")
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that nobody has
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	task := b.task("serve", strconv.Itoa(port), "welcome", "out", "ready", "sleep", "5m")
	task.Port = port
	k := b.start(task)
	b.firstLine(k)
	for range 3 {
		c, err := a.Dial(b.ctx, k, port)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(b.s.Patience / 2))
		r := bufio.NewReader(c)
		text := strings.Repeat("x", 100<<10) + "\n"
		go io.WriteString(c, text)
		if line, err := r.ReadString('\n'); line != "welcome\n" || err != nil {
			t.Errorf("greeted with %q, %v", line, err)
		}
		if line, err := r.ReadString('\n'); line != text || err != nil {
			t.Errorf("%d of %d bytes came back, %v", len(line), len(text), err)
		}
		c.Close()
	}
	if c, err := a.Dial(b.ctx, k, port+1); err == nil {
		c.SetDeadline(time.Now().Add(b.s.Patience / 2))
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Error("a port where nobody listens answered")
		}
		c.Close()
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	b.wait(k, adapters.Ended)
	if c, err := a.Dial(b.ctx, k, port); !gone(err) && pcm.ErrorCode(err) != pcm.Unavailable {
		if err == nil {
			c.Close()
		}
		t.Errorf("dial of what has ended: %v", err)
	}
}
