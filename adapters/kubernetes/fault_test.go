package kubernetes

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

func within5(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// begin starts a task and waits for its first line.
func begin(ctx context.Context, t *testing.T, a adapters.Adapter, steps ...string) adapters.Task {
	t.Helper()
	task := adaptertest.NewTask()
	script(t, &task, append([]string{"out", "ready"}, steps...)...)
	task.Limit = 10 * time.Minute
	task.Deadline = adapters.Now().Add(10 * time.Minute)
	if err := a.Start(ctx, task); err != nil {
		t.Fatal(err)
	}
	r, err := a.Logs(ctx, task.Key, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return task
}

func output(ctx context.Context, t *testing.T, a adapters.Adapter, k adapters.Key) string {
	t.Helper()
	r, err := a.Logs(ctx, k, adapters.Stdout, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The API server is away for a minute: what runs goes on and keeps all of its output, what
// ends meanwhile is collected after, what is started meanwhile starts after. Nothing runs twice.
func TestClusterAway(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	t.Parallel()
	k, _ := withNode(t)
	in := instance(t, k)
	ctx := within5(t)
	long := begin(ctx, t, in.Adapter, "sleep", "80s", "out", "went on")
	short := begin(ctx, t, in.Adapter, "sleep", "15s", "out", "alone", "exit", "4")
	back := make(chan error, 1)
	go func() { back <- k.RestartAPI(ctx, time.Minute) }()
	<-k.API().Done()
	late := adaptertest.NewTask()
	script(t, &late, "out", "late")
	if err := in.Adapter.Start(ctx, late); err != nil {
		t.Fatal(err)
	}
	try, cancel := context.WithTimeout(ctx, 2*time.Second)
	if _, err := in.Adapter.Pools(try); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("pools of a cluster that is away: %v", err)
	}
	cancel()
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		task    adapters.Task
		outcome pcm.Outcome
		code    int
		out     string
	}{{short, pcm.OutcomeFailed, 4, "ready\nalone\n"}, {late, pcm.OutcomeOK, 0, "late\n"}, {long, pcm.OutcomeOK, 0, "ready\nwent on\n"}} {
		st, err := adaptertest.Wait(ctx, in.Adapter, c.task.Key, adapters.Ended)
		if err != nil || st.Outcome != c.outcome || st.ExitCode != c.code {
			t.Errorf("%s: %s %d %q, %v", c.out, st.Outcome, st.ExitCode, st.Reason, err)
		}
		if out := output(ctx, t, in.Adapter, c.task.Key); out != c.out {
			t.Errorf("output %q, expected %q", out, c.out)
		}
		if n := in.Starts(c.task.Key); n != 1 {
			t.Errorf("%s was started %d times", c.task.Key, n)
		}
	}
}

// The kubelet is killed: its pods run on, nobody hears of them. The attempt ends as
// the seller's fault, with a reason that says that it may still run, and the
// cluster never makes a second pod.
func TestKubeletLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	t.Parallel()
	k, n := withNode(t)
	in := instance(t, k)
	ctx := within5(t)
	task := begin(ctx, t, in.Adapter, "sleep", "10m")
	n.Kubelet().Kill()
	st, err := adaptertest.Wait(ctx, in.Adapter, task.Key, adapters.Ended)
	if err != nil || st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, n.Name) || !strings.Contains(st.Reason, "may still run") || st.Native != "NodeLost" {
		t.Fatalf("%+v, %v", st, err)
	}
	if pools, err := in.Adapter.Pools(ctx); err != nil || len(pools) != 0 {
		t.Errorf("a lost node is offered: %+v, %v", pools, err)
	}
	if err := n.StartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	// The node ends the pod as soon as it is back.
	for {
		var list struct{ Items []any }
		if err := k.Do(ctx, http.MethodGet, "/api/v1/namespaces/pcm/pods", nil, &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 0 {
			break
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the pod is not ended")
		}
	}
	if starts := in.Starts(task.Key); starts != 1 {
		t.Errorf("it was started %d times", starts)
	}
	again := begin(ctx, t, in.Adapter, "exit", "0")
	if st, err := adaptertest.Wait(ctx, in.Adapter, again.Key, adapters.Ended); err != nil || st.Outcome != pcm.OutcomeOK {
		t.Errorf("after that: %+v, %v", st, err)
	}
}

// fakeList serves lists and watches from a script.
type fakeList struct {
	dynamic.ResourceInterface
	mu      sync.Mutex
	pages   [][]string // names
	lists   int
	watches []*watch.RaceFreeFakeWatcher
	from    []string // versions that watches began at
	refuse  error
}

func (f *fakeList) List(_ context.Context, opts metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	if opts.Continue != "" {
		i = len(opts.Continue)
	} else {
		f.lists++
	}
	l := &unstructured.UnstructuredList{Object: map[string]any{}}
	l.SetResourceVersion("100")
	for _, name := range f.pages[i] {
		l.Items = append(l.Items, *named(name, "99"))
	}
	if i+1 < len(f.pages) {
		l.SetContinue(strings.Repeat("c", i+1))
	}
	return l, nil
}

func (f *fakeList) Watch(_ context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refuse; err != nil {
		f.refuse = nil
		return nil, err
	}
	w := watch.NewRaceFreeFake()
	f.watches = append(f.watches, w)
	f.from = append(f.from, opts.ResourceVersion)
	return w, nil
}

func named(name, version string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetName(name)
	o.SetResourceVersion(version)
	return o
}

// A watch that was cut goes on where it ended; only one that the server no longer
// knows how to go on makes for a new list.
func TestWatchExpired(t *testing.T) {
	f := &fakeList{pages: [][]string{{"a", "b"}, {"c"}}}
	var mu sync.Mutex
	have, seen := map[string]bool{}, map[string]bool{}
	r := &reflector{what: "things", api: f, log: slog.New(slog.DiscardHandler),
		begin: func() { mu.Lock(); seen = map[string]bool{}; mu.Unlock() },
		put: func(o *unstructured.Unstructured) {
			mu.Lock()
			have[o.GetName()], seen[o.GetName()] = true, true
			mu.Unlock()
		},
		drop: func(o *unstructured.Unstructured) { mu.Lock(); delete(have, o.GetName()); mu.Unlock() },
		synced: func() {
			mu.Lock()
			for k := range have {
				if !seen[k] {
					delete(have, k)
				}
			}
			mu.Unlock()
		},
		failed: func(error) {},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	go r.run(ctx)
	until := func(what string, ok func() bool) {
		t.Helper()
		for {
			f.mu.Lock()
			mu.Lock()
			good := ok()
			mu.Unlock()
			f.mu.Unlock()
			if good {
				return
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("waited in vain: %s; lists %d, watches %v, have %v", what, f.lists, f.from, have)
			}
		}
	}
	until("a list in pages, then a watch", func() bool { return len(f.watches) == 1 && have["a"] && have["b"] && have["c"] && f.from[0] == "100" })
	f.watches[0].Add(named("d", "105"))
	f.watches[0].Delete(named("a", "106"))
	until("changes", func() bool { return have["d"] && !have["a"] })
	f.watches[0].Action(watch.Bookmark, named("", "140"))
	f.watches[0].Stop()
	until("it goes on at the bookmark", func() bool { return len(f.watches) == 2 && f.from[1] == "140" && f.lists == 1 })
	f.mu.Lock()
	f.refuse = errors.New("connection refused")
	f.pages = [][]string{{"d", "e"}}
	f.mu.Unlock()
	f.watches[1].Stop()
	until("it goes on after the server was away", func() bool { return len(f.watches) == 3 && f.from[2] == "140" && f.lists == 1 })
	f.watches[2].Error(&metav1.Status{Status: "Failure", Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
	until("a new list, and what it lacks is gone", func() bool {
		return f.lists == 2 && len(f.watches) == 4 && have["e"] && !have["b"] && !have["c"] && len(have) == 2
	})
}
