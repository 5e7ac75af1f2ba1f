package supervisor

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// fake runs tasks by the first word of their command.
type fake struct {
	mu    sync.Mutex
	swept []adapters.Key
}

func (f *fake) Name() string                { return "fake" }
func (f *fake) Facts() Facts                { return Facts{Sandbox: "none", Labels: pcm.Labels{"fake": "yes"}} }
func (f *fake) Check(t adapters.Task) error { return nil }
func (f *fake) Close(context.Context) error { return nil }
func (f *fake) Sweep(keys []adapters.Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swept = append(f.swept, keys...)
	return nil
}

func (f *fake) Run(ctx context.Context, r *Run) Exit {
	switch r.Command[0] {
	case "panic":
		panic("told to")
	case "hang":
		r.Started()
		<-ctx.Done()
		return Exit{Outcome: pcm.OutcomeFailed, Code: 137}
	case "late": // comes to a good end just as it is killed
		r.Started()
		<-ctx.Done()
	case "graceful":
		r.Started()
		select {
		case <-ctx.Done():
			return Exit{Outcome: pcm.OutcomeFailed, Code: 137}
		case <-r.Stopping:
		}
	case "say":
		r.Started()
		io.WriteString(r.Stdout, strings.Join(r.Command[1:], " "))
	default:
		r.Started()
	}
	return Exit{Outcome: pcm.OutcomeOK}
}

// daemon is a supervisor in this process, and a client of it.
type daemon struct {
	t      testing.TB
	dir    string
	runner *fake
	cancel context.CancelFunc
	done   chan error
	client *Client
	a      *Attempts
}

func serve(t testing.TB, dir string, change func(*Config)) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, runner: &fake{}, done: make(chan error, 1)}
	cfg := Config{Dir: dir, Runners: []Runner{d.runner}, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.cancel = cancel
	go func() { d.done <- Serve(ctx, cfg) }()
	d.client = NewClient(ClientConfig{Dir: dir})
	d.a = d.client.Attempts("fake")
	t.Cleanup(func() { d.client.Close(); d.end() })
	d.await(func() bool {
		_, err := d.client.Facts(t.Context(), "fake")
		return err == nil
	})
	return d
}

func (d *daemon) end() error {
	d.cancel()
	err := <-d.done
	d.done <- err
	return err
}

// await polls for what nothing tells of.
func (d *daemon) await(f func() bool) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			d.t.Fatal("waited in vain")
		}
		<-time.After(2 * time.Millisecond)
	}
}

var fence uint64

func newTask(command ...string) adapters.Task {
	fence++
	job := pcm.NewJobID()
	return adapters.Task{
		Key: adapters.Key{Trade: pcm.NewTradeID(job, fence), Attempt: 1}, Job: job, Fence: fence, Count: 1,
		Command: command, Deadline: adapters.Now().Add(time.Hour),
	}
}

func (d *daemon) start(command ...string) adapters.Key {
	d.t.Helper()
	t := newTask(command...)
	if err := d.a.Start(d.t.Context(), t); err != nil {
		d.t.Fatal(err)
	}
	return t.Key
}

func (d *daemon) status(k adapters.Key) adapters.Status {
	d.t.Helper()
	all, err := d.a.List(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	for _, st := range all {
		if st.Key == k {
			return st
		}
	}
	return adapters.Status{}
}

func (d *daemon) wait(k adapters.Key, state adapters.State) (st adapters.Status) {
	d.t.Helper()
	d.await(func() bool { st = d.status(k); return st.State == state })
	return st
}

// shortDir is a folder whose socket's path is short.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pcm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestOneAtATime(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	if err := Serve(t.Context(), Config{Dir: d.dir}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second supervisor: %v", err)
	}
	k := d.start("say", "still here")
	d.wait(k, adapters.Ended)
}

func TestEndsWhenIdle(t *testing.T) {
	d := serve(t, shortDir(t), func(c *Config) { c.Idle = 100 * time.Millisecond })
	k := d.start("hang")
	d.wait(k, adapters.Running)
	d.client.Close()
	select {
	case err := <-d.done:
		t.Fatalf("ended with a task running: %v", err)
	case <-time.After(400 * time.Millisecond):
	}
	d.client = NewClient(ClientConfig{Dir: d.dir})
	d.a = d.client.Attempts("fake")
	if err := d.a.Stop(t.Context(), k, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	d.wait(k, adapters.Ended)
	select {
	case err := <-d.done:
		t.Fatalf("ended with a daemon connected: %v", err)
	case <-time.After(400 * time.Millisecond):
	}
	d.client.Close()
	select {
	case err := <-d.done:
		d.done <- err
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("does not end")
	}
}

func TestMovedFolder(t *testing.T) {
	dir := shortDir(t)
	old := serve(t, dir, func(c *Config) { c.Idle = 100 * time.Millisecond })
	if err := os.Rename(dir, dir+".lost"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir + ".lost") })
	anew := serve(t, dir, nil)
	anew.wait(anew.start("say"), adapters.Ended)
	old.client.Close()
	select {
	case err := <-old.done:
		old.done <- err
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it has not ended")
	}
	if _, err := os.Lstat(socketFile(dir)); err != nil {
		t.Errorf("the end of the supervisor of a folder that was moved away took the socket of the one that is here now: %v", err)
	}
}

func TestRecovery(t *testing.T) {
	dir := shortDir(t)
	d := serve(t, dir, nil)
	good := d.start("say", "before")
	d.wait(good, adapters.Ended)
	d.client.Close()
	d.end()

	// What a crash leaves: an attempt without an end, one cut short, junk.
	lost := newTask("hang")
	w := wireTask("fake", lost)
	w.Runner = "fake"
	if err := folderOf(dir, w.Key).create(w); err != nil {
		t.Fatal(err)
	}
	cut := newTask("hang").Key.String()
	torn := newTask("hang")
	wt := wireTask("fake", torn)
	if err := folderOf(dir, wt.Key).create(wt); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folderOf(dir, wt.Key).statusFile(), []byte{0xa3, 1}, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{cut, "junk"} {
		if err := os.MkdirAll(filepath.Join(dir, "tasks", name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(socketFile(dir), nil, 0o600) // in the way

	d = serve(t, dir, nil)
	for _, k := range []adapters.Key{lost.Key, torn.Key} {
		if st := d.status(k); st.State != adapters.Ended || st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "supervisor ended") {
			t.Errorf("lost: %+v", st)
		}
	}
	if st := d.status(good); st.Outcome != pcm.OutcomeOK {
		t.Errorf("ended before: %+v", st)
	}
	if len(d.runner.swept) != 2 {
		t.Errorf("swept %v", d.runner.swept)
	}
	if all, _ := d.a.List(t.Context()); len(all) != 3 {
		t.Errorf("listed %v", all)
	}
	// A lost attempt doesn't run again.
	if err := d.a.Start(t.Context(), lost); err != nil {
		t.Error(err)
	}
	if st := d.status(lost.Key); st.Outcome != pcm.OutcomeSeller {
		t.Errorf("started again: %+v", st)
	}
}

func TestShutdownEndsTasks(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	k, late := d.start("hang"), d.start("late")
	d.wait(k, adapters.Running)
	d.wait(late, adapters.Running)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	st, err := folderOf(d.dir, k.String()).loadStatus()
	if err != nil || st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "supervisor") {
		t.Errorf("%+v, %v", st, err)
	}
	// One that came to a good end all the same keeps it.
	if st, err := folderOf(d.dir, late.String()).loadStatus(); err != nil || st.Outcome != pcm.OutcomeOK {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestVerdicts(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	// A panic ends one attempt only.
	st := d.wait(d.start("panic"), adapters.Ended)
	if st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "told to") {
		t.Errorf("%+v", st)
	}
	// Asked to stop, it is stopped, even if it came to a good end.
	for _, c := range []struct {
		command string
		grace   time.Duration
	}{{"graceful", time.Hour}, {"late", 0}, {"late", 50 * time.Millisecond}} {
		k := d.start(c.command)
		d.wait(k, adapters.Running)
		if err := d.a.Stop(t.Context(), k, c.grace, strings.Repeat("ü", 300)); err != nil {
			t.Fatal(err)
		}
		if st := d.wait(k, adapters.Ended); st.Outcome != pcm.OutcomeStopped || len(st.Reason) > 256 || !strings.HasPrefix(st.Reason, "üü") {
			t.Errorf("%s: %+v", c.command, st)
		}
	}
	// A time limit that a good end came before is not held against it.
	task := newTask("late")
	task.Limit = 30 * time.Millisecond
	if err := d.a.Start(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	if st := d.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeOK {
		t.Errorf("%+v", st)
	}
}

func TestBounds(t *testing.T) {
	d := serve(t, shortDir(t), func(c *Config) { c.MaxRunning, c.MaxAttempts = 2, 3 })
	a, b := d.start("hang"), d.start("hang")
	if err := d.a.Start(t.Context(), newTask("hang")); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("a third one running: %v", err)
	}
	for _, k := range []adapters.Key{a, b} {
		d.a.Stop(t.Context(), k, 0, "")
		d.wait(k, adapters.Ended)
	}
	d.wait(d.start("say"), adapters.Ended)
	if err := d.a.Start(t.Context(), newTask("say")); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("a fourth one kept: %v", err)
	}
	if err := d.a.Remove(t.Context(), a); err != nil {
		t.Error(err)
	}
	d.wait(d.start("say"), adapters.Ended)

	big := newTask("say")
	big.Args = []string{strings.Repeat("x", pcm.MaxMessage)}
	if err := d.a.Start(t.Context(), big); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("a message over the bound: %v", err)
	}
	if _, err := d.client.Facts(t.Context(), "other"); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("facts of an unknown runner: %v", err)
	}
	if err := d.client.Attempts("other").Start(t.Context(), newTask("say")); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("start with an unknown runner: %v", err)
	}
}

func TestListPages(t *testing.T) {
	dir := shortDir(t)
	first := newTask("x")
	const n = listPage + 10
	for i := range n {
		k := first.Key
		k.Index = i
		f := folderOf(dir, k.String())
		if err := os.MkdirAll(string(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := f.finish(status{Key: k.String(), Runner: "fake", State: adapters.Ended, Outcome: pcm.OutcomeOK}); err != nil {
			t.Fatal(err)
		}
	}
	d := serve(t, dir, nil)
	all, err := d.a.List(t.Context())
	if err != nil || len(all) != n {
		t.Fatalf("%d of %d, %v", len(all), n, err)
	}
	seen := map[adapters.Key]bool{}
	for _, st := range all {
		seen[st.Key] = true
	}
	if len(seen) != n {
		t.Errorf("%d different of %d", len(seen), n)
	}
}

// raw opens a connection that says what it likes.
func raw(t *testing.T, dir string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socketFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestHostileDaemon(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	hundred := binary.BigEndian.AppendUint32(nil, 100<<20)
	for name, bytes := range map[string][]byte{
		"garbage":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"length of 100 MB":     hundred,
		"no hello":             frame(t, &message{ID: 1, Op: opList}),
		"hello without itself": frame(t, &message{ID: 1, Op: opHello}),
		"not CBOR":             append([]byte{0, 0, 0, 3}, 0xff, 0xff, 0xff),
	} {
		c := raw(t, d.dir)
		if _, err := c.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
			t.Errorf("%s: answered %q, %v", name, rest, err)
		}
	}
	// Another version of the protocol is told so.
	c := raw(t, d.dir)
	c.Write(frame(t, &message{ID: 7, Op: opHello, Hello: &hello{Min: maxProtocol + 1, Max: maxProtocol + 3}}))
	m, err := readMessage(bufio.NewReader(c))
	if err != nil || m.ID != 7 || m.Err == nil || m.Err.Code != pcm.Unavailable || !strings.Contains(m.Err.Message, "protocol") {
		t.Errorf("%+v, %v", m, err)
	}
	// Requests that make no sense get errors, and keep the connection.
	c = raw(t, d.dir)
	r := bufio.NewReader(c)
	c.Write(frame(t, &message{ID: 1, Op: opHello, Hello: &hello{Min: 1, Max: 99}}))
	if m, err := readMessage(r); err != nil || m.Welcome == nil || m.Welcome.Protocol != maxProtocol {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, q := range []*message{
		{Op: opStart}, {Op: opStart, Runner: "fake", Task: &task{Key: "../../etc"}}, {Op: opRemove, Key: "../.."},
		{Op: opStop, Key: "x"}, {Op: 77}, {Op: opExtend, Leases: make([]lease, maxLeases+1)},
	} {
		q.ID = 9
		c.Write(frame(t, q))
		if m, err := readMessage(r); err != nil || m.ID != 9 || m.Err == nil {
			t.Errorf("%+v: %+v, %v", q, m, err)
		}
	}
	d.wait(d.start("say"), adapters.Ended)
}

func frame(t testing.TB, m *message) []byte {
	t.Helper()
	var buf strings.Builder
	w := bufio.NewWriter(&buf)
	if err := writeMessage(w, m); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	return []byte(buf.String())
}

func TestTooManyDaemons(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	for range maxPeers + 3 {
		raw(t, d.dir)
	}
	last := raw(t, d.dir)
	if rest, err := io.ReadAll(last); len(rest) > 0 || err != nil {
		t.Errorf("one too many: %q, %v", rest, err)
	}
	d.wait(d.start("say"), adapters.Ended) // the first is still served
}

func TestSlowWatcherIsCutOff(t *testing.T) {
	l := &link{done: make(chan struct{}), watch: map[*watcher]bool{}}
	ch, err := l.subscribe(t.Context(), "fake")
	if err != nil {
		t.Fatal(err)
	}
	st := status{Key: newTask("x").Key.String(), Runner: "fake", State: adapters.Ended}
	for range watchBuffer + 1 {
		if err := l.publish([]status{st, {Key: st.Key, Runner: "other"}}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range ch { // must be closed
		n++
	}
	if n != watchBuffer {
		t.Errorf("got %d of %d", n, watchBuffer)
	}
}

func TestLostSupervisor(t *testing.T) {
	d := serve(t, shortDir(t), nil)
	watch, err := d.a.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k := d.start("say", "kept")
	d.wait(k, adapters.Ended)
	d.end()
	for range watch { // must be closed
	}
	if _, err := d.a.List(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("list: %v", err)
	}
	// Logs and results are there all the same.
	r, err := d.a.Logs(t.Context(), k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); string(data) != "kept" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := d.a.Results(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func TestLongFolder(t *testing.T) {
	dir := filepath.Join(shortDir(t), strings.Repeat("long", 20), strings.Repeat("er", 30))
	d := serve(t, dir, nil)
	d.wait(d.start("say"), adapters.Ended)
}

func TestLaunchFailure(t *testing.T) {
	c := NewClient(ClientConfig{Dir: shortDir(t), Argv: []string{"/bin/sh", "-c", "echo cannot serve >&2; exit 1"}})
	defer c.Close()
	if _, err := c.PID(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "cannot serve") {
		t.Errorf("%v", err)
	}
	c = NewClient(ClientConfig{Dir: shortDir(t), Argv: []string{"/nonexistent"}})
	if _, err := c.PID(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("%v", err)
	}
	c = NewClient(ClientConfig{Dir: shortDir(t), Argv: []string{"/bin/sleep", "20"}, StartTimeout: 100 * time.Millisecond})
	if _, err := c.PID(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("%v", err)
	}
	c.Close()
	if _, err := c.PID(t.Context()); !errors.Is(err, error(errClosed)) {
		t.Errorf("%v", err)
	}
}

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	late, soon := adapters.Now().Add(time.Hour), adapters.Now().Add(50*time.Millisecond)
	a.by(late)
	a.by(soon)
	a.by(late) // doesn't put it off
	<-a.C
	if soon.Until() > 0 {
		t.Errorf("rang %s early", soon.Until())
	}
	a.by(adapters.Now().Add(-time.Second)) // at once
	<-a.C
}

func TestLogIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	w, err := openLog(name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 3 * maxLog / len(line) {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{name, name + ".1"} {
		if info, err := os.Stat(n); err != nil || info.Size() > maxLog+int64(len(line)) || info.Size() == 0 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("a", 300), strings.Repeat("ü", 200), strings.Repeat("\xff", 300)} {
		if got := cut(s, 256); len(got) > 256 || len(s) < 200 && got != s || strings.ToValidUTF8(got, "") != got {
			t.Errorf("cut(%.20q) is %q", s, got)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	t := newTask("a", "b")
	t.Inputs = []adapters.Mount{{Path: "/x", Target: "y"}}
	t.Env = map[string]string{"A": "B"}
	for _, m := range []*message{
		{ID: 1, Op: opHello, Hello: &hello{1, 1, "v"}}, {ID: 2, Op: opStart, Runner: "r", Task: wireTask("r", t)},
		{Op: opEvent, Statuses: []status{{Key: t.Key.String(), Runner: "r", State: adapters.Running}}},
		{ID: 3, Op: opExtend, Leases: []lease{{t.Key.String(), 5}}}, {ID: 4, Op: opReply, Err: pcm.Errorf(pcm.Busy, "x")},
	} {
		f.Add(frame(f, m))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readMessage(bufio.NewReader(strings.NewReader(string(data))))
		if err != nil {
			return
		}
		again, err := readMessage(bufio.NewReader(strings.NewReader(string(frame(t, m)))))
		if err != nil || fmt.Sprintf("%+v", again) == "" {
			t.Fatalf("encoded again it can't be read: %v", err)
		}
		if m.Task != nil {
			if task, err := m.Task.open(); err == nil {
				checkTask(task) // must not panic
			}
		}
	})
}
