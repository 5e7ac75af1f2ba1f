package container

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/container"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func TestEntryName(t *testing.T) {
	for _, c := range [][3]string{
		{".", ".", "."}, {".", ".hidden", ".hidden"}, {".", "d/.hidden", "d/.hidden"},
		{"a/d", "a/d", "d"}, {"a/d", "a/d/.hidden", "d/.hidden"}, {".h", ".h/x", ".h/x"},
	} {
		if got := entryName(c[0], c[1]); got != c[2] {
			t.Errorf("%s in an archive of %s is called %s, want %s", c[1], c[0], got, c[2])
		}
	}
}

func TestAllowedImages(t *testing.T) {
	m, err := newImages(nil, RunnerConfig{DefaultImage: "debian:12", Images: []string{"docker.io/library/busybox:*", "registry.example/team/*"}})
	if err != nil {
		t.Fatal(err)
	}
	digest := "@sha256:" + strings.Repeat("a", 64)
	for name, want := range map[string]pcm.Code{
		"": "", "debian:12": "", "docker.io/library/debian:12": "", "busybox": "", "busybox:1.36": "", "registry.example/team/sub/app" + digest: "",
		"debian": pcm.Refused, "debian:13": pcm.Refused, "registry.example/teams/app": pcm.Refused, "registry.example:80/team/app": pcm.Refused,
		"evil.example/docker.io/library/busybox:1": pcm.Refused, "Not An Image": pcm.Invalid, "-v": pcm.Invalid, "a@sha256:12": pcm.Invalid,
	} {
		if got := pcm.ErrorCode(m.check(name)); m.check(name) == nil && want != "" || m.check(name) != nil && got != want {
			t.Errorf("%q: %v, expected %q", name, m.check(name), want)
		}
	}
	if m, _ := newImages(nil, RunnerConfig{Images: []string{"*"}}); m.check("") == nil || m.check("any.example/thing") != nil {
		t.Error("without an image of the seller's own, tasks must name one; all may be allowed")
	}
}

// Whose fault it is that an image can't be had, by what engines say.
func TestPullFaults(t *testing.T) {
	for said, want := range map[string]pcm.Outcome{
		"manifest for debian:99 not found: manifest unknown: manifest unknown":                                                 pcm.OutcomeFailed,
		"pull access denied for nope, repository does not exist or may require 'docker login'":                                 pcm.OutcomeFailed,
		"no matching manifest for linux/amd64 in the manifest list entries":                                                    pcm.OutcomeFailed,
		"unauthorized: authentication required":                                                                                pcm.OutcomeFailed,
		"Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host":                        pcm.OutcomeSeller,
		"toomanyrequests: You have reached your pull rate limit":                                                               pcm.OutcomeSeller,
		"initializing source docker://localhost/x:absent: pinging container registry localhost: dial tcp: connection refused":  pcm.OutcomeSeller,
		"failed to register layer: write /usr/lib/x: no space left on device":                                                  pcm.OutcomeSeller,
		"received unexpected HTTP status: 503 Service Unavailable":                                                             pcm.OutcomeSeller,
		"something that no engine has said so far":                                                                             pcm.OutcomeSeller,
		"Error response from daemon: initializing source docker://quay.io/a/b:c: reading manifest c in quay.io/a/b: not found": pcm.OutcomeFailed,
	} {
		x := pullExit("app:1", errors.New(said))
		if x.Outcome != want || !strings.Contains(x.Reason, "app:1") || len(x.Reason) > 256 {
			t.Errorf("%s: %s, %q", said, x.Outcome, x.Reason)
		}
	}
}

func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	secret := base64.StdEncoding.EncodeToString([]byte("me:s3cret:with colon"))
	text := `{"auths": {"registry.example": {"auth": "` + secret + `"}, "https://index.docker.io/v1/": {"identitytoken": "token"}, "helped.example": {}}, "credsStore": "pass"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := newImages(nil, RunnerConfig{Auth: file})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][3]string{
		"registry.example/a:1": {"me", "s3cret:with colon", ""}, "debian": {"", "", "token"}, "other.example/a": {},
	} {
		encoded, err := m.credentials(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := authconfig.Decode(encoded)
		if err != nil || got.Username != want[0] || got.Password != want[1] || got.IdentityToken != want[2] {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := m.credentials("helped.example/a"); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "helpers") {
		t.Errorf("credentials that only a helper has: %v", err)
	}
	m.auth = file + ".absent"
	if _, err := m.credentials("debian"); pcm.ErrorCode(err) != pcm.Unavailable || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("no file: %v", err)
	}
}

func TestJudge(t *testing.T) {
	exited := func(oom bool) *container.State {
		return &container.State{Status: container.StateExited, OOMKilled: oom}
	}
	full := use{peak: 64 << 20, cpuMS: 7}
	for _, c := range []struct {
		what string
		end  end
		want pcm.Outcome
	}{
		{"a good end", end{state: exited(false)}, pcm.OutcomeOK},
		{"an exit code", end{state: exited(false), code: 3}, pcm.OutcomeFailed},
		{"a code like that of a kill", end{state: exited(false), code: 137, use: use{peak: 1 << 20}, limit: 64 << 20}, pcm.OutcomeFailed},
		{"as Docker tells of memory", end{state: exited(true), code: 137, limit: 64 << 20}, pcm.OutcomeMemory},
		{"as the kernel tells of memory", end{state: exited(false), code: 1, use: use{oomKills: 1}, limit: 64 << 20}, pcm.OutcomeMemory},
		{"as Podman doesn't tell of memory", end{state: exited(false), code: 137, use: full, limit: 64 << 20}, pcm.OutcomeMemory},
		{"a child that was too large", end{state: exited(true), limit: 64 << 20}, pcm.OutcomeOK},
		{"killed by others, and at its limit", end{state: exited(false), code: 137, killed: "9", use: full, limit: 64 << 20}, pcm.OutcomeSeller},
		{"asked to end by others", end{state: exited(false), killed: "15"}, pcm.OutcomeSeller},
		{"killed while the engine was away", end{state: exited(false), code: 137, blind: 1e9, limit: 64 << 20}, pcm.OutcomeSeller},
		{"ended while the engine was away", end{state: exited(false), code: 2, blind: 1e9}, pcm.OutcomeFailed},
		{"dead", end{state: &container.State{Status: container.StateDead}}, pcm.OutcomeSeller},
	} {
		x := judge(c.end)
		if x.Outcome != c.want || (x.Outcome == pcm.OutcomeOK) != (x.Reason == "") || x.Outcome != pcm.OutcomeOK && x.Code == 0 && c.end.killed == "" {
			t.Errorf("%s: %+v, expected %s", c.what, x, c.want)
		}
		if x.CPUMS != c.end.use.cpuMS || x.Memory != c.end.use.peak {
			t.Errorf("%s: its use is lost: %+v", c.what, x)
		}
	}
	if n := states.Of("levitating"); n.State != adapters.Running || !strings.Contains(n.Reason, "levitating") {
		t.Errorf("a word that is not known: %+v", n)
	}
}

func TestAccelerators(t *testing.T) {
	g, err := newGPUs([]string{"nvidia:0", "nvidia:GPU-7", "/dev/davinci1"}, []string{"/dev/davinci_manager"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	two, err := g.take(ctx, 2, func() { t.Error("two of three are not free") })
	if err != nil || !slices.Equal(two, []string{"nvidia:0", "nvidia:GPU-7"}) {
		t.Fatalf("%v, %v", two, err)
	}
	waits, got := make(chan bool, 1), make(chan []string, 1)
	go func() {
		mine, _ := g.take(ctx, 2, func() { waits <- true })
		got <- mine
	}()
	<-waits
	g.back(two[:1])
	mine := <-got
	if !slices.Equal(mine, []string{"/dev/davinci1", "nvidia:0"}) {
		t.Errorf("the second has %v", mine)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := g.take(done, 1, func() {}); !errors.Is(err, context.Canceled) {
		t.Errorf("one that was given up: %v", err)
	}
	host, cfg := &container.HostConfig{}, &container.Config{}
	g.give(host, cfg, mine)
	if len(host.DeviceRequests) != 1 || !slices.Equal(host.DeviceRequests[0].DeviceIDs, []string{"0"}) || len(host.Devices) != 2 ||
		host.Devices[0].PathInContainer != "/dev/davinci1" || host.Devices[1].PathOnHost != "/dev/davinci_manager" || !slices.Contains(cfg.Env, "ASCEND_VISIBLE_DEVICES=1") {
		t.Errorf("given: %+v, %v", host.Resources, cfg.Env)
	}
	for _, bad := range [][]string{{"nvidia:"}, {"gpu0"}, {""}} {
		if _, err := newGPUs(bad, nil); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestAcceleratorsNamed: what the named ones are is told by what was found, and
// nobody else gets them.
func TestAcceleratorsNamed(t *testing.T) {
	kind := func(name, vendor string, each ...adapters.Device) adapters.Devices {
		a, ok := pcm.FindAccelerator(name)
		if !ok || a.Vendor != vendor {
			t.Fatalf("%s is %+v", name, a)
		}
		return adapters.Devices{Accelerator: a.Accelerator, Each: each}
	}
	a100 := kind("a100.80g", "nvidia", adapters.Device{ID: "GPU-0a"}, adapters.Device{ID: "GPU-0b"})
	t4 := kind("t4.16g", "nvidia", adapters.Device{ID: "GPU-0c"})
	npu := kind("ascend910b.64g", "huawei", adapters.Device{ID: "0", Nodes: []string{"/dev/davinci0"}}, adapters.Device{ID: "1", Nodes: []string{"/dev/davinci1"}})
	slice := a100
	slice.Accelerator = a100.Accelerator.Sliced("3g.40gb", 7)
	for _, c := range []struct {
		what  string
		named []string
		found []adapters.Devices
		want  string // of the pool; "": not stated
		rest  int
	}{
		{"by index", []string{"nvidia:0", "nvidia:1"}, []adapters.Devices{a100, npu}, "a100.80g", 2},
		{"one of two by index", []string{"nvidia:1"}, []adapters.Devices{a100}, "a100.80g", 1},
		{"by UUID, among several kinds", []string{"nvidia:gpu-0c"}, []adapters.Devices{a100, t4}, "t4.16g", 2},
		{"by index, among several kinds", []string{"nvidia:0"}, []adapters.Devices{a100, t4}, "", 3},
		{"not all alike", []string{"nvidia:GPU-0a", "nvidia:GPU-0c"}, []adapters.Devices{a100, t4}, "", 1},
		{"by device file", []string{"/dev/davinci1"}, []adapters.Devices{a100, npu}, "ascend910b.64g", 3},
		{"slices by index", []string{"nvidia:0"}, []adapters.Devices{slice}, "", 2},
		{"slices by UUID", []string{"nvidia:GPU-0b"}, []adapters.Devices{slice}, "a100.3g.40gb", 1},
		{"one that isn't there", []string{"nvidia:0", "nvidia:7"}, []adapters.Devices{a100}, "", 1},
		{"nothing was found", []string{"nvidia:0"}, nil, "", 0},
		{"none named", nil, []adapters.Devices{a100}, "", 2},
	} {
		r, err := NewRunner(RunnerConfig{Socket: "unix:///nowhere.sock", GPUs: c.named, Devices: c.found})
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		f, got := r.Facts(), ""
		if f.Accelerator != nil {
			got = f.Accelerator.Name()
		}
		_, rest := Split(c.named, c.found)
		n := 0
		for _, d := range rest {
			n += len(d.Each)
		}
		if got != c.want || f.GPU != int64(len(c.named)) || n != c.rest {
			t.Errorf("%s: %d of %q, %d left; want %q, %d", c.what, f.GPU, got, n, c.want, c.rest)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, bad := range []RunnerConfig{
		{Socket: "tcp://127.0.0.1:2375"}, {Socket: "/var/run/docker.sock"}, {Socket: "unix://relative"}, {User: "nobody"}, {User: "1"}, {User: "-1:5"},
		{Pull: "sometimes"}, {DefaultImage: "No Image"}, {GPUDevices: []string{"nvidia:0"}},
	} {
		if _, err := NewRunner(bad); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	r, err := NewRunner(RunnerConfig{Socket: "unix://" + filepath.Join(t.TempDir(), "absent.sock"), DefaultImage: "debian:12", User: "1000:100"})
	if err != nil {
		t.Fatalf("an engine that is not there yet: %v", err)
	}
	if _, err := r.engine.facts(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("facts of an engine that is not there: %v", err)
	}
	task := adapters.Task{Command: []string{"x"}, Network: true}
	if err := r.Check(task); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("a network that is not sold: %v", err)
	}
}
