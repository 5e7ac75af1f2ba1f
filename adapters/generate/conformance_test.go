package generate

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/plugin"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/rest/fake/openi"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/configs"
)

// The test binary is the tests and a supervisor, whose mode is the file with the plug-in's configuration.
func TestMain(m *testing.M) {
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		cfg, err := pluginConfig(mode, dir)
		if err != nil {
			return nil, err
		}
		cfg.Logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
		r, err := plugin.NewRunner(cfg)
		return []supervisor.Runner{r}, err
	})
}

func pluginConfig(file, dir string) (cfg plugin.Config, err error) {
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &cfg)
	}
	cfg.Dir = dir
	return cfg, err
}

// program is what tasks run.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pcm-generate-task-")
	if err != nil {
		return "", err
	}
	return build(filepath.Join(dir, "task"), "", adaptertest.ScriptPackage)
})

func build(to, dir, pkg string) (string, error) {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = &os.PathError{Op: "build", Path: string(out), Err: err}
	}
	return to, err
}

func taskProgram(t *testing.T) string {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func steps(t *testing.T, task *adapters.Task, steps ...string) {
	t.Helper()
	task.Command = append([]string{"./task"}, steps...)
	task.Inputs = []adapters.Mount{{Path: taskProgram(t), Target: "task"}}
}

// site serves a fake cloud, and can go away for a while.
type site struct {
	t       *testing.T
	handler http.Handler
	address string
	server  *http.Server
}

func (s *site) start() {
	s.t.Helper()
	var l net.Listener
	var err error
	for end := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		if l, err = net.Listen("tcp", s.address); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.address, s.server = l.Addr().String(), &http.Server{Handler: s.handler, ReadHeaderTimeout: time.Minute}
	go s.server.Serve(l)
}

// jobName is that of an attempt at a described back end.
func jobName(instance string, k adapters.Key) string {
	sum := sha256.Sum256([]byte(instance))
	owner := "pcm-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
	name := owner + "-" + strings.TrimPrefix(string(k.Trade), "trd-") + "-" + strconv.Itoa(k.Index) + "-" + strconv.Itoa(k.Attempt)
	if len(name) <= 63 {
		return name
	}
	sum = sha256.Sum256([]byte(name))
	return owner + "-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20]))
}

// startOpenI is a generated plug-in at a fake platform.
func startOpenI(t *testing.T, program string) adaptertest.Instance {
	t.Helper()
	c := openi.New(openi.Options{
		Dir: t.TempDir(), Username: "pcm", Password: "correct horse", CPU: 64, GPU: 2,
		Specs: []openi.Spec{
			{ID: "cpu-tiny", Name: "a quarter GiB", CPU: 1, Memory: 256 << 20, Price: "0.1"},
			{ID: "cpu-small", Name: "4 GiB", CPU: 1, Memory: 4 << 30, Price: "0.5"},
			{ID: "cpu-large", Name: "32 GiB", CPU: 4, Memory: 32 << 30, Price: "2"},
			{ID: "gpu-a100", Name: "two cards", CPU: 4, Memory: 32 << 30, GPU: 2, GPUName: "nvidia.com/gpu", Price: "25"},
		},
		Grace: time.Hour,
	})
	s := &site{t: t, handler: c, address: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { s.server.Close(); c.Close() })
	dir := t.TempDir()
	secret := filepath.Join(dir, "password")
	settings, err := json.Marshal(map[string]string{"endpoint": "http://" + s.address, "username": "pcm", "image": openi.DefaultImage})
	if err == nil {
		err = os.WriteFile(secret, []byte("correct horse\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := plugin.Config{Name: "gen", Command: []string{program}, Settings: settings, Secrets: map[string]string{"password": "file:" + secret}, Instance: "gen-test", Version: "test"}
	raw, err := json.Marshal(cfg)
	file := filepath.Join(dir, "plugin.json")
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	box := adaptertest.NewBox(t, file)
	adapter := func(client *supervisor.Client) adapters.Adapter {
		cfg, err := pluginConfig(file, box.Dir)
		if err != nil {
			t.Fatal(err)
		}
		a, err := plugin.New(cfg, true, client)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	return adaptertest.Instance{
		Adapter: adapter(box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return adapter(box.Reconnect()) },
		Hang:      c.Faults.Hang, Fill: c.Fill,
		Restart: func() { s.server.Close(); c.LogOut(); s.start() },
		Starts:  func(k adapters.Key) int { return c.Starts(jobName("gen-test", k)) },
	}
}

// A project generated from a shipped description passes the suite without a line by hand.
func TestConformanceGo(t *testing.T) {
	text := strings.NewReplacer("rate: 20", "rate: 500", "burst: 40", "burst: 500", "poll: 3s", "poll: 100ms").Replace(string(configs.Adapter("openi")))
	d, problems := description.Parse([]byte(text))
	if d == nil {
		t.Fatal(problems)
	}
	dir := filepath.Join(t.TempDir(), "gen")
	r := generated(t, Options{Name: "gen", Language: "go", Dir: dir, From: []byte(text), FromFile: "openi.yaml"})
	if r.Share.Hand != 0 || len(r.Left) != 0 {
		t.Fatalf("something is left to write: %+v", r)
	}
	program, err := build(filepath.Join(dir, "bin", "adapter"), dir, ".")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("sizes", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		pools, err := startOpenI(t, program).Adapter.Pools(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pools {
			if p.ID == "gen.cpu-tiny" && p.Slots > 1 && p.Largest != nil && p.Largest.CPU == 1000 && p.Largest.Memory == 256<<20 && !p.NoFiles {
				return
			}
		}
		t.Errorf("no pool says that its tasks have 256 MiB: %+v", pools)
	})
	lacks := d.Lacks
	lacks["images"] = "the fake platform runs all images alike"
	adaptertest.Run(t, adaptertest.Subject{
		Name: "generate (Go, openi)", Script: steps, Remote: true, Parallel: 10, Pace: time.Second, Patience: 2 * time.Minute, Many: 6,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 2 },
		Env:     []string{"OCTOPUS_*", "NVIDIA_VISIBLE_DEVICES", "OLDPWD", "SHLVL", "_"},
		Enough:  16 << 30, Unsupported: lacks,
		New: func(t *testing.T) adaptertest.Instance { return startOpenI(t, program) },
	})
}
