package rest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
	"github.com/jointcloud/pcm/adapters/rest/fake/openstack"
)

// startOpenStack starts Keystone and Nova, and an object store beside them.
func startOpenStack(t *testing.T) provider {
	t.Helper()
	store, err := objects.Open(objects.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	store.Allow("AK", "store secret")
	if err := store.CreateBucket("tasks"); err != nil {
		t.Fatal(err)
	}
	c := openstack.New(openstack.Options{
		Dir: t.TempDir(), User: "pcm", Password: "correct horse", Project: "peers", AppID: "0123abcd", AppSecret: "battery staple", Cores: 64, RAM: 1 << 20, Instances: 64, GPUs: 2,
		Flavors: []openstack.Flavor{
			{ID: "1", Name: "m1.tiny", VCPUs: 1, RAM: 256, Disk: 10},
			{ID: "2", Name: "m1.small", VCPUs: 1, RAM: 4096, Disk: 20},
			{ID: "3", Name: "m1.large", VCPUs: 4, RAM: 32768, Disk: 80},
			{ID: "4", Name: "g1.a100", VCPUs: 4, RAM: 32768, Disk: 80, GPUs: 2, Extra: map[string]string{"pci_passthrough:alias": "a100:2"}},
		},
		Grace: time.Hour, // whoever wants it sooner deletes the server
	})
	left := func() []string {
		names := c.Left()
		objects, err := store.List("tasks", "")
		if err != nil {
			t.Error(err)
		}
		for _, o := range objects {
			names = append(names, "object "+o.Key)
		}
		return names
	}
	h, s := newHost(t, c), newHost(t, store)
	t.Cleanup(c.Close)
	return provider{
		faults: &c.Faults, create: "POST /compute/v2.1/servers", forget: c.Forget, left: left,
		host: h, hang: c.Faults.Hang, fill: c.Fill, logOut: c.LogOut, starts: c.Starts,
		cfg: Config{
			File: shipped(t, "openstack"), AllowPrivate: true, Poll: 100 * time.Millisecond, Refresh: 100 * time.Millisecond, Rate: 500,
			Settings: map[string]string{
				"identity": h.url() + "/identity/v3", "user": "pcm", "project": "peers", "image": openstack.DefaultImage,
				"store": s.url(), "bucket": "tasks",
			},
			Secrets: secrets(t, map[string]string{"password": "correct horse", "access_key": "AK", "secret_key": "store secret"}),
		},
	}
}

func TestConformanceOpenStack(t *testing.T) {
	minutes(t)
	t.Parallel()
	c := startOpenStack(t)
	adaptertest.Run(t, adaptertest.Subject{
		Name: "rest (openstack)", Script: steps, Remote: true, Parallel: 10, Pace: time.Second, Patience: 2 * time.Minute, Many: 12,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 2 },
		Env:     []string{"INSTANCE_ID", "OLDPWD", "SHLVL", "_"},
		Enough:  16 << 30, Unsupported: described(t, c.cfg),
		New: c.instance,
		Own: func(t *testing.T) adaptertest.Instance { return startOpenStack(t).instance(t) },
	})
}

// The pools are the cloud's flavors, as many as the quota allows, in our words.
func TestOpenStackPools(t *testing.T) {
	c := startOpenStack(t)
	pools, err := c.instance(t).Adapter.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[pcm.PoolID]pcm.Pool{}
	for _, p := range pools {
		found[p.ID] = p
	}
	if p := found["m1.large"]; p.Slots != 16 || p.Capacity.CPU != 64000 || p.Capacity.Memory != 16*32<<30 || p.Capacity.Disk != 16*80<<30 || p.Labels["region"] != "regionone" {
		t.Errorf("%+v", p)
	}
	if p := found["g1.a100"]; p.Capacity.GPU != 2*int64(p.Slots) || p.Accelerator == nil || p.Accelerator.Model != "a100" {
		t.Errorf("%+v", p)
	}
}

// An application credential stands for user and project. Without either it is said what is missing.
func TestOpenStackApplicationCredential(t *testing.T) {
	c := startOpenStack(t)
	delete(c.cfg.Settings, "user")
	delete(c.cfg.Settings, "project")
	c.cfg.Secrets = secrets(t, map[string]string{"access_key": "AK", "secret_key": "store secret"})
	if _, err := New(c.cfg, nil); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "user") {
		t.Errorf("without a log-in: %v", err)
	}
	c.cfg.Settings["app_id"] = "0123abcd"
	c.cfg.Secrets = secrets(t, map[string]string{"app_secret": "battery staple", "access_key": "AK", "secret_key": "store secret"})
	if pools, err := c.instance(t).Adapter.Pools(t.Context()); err != nil || len(pools) != 4 {
		t.Errorf("%v, %v", pools, err)
	}
}

// A console keeps its end only: what a task prints faster than it is read comes
// when the task has ended, and nothing is missing or there twice.
func TestLoudServer(t *testing.T) {
	c := startOpenStack(t)
	ins := c.instance(t)
	task := adaptertest.NewTask()
	steps(t, &task, "out", "first", "flood", "2000000", "err", "between", "sleep", "1s", "out", "last")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := ins.Adapter.Start(ctx, task); err != nil {
		t.Fatal(err)
	}
	st, err := adaptertest.Wait(ctx, ins.Adapter, task.Key, adapters.Ended)
	if err != nil || st.Outcome != pcm.OutcomeOK {
		t.Fatalf("%+v, %v", st, err)
	}
	left, err := ins.Adapter.Results(ctx, task.Key)
	if err != nil {
		t.Fatal(err)
	}
	out, err1 := fs.ReadFile(left, "stdout")
	errs, err2 := fs.ReadFile(left, "stderr")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	want := "first\n" + strings.Repeat("0123456789abcde\n", 2000000/16) + "last\n"
	if string(out) != want || string(errs) != "between\n" {
		t.Errorf("stdout has %d bytes of %d, and ends with %.200q; stderr %q", len(out), len(want), out[max(0, len(out)-200):], errs)
	}
}

func TestOpenStackFaults(t *testing.T) { testFaults(t, startOpenStack) }

// Many tasks are servers of one call; where the quota allows but some of them, the others
// wait for room. Each runs once, and nothing is left.
func TestManyServers(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]struct {
		tasks, width, most int
		fault              machine.Fault
	}{
		"all":                         {tasks: 12, width: 12, most: 1},
		"the answer is lost":          {tasks: 6, width: 6, most: 1, fault: machine.Fault{Drop: true}},
		"more than there is room for": {tasks: 20, width: 20, most: 20}, // of the large ones there are 16
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if do.most > 1 {
				minutes(t)
			}
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c := startOpenStack(t)
			ins := c.instance(t)
			if do.fault.Drop {
				c.faults.Next(1, c.create, do.fault)
			}
			first := adaptertest.NewTask()
			var keys []adapters.Key
			for i := range do.tasks {
				task := first
				task.Index, task.Count, task.Batch, task.Width, task.Pool = i, do.tasks, do.tasks, do.width, "m1.large"
				steps(t, &task, "out", fmt.Sprintf("task %d", i), "write", "result", fmt.Sprint(i))
				task.Outputs = []string{"result"}
				if err := ins.Adapter.Start(ctx, task); err != nil {
					t.Fatal(err)
				}
				keys = append(keys, task.Key)
			}
			for i, k := range keys {
				st, err := adaptertest.Wait(ctx, ins.Adapter, k, adapters.Ended)
				if err != nil || st.Outcome != pcm.OutcomeOK {
					t.Fatalf("%d: %+v, %v", i, st, err)
				}
				left, err := ins.Adapter.Results(ctx, k)
				if err != nil {
					t.Fatal(err)
				}
				out, err1 := fs.ReadFile(left, "stdout")
				result, err2 := fs.ReadFile(left, "out/result")
				if err := errors.Join(err1, err2); err != nil || string(out) != fmt.Sprintf("task %d\n", i) || string(result) != fmt.Sprint(i) {
					t.Errorf("%d printed %q and left %q, %v", i, out, result, err)
				}
			}
			n := c.faults.Count(c.create) - c.faults.Count(c.create+"/")
			t.Logf("%d tasks by %d calls", do.tasks, n)
			if n > do.most {
				t.Errorf("%d calls made %d servers", n, do.tasks)
			}
			until(t, "nothing is left at the cloud", func() bool {
				// What may come late is looked for, for longer than this test is to take, before files are deleted.
				return !slices.ContainsFunc(c.left(), func(name string) bool { return do.most == 1 || strings.HasPrefix(name, "server ") })
			})
		})
	}
}
