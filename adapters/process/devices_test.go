package process

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// aDevice is a device file that tasks in a sandbox don't see otherwise; "" if this
// machine has none of those tried.
var aDevice = func() string {
	for _, d := range []string{"/dev/fuse", "/dev/loop-control", "/dev/hwrng", "/dev/kmsg", "/dev/mem"} {
		if _, err := os.Stat(d); err == nil {
			return d
		}
	}
	return ""
}()

// madeUp are two accelerators that this machine doesn't have.
var madeUp = []adapters.Devices{{
	Accelerator: pcm.Accelerator{Vendor: "acme", Model: "frob9", Memory: 16 << 30},
	Each:        []adapters.Device{{ID: "F-0"}, {ID: "F-1"}}, Variable: "FROB_VISIBLE_DEVICES",
	Shared: slices.DeleteFunc([]string{aDevice}, func(d string) bool { return d == "" }),
}}

// TestDevices: the pool offers what was found, tasks that run at once get different
// ones, those that ask for none get none, and who finds none free waits.
func TestDevices(t *testing.T) {
	for _, mode := range []string{"none rlimit gpus", "bubblewrap rlimit gpus", "landlock rlimit gpus"} {
		t.Run(strings.ReplaceAll(mode, " ", "_"), func(t *testing.T) {
			l := newLab(t, mode)
			pools, err := l.a.Pools(l.ctx)
			if err != nil || len(pools) != 1 || pools[0].Capacity.GPU != 2 || pools[0].Accelerator == nil || pools[0].Accelerator.Name() != "frob9.16g" {
				t.Fatalf("it offers %+v, %v", pools, err)
			}
			run := func(gpu int64, script string) adapters.Task {
				return l.start(func(task *adapters.Task) {
					task.Command, task.Inputs, task.Resources.GPU = []string{"sh", "-c", "echo have $FROB_VISIBLE_DEVICES; " + script}, nil, gpu
				})
			}
			if aDevice != "" && !strings.HasPrefix(mode, "none") {
				for gpu, want := range []pcm.Outcome{pcm.OutcomeFailed, pcm.OutcomeOK} {
					if st := l.wait(run(int64(gpu), "test -c "+aDevice).Key, adapters.Ended); st.Outcome != want {
						t.Errorf("with %d accelerators, looking for its device file: %+v", gpu, st)
					}
				}
			}
			const hold = "while [ ! -e go ]; do sleep 0.02; done"
			one, two := run(1, hold), run(1, hold)
			for _, k := range []adapters.Key{one.Key, two.Key} {
				l.await("what it has", func() bool { return l.stdout(k, false) != "" })
			}
			both := run(2, "true")
			if st := l.wait(both.Key, adapters.Pending); !strings.Contains(st.Reason, "accelerator") {
				t.Errorf("who finds none free is told %q", st.Reason)
			}
			none := run(0, "true")
			l.wait(none.Key, adapters.Ended)
			if got := l.stdout(none.Key, false); got != "have\n" {
				t.Errorf("a task that asks for none says %q", got)
			}
			for _, k := range []adapters.Key{one.Key, two.Key} {
				if err := l.a.Stop(l.ctx, k, 0, "enough"); err != nil {
					t.Fatal(err)
				}
				l.wait(k, adapters.Ended)
			}
			said := []string{l.stdout(one.Key, false), l.stdout(two.Key, false)}
			if slices.Sort(said); !slices.Equal(said, []string{"have F-0\n", "have F-1\n"}) {
				t.Errorf("two tasks at once say %q", said)
			}
			st := l.wait(both.Key, adapters.Ended)
			if got := l.stdout(both.Key, false); st.Outcome != pcm.OutcomeOK || len(got) != len("have F-0,F-1\n") || st.Usage.GPUMS < 2*st.Usage.WallMS {
				t.Errorf("who waited for both says %q: %+v", got, st)
			}
			task := both
			task.Key.Index++
			task.Resources.GPU = 3
			if err := l.a.Start(l.ctx, task); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "this machine has 2") {
				t.Errorf("more than there are: %v", err)
			}
		})
	}
}

// TestDeviceFiles: a task gets the files of its own accelerators and those that
// all need, and no other's.
func TestDeviceFiles(t *testing.T) {
	s := newShare([]adapters.Devices{{
		Shared: []string{"/dev/frobctl"}, ReadOnly: []string{"/opt/frob"}, Variable: "FROBS",
		Each: []adapters.Device{{ID: "0", Nodes: []string{"/dev/frob0"}}, {ID: "1a", Nodes: []string{"/dev/frob1"}}, {ID: "1b", Nodes: []string{"/dev/frob1"}}},
	}, {Each: []adapters.Device{{ID: "other"}}}})
	attempt := func(index int, gpu int64) *supervisor.Run {
		return &supervisor.Run{Task: adapters.Task{Key: adapters.Key{Trade: "t", Index: index, Attempt: 1}, Resources: pcm.Resources{GPU: gpu}}}
	}
	for _, c := range []struct {
		t       *supervisor.Run
		devices []string
		ids     string
	}{
		{attempt(0, 1), []string{"/dev/frobctl", "/dev/frob0"}, "0"},
		{attempt(1, 2), []string{"/dev/frobctl", "/dev/frob1"}, "1a,1b"},
		{attempt(2, 0), nil, ""},
	} {
		if err := s.take(context.Background(), c.t); err != nil {
			t.Fatal(err)
		}
		var extra surroundings
		if s.give(c.t.Key, &extra); !slices.Equal(extra.devices, c.devices) || extra.env["FROBS"] != c.ids || (len(extra.libs) > 0) != (c.ids != "") {
			t.Errorf("it gets %+v, want %q and %q", extra, c.devices, c.ids)
		}
	}
	s.back(attempt(1, 2).Key)
	s.back(attempt(1, 2).Key) // twice frees nothing twice
	if len(s.free) != 2 {
		t.Errorf("%d are free", len(s.free))
	}
}
