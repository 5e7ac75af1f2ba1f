package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The labels of our containers.
const (
	labelHome = "pcm.home" // the supervisor that it belongs to
	labelKey  = "pcm.key"  // of the attempt
	labelRun  = "pcm.run"  // a random word of the one who made it
)

// workFolder is where tasks find their working folder.
const workFolder = "/work"

// minMemory is what engines need to start anything.
const minMemory = 6 << 20

func nameOf(k adapters.Key) string { return "pcm-" + k.String() }

// owner is who tasks run as, inside and outside.
type owner struct{ uid, gid int }

// nobody is whom tasks run as where the engine's user is root.
const nobody = 65534

func newOwner(user string) (owner, error) {
	if user == "" {
		if os.Getuid() == 0 {
			return owner{nobody, nobody}, nil
		}
		return owner{os.Getuid(), os.Getgid()}, nil
	}
	u, g, ok := strings.Cut(user, ":")
	uid, err1 := strconv.ParseUint(u, 10, 31)
	gid, err2 := strconv.ParseUint(g, 10, 31)
	if !ok || err1 != nil || err2 != nil {
		return owner{}, pcm.Errorf(pcm.Invalid, "user %q is not of the form UID:GID, in numbers", user)
	}
	return owner{int(uid), int(gid)}, nil
}

func (o owner) String() string { return fmt.Sprintf("%d:%d", o.uid, o.gid) }

// lay makes the working folder the task's own, with a place for each input to be
// mounted on. The engine would make those as root.
func (o owner) lay(t *supervisor.Run) error {
	root, err := os.OpenRoot(t.Work)
	if err != nil {
		return err
	}
	defer root.Close()
	own := func(name string) error {
		if os.Getuid() != 0 {
			return nil
		}
		return root.Lchown(name, o.uid, o.gid)
	}
	if err := own("."); err != nil {
		return err
	}
	for _, in := range t.Inputs {
		info, err := os.Stat(in.Path)
		if err != nil {
			return fmt.Errorf("input %s is not ready here: %w", in.Target, err)
		}
		target := path.Clean(in.Target)
		for i, c := range target {
			if c != '/' {
				continue
			}
			if err := root.Mkdir(target[:i], 0o755); errors.Is(err, fs.ErrExist) {
				continue
			} else if err != nil {
				return err
			}
			if err := own(target[:i]); err != nil {
				return err
			}
		}
		if info.IsDir() {
			err = root.Mkdir(target, 0o755)
		} else {
			err = root.WriteFile(target, nil, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// options are how the task's container is made.
func (r *Runner) options(ctx context.Context, t *supervisor.Run, img imageFacts, image, nonce string, devices []string) (client.ContainerCreateOptions, error) {
	about, err := r.engine.known(ctx)
	if err != nil {
		return client.ContainerCreateOptions{}, err
	}
	// The host's name is nothing of the task's: a variable without a value is taken out.
	env := append(supervisor.Environ(t.Task, workFolder, img.path), "HOSTNAME")
	cfg := &container.Config{
		Image: image, User: r.owner.String(), WorkingDir: workFolder, Env: env, AttachStdout: true, AttachStderr: true, Hostname: "task",
		Labels:      map[string]string{labelHome: r.home, labelKey: t.Key.String(), labelRun: nonce},
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	if about.name == "podman" {
		cfg.Env = env[:len(env)-1] // it would look the value up
		cfg.Healthcheck = nil      // it would set up timers for none
	}
	if len(t.Command) > 0 {
		cfg.Entrypoint, cfg.Cmd = t.Command[:1], append(append([]string{}, t.Command[1:]...), t.Args...)
	} else {
		cfg.Cmd = t.Args
	}
	pids := int64(r.cfg.PIDs)
	host := &container.HostConfig{
		NetworkMode: "none", ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}, Runtime: r.cfg.Runtime,
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, IpcMode: "private",
		Tmpfs: map[string]string{"/tmp": fmt.Sprintf("rw,exec,nosuid,nodev,mode=1777,size=%d", r.cfg.Tmp)},
		// Enough to read all output again after a crash of the supervisor, and never a full disk.
		LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": strconv.FormatInt(int64(min(2*t.OutputCap+1<<20, maxLog)), 10), "max-file": "2"}},
		Resources: container.Resources{
			Memory: int64(t.Resources.Memory), MemorySwap: int64(t.Resources.Memory), PidsLimit: &pids, CgroupParent: r.meter.parent(t.Key),
		},
	}
	if cpu := int64(t.Resources.CPU); cpu > 0 {
		host.CPUPeriod, host.CPUQuota, host.CPUShares = 100_000, max(cpu*100, 1000), max(cpu*1024/1000, 2)
	}
	if t.Network {
		host.NetworkMode = container.NetworkMode(r.cfg.Network)
	}
	if about.init {
		yes := true
		host.Init = &yes
	}
	bind := func(from, to string, ro bool) {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: from, Target: to, ReadOnly: ro})
	}
	bind(t.Work, workFolder, false)
	for _, in := range t.Inputs {
		bind(in.Path, path.Join(workFolder, path.Clean(in.Target)), true)
	}
	r.gpus.give(host, cfg, devices)
	return client.ContainerCreateOptions{Config: cfg, HostConfig: host, Name: nameOf(t.Key)}, nil
}

// maxLog bounds what the engine keeps of a task's output, twice.
const maxLog = 256 << 20

// createExit says what it means that a container can't be made.
func createExit(t *supervisor.Run, image string, err error) supervisor.Exit {
	s := brief(err)
	switch low := strings.ToLower(s); {
	case strings.Contains(low, "minimum memory limit"):
		return tooTight(t)
	case strings.Contains(low, "no such image"):
		return seller("image %s was taken from the engine while the task was to start", image)
	case strings.Contains(low, "no command specified"):
		return failed(127, "image %s names no command of its own: give one", image)
	}
	return seller("its container can't be made: %s", s)
}

// startExit says what it means that a container can't be started.
func startExit(t *supervisor.Run, image string, err error) supervisor.Exit {
	program := cmp.Or(strings.Join(t.Command[:min(len(t.Command), 1)], ""), "of the image")
	s := brief(err)
	low := strings.ToLower(s)
	switch {
	case strings.Contains(low, "oom-killed"), strings.Contains(low, "memory limit too low"), strings.Contains(low, "cannot allocate memory"):
		return tooTight(t)
	case strings.Contains(low, "could not select device driver"), strings.Contains(low, "nvidia-container"):
		return seller("the engine can't give it the accelerators that were sold: %s", s)
	case strings.Contains(low, "executable file") && strings.Contains(low, "not found"), strings.Contains(low, "exec") && strings.Contains(low, "no such file"):
		return failed(127, "program %q was not found in image %s, or its interpreter was not", program, image)
	case strings.Contains(low, "exec") && (strings.Contains(low, "permission denied") || strings.Contains(low, "format error") || strings.Contains(low, "is a directory")):
		return failed(126, "program %q of image %s can't be run: %.150s", program, image, s)
	}
	return seller("its container can't be started: %s", s)
}

// tooTight is the end of a task whose limit leaves no room to start a program.
func tooTight(t *supervisor.Run) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeMemory, Code: 137,
		Reason: fmt.Sprintf("its %s of memory are too little to start a program: ask for more", t.Resources.Memory)}
}
