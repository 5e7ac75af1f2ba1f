package rest

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/rest/fake/modelarts"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

// startModelArts starts a fake ModelArts with its object store.
func startModelArts(t *testing.T, o modelarts.Options) (provider, *modelarts.Cloud) {
	t.Helper()
	store, err := objects.Open(objects.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.CreateBucket("tasks"); err != nil {
		t.Fatal(err)
	}
	data := newHost(t, store)
	o.Dir, o.Store, o.StoreURL, o.Slots = t.TempDir(), store, data.url(), 64
	if o.Flavors == nil {
		// A task has the memory of its flavor: one small enough to run out of it.
		o.Flavors = append([]modelarts.Flavor{{ID: "test.cpu.small", Cores: 1, MemoryMB: 256, DiskGB: 1}}, modelarts.Flavors()...)
	}
	c, err := modelarts.New(o)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, c)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	access, secret := c.Keys()
	return provider{
		host: h, hang: c.Faults.Hang, fill: c.Fill, logOut: func() {}, starts: c.Starts,
		cfg: Config{
			File: shipped(t, "modelarts"), AllowPrivate: true, Poll: 100 * time.Millisecond, Refresh: 100 * time.Millisecond, Rate: 500,
			Settings: map[string]string{
				"endpoint": h.url(), "project": c.Project(), "region": "cn-north-4", "obs": data.url(), "bucket": "tasks", "image": "pcm/python:3.12",
			},
			Secrets: secrets(t, map[string]string{"access_key": access, "secret_key": secret}),
		},
	}, c
}

// The service's own lines in the log are there too: none of them may get through.
func TestConformanceModelArts(t *testing.T) {
	minutes(t)
	t.Parallel()
	o := modelarts.Options{Grace: 3 * time.Second, ServiceLog: true}
	c, _ := startModelArts(t, o)
	lacks := described(t, c.cfg)
	lacks["images"] = "the fake runs all images alike" // the description does not lack them
	adaptertest.Run(t, adaptertest.Subject{
		Name: "rest (modelarts)", Script: steps, Remote: true, Parallel: 6, Pace: time.Second, Patience: 5 * time.Minute, Many: 6,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 1 },
		Env:     []string{"MA_*", "VC_*", "LANG", "pcm_in", "pcm_out", "OLDPWD", "SHLVL", "_"},
		Enough:  32 << 30, Unsupported: lacks,
		New: c.instance,
		Own: func(t *testing.T) adaptertest.Instance { own, _ := startModelArts(t, o); return own.instance(t) },
	})
}

// The pools are the flavors, as many as the quota of jobs allows, in our words.
func TestModelArtsPools(t *testing.T) {
	c, _ := startModelArts(t, modelarts.Options{Quota: 7, Flavors: modelarts.Flavors()})
	found := map[pcm.PoolID]pcm.Pool{}
	look := func() {
		t.Helper()
		pools, err := c.instance(t).Adapter.Pools(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		clear(found)
		for _, p := range pools {
			found[p.ID] = p
		}
	}
	look()
	if p := found["modelarts.vm.cpu.2u"]; len(found) != 5 || p.Slots != 7 || p.Capacity.CPU != 14000 || p.Capacity.Memory != 7*8<<30 || p.Capacity.Disk != 7*50<<30 ||
		p.Capacity.GPU != 0 || p.Accelerator != nil || p.Labels["arch"] != "x86" || p.Labels["region"] != "cn-north-4" {
		t.Errorf("%d pools, %+v", len(found), p)
	}
	if p := found["modelarts.p3.large.public"]; p.Capacity.GPU != 7 || p.Accelerator == nil || p.Accelerator.Name() != "v100.32g" {
		t.Errorf("%+v", p)
	}
	if p := found["modelarts.kat1.xlarge"]; p.Capacity.GPU != 7 || p.Accelerator == nil || p.Accelerator.Vendor != "huawei" {
		t.Errorf("%+v", p)
	}
	c.cfg.Settings["flavors"] = "modelarts.vm.cpu.1u,modelarts.vm.cpu.8u"
	look()
	if len(found) != 2 || found["modelarts.vm.cpu.8u"].Slots != 7 {
		t.Errorf("of two flavors: %+v", found)
	}
}

// What goes wrong at the service ends tasks as what it is, or not at all.
func TestModelArtsFaults(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	p, cloud := startModelArts(t, modelarts.Options{Quota: 4, Grace: 3 * time.Second})
	ins := p.instance(t)
	start := func(words ...string) adapters.Key {
		t.Helper()
		task := adaptertest.NewTask()
		steps(t, &task, words...)
		if err := ins.Adapter.Start(ctx, task); err != nil {
			t.Fatal(err)
		}
		return task.Key
	}
	wait := func(k adapters.Key, state adapters.State) adapters.Status {
		t.Helper()
		st, err := adaptertest.Wait(ctx, ins.Adapter, k, state)
		if err != nil || st.State != state {
			t.Fatalf("waiting for %s: %+v, %v", state, st, err)
		}
		return st
	}
	status := func(k adapters.Key) (st adapters.Status) {
		t.Helper()
		list, err := ins.Adapter.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.Key == k {
				st = s
			}
		}
		return st
	}
	job := func(k adapters.Key) string {
		t.Helper()
		for _, j := range cloud.Jobs() {
			if j.Name == jobName(t.Name(), k) {
				return j.ID
			}
		}
		t.Fatalf("no job of %s", k)
		return ""
	}

	t.Run("the answer to a create is lost", func(t *testing.T) {
		create := "POST /v2/" + cloud.Project() + "/training-jobs"
		cloud.Faults.Next(1, create, machine.Fault{Drop: true})
		k := start("out", "once")
		if st := wait(k, adapters.Ended); st.Outcome != pcm.OutcomeOK || ins.Starts(k) != 1 {
			t.Errorf("%+v, begun %d times", st, ins.Starts(k))
		}
	})
	t.Run("calls are throttled", func(t *testing.T) {
		cloud.Faults.Next(3, "", machine.Fault{Status: 429, Header: http.Header{"Content-Type": {"application/json"}},
			Body: `{"error_code":"APIGW.0308","error_msg":"The throttling threshold has been reached"}`})
		if st := wait(start("exit", "7"), adapters.Ended); st.Outcome != pcm.OutcomeFailed || st.ExitCode != 7 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("a job is forgotten", func(t *testing.T) {
		k := start("sleep", "5m")
		wait(k, adapters.Running)
		cloud.Forget(job(k))
		if st := wait(k, adapters.Ended); st.Outcome != pcm.OutcomeSeller || st.Reason == "" {
			t.Errorf("%+v", st)
		}
	})
	t.Run("a job is abnormal", func(t *testing.T) {
		k := start("sleep", "5m")
		wait(k, adapters.Running)
		cloud.Jump(job(k), "Abnormal", "Lost")
		if st := wait(k, adapters.Ended); st.Outcome != pcm.OutcomeSeller || st.Native != "Abnormal" || !strings.Contains(st.Reason, "abnormal") {
			t.Errorf("%+v", st)
		}
	})
	t.Run("a phase that nobody knows", func(t *testing.T) {
		k := start("sleep", "5m")
		wait(k, adapters.Running)
		cloud.Jump(job(k), "Hibernating", "")
		until(t, "the word shows", func() bool {
			st := status(k)
			return st.Native == "Hibernating" && st.State == adapters.Running
		})
		if err := ins.Adapter.Stop(ctx, k, 0, "not wanted"); err != nil {
			t.Fatal(err)
		}
		wait(k, adapters.Ended)
	})
	t.Run("the quota is used up", func(t *testing.T) {
		var running []adapters.Key
		for range 4 {
			k := start("sleep", "5m")
			wait(k, adapters.Running)
			running = append(running, k)
		}
		next := start("out", "at last")
		until(t, "the next one waits for the quota", func() bool {
			st := status(next)
			return st.State == adapters.Pending && strings.Contains(st.Reason, "job-num")
		})
		for _, k := range running {
			if err := ins.Adapter.Stop(ctx, k, 0, "not wanted"); err != nil {
				t.Fatal(err)
			}
		}
		if st := wait(next, adapters.Ended); st.Outcome != pcm.OutcomeOK {
			t.Errorf("%+v", st)
		}
	})
}

// A secret that doesn't fit is said to be one, by its name; its value shows nowhere.
func TestModelArtsWrongSecret(t *testing.T) {
	c, cloud := startModelArts(t, modelarts.Options{})
	access, right := cloud.Keys()
	const wrong = "an-altogether-wrong-secret"
	c.cfg.Secrets = secrets(t, map[string]string{"access_key": access, "secret_key": wrong})
	_, err := c.instance(t).Adapter.Pools(t.Context())
	if err == nil || !strings.Contains(err.Error(), "APIGW.0301") && !strings.Contains(err.Error(), "verify aksk signature fail") {
		t.Fatalf("pools with a wrong secret: %v", err)
	}
	if strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), right) {
		t.Errorf("the error has the secret: %v", err)
	}
}
