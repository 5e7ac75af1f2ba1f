package rest

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/fake/openi"
)

// startOpenI starts an AI platform in the style of OpenI's Octopus.
func startOpenI(t *testing.T) provider {
	t.Helper()
	c := openi.New(openi.Options{
		Dir: t.TempDir(), Username: "pcm", Password: "correct horse", CPU: 64, GPU: 2,
		Specs: []openi.Spec{
			{ID: "cpu-tiny", Name: "a quarter GiB", CPU: 1, Memory: 256 << 20, Price: "0.1"},
			{ID: "cpu-small", Name: "4 GiB", CPU: 1, Memory: 4 << 30, Price: "0.5"},
			{ID: "cpu-large", Name: "32 GiB", CPU: 4, Memory: 32 << 30, Price: "2"},
			{ID: "gpu-a100", Name: "two cards", CPU: 4, Memory: 32 << 30, GPU: 2, GPUName: "nvidia.com/gpu", Price: "25"},
		},
		Grace: time.Hour, // whoever wants it sooner deletes the job
	})
	h := newHost(t, c)
	t.Cleanup(c.Close)
	return provider{
		faults: &c.Faults, create: "POST /v1/trainmanage/trainjob", forget: c.Forget, left: c.Left,
		host: h, hang: c.Faults.Hang, fill: c.Fill, logOut: c.LogOut, starts: c.Starts,
		cfg: Config{
			File: shipped(t, "openi"), AllowPrivate: true, Poll: 100 * time.Millisecond, Refresh: 100 * time.Millisecond, Rate: 500,
			Settings: map[string]string{"endpoint": h.url(), "username": "pcm", "image": openi.DefaultImage},
			Secrets:  secrets(t, map[string]string{"password": "correct horse"}),
		},
	}
}

func TestConformanceOpenI(t *testing.T) {
	minutes(t)
	t.Parallel()
	c := startOpenI(t)
	lacks := described(t, c.cfg)
	lacks["images"] = "the fake platform runs all images alike" // the description does not lack them
	adaptertest.Run(t, adaptertest.Subject{
		Name: "rest (openi)", Script: steps, Remote: true, Parallel: 10, Pace: time.Second, Patience: 2 * time.Minute, Many: 12,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 2 },
		Env:     []string{"OCTOPUS_*", "NVIDIA_VISIBLE_DEVICES", "OLDPWD", "SHLVL", "_"},
		Enough:  16 << 30, Unsupported: lacks,
		New: c.instance,
		Own: func(t *testing.T) adaptertest.Instance { return startOpenI(t).instance(t) },
	})
}

// The pools are the platform's resource specs, in our words.
func TestOpenIPools(t *testing.T) {
	c := startOpenI(t)
	pools, err := c.instance(t).Adapter.Pools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[pcm.PoolID]pcm.Pool{}
	for _, p := range pools {
		found[p.ID] = p
	}
	if p := found["cpu-large"]; p.Slots != 16 || p.Capacity.CPU != 64000 || p.Capacity.Memory != 16*32<<30 || p.Capacity.GPU != 0 || p.Accelerator != nil {
		t.Errorf("%+v", p)
	}
	if p := found["gpu-a100"]; p.Slots != 1 || p.Capacity.GPU != 2 || p.Accelerator == nil || p.Accelerator.Vendor != "nvidia" {
		t.Errorf("%+v", p)
	}
}

func TestOpenIFaults(t *testing.T) { testFaults(t, startOpenI) }
