package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// DefaultSocket is where Docker listens.
const DefaultSocket = "unix:///var/run/docker.sock"

// callLimit bounds a call to the engine whose context has no earlier deadline.
const callLimit = 15 * time.Second

// engine is the way to the container engine of this machine. It connects with
// the first call, and again after a loss.
type engine struct {
	*client.Client
	socket string // its path

	turns chan struct{} // of those who have containers made and started

	asking chan struct{} // of the one who asks for facts
	mu     sync.Mutex
	about  *facts
	asked  time.Time // when
}

// factsAge is how long what an engine says of itself is believed. Podman looks at
// each container before it answers that, and so waits for all that it does.
const factsAge = time.Minute

// startsAtOnce bounds how many containers are being started at once: engines do
// that one after the other, more or less, and calls beyond that only time out.
var startsAtOnce = max(8, 4*runtime.NumCPU())

// facts are what an engine says of itself.
type facts struct {
	name    string // docker or podman
	version string
	os      string
	arch    string // as Go calls it
	cpus    int
	memory  pcm.Bytes
	driver  string // of cgroups: cgroupfs, systemd
	cgroups string // v1, v2
	runtime string // the default one
	init    bool   // can put an init process into containers
}

// openEngine checks the address. Only an engine of this machine will do: it
// mounts the tasks' folders.
func openEngine(socket string) (*engine, error) {
	if socket == "" {
		socket = DefaultSocket
	}
	path, ok := strings.CutPrefix(socket, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, pcm.Errorf(pcm.Invalid, "container engine at %q: give the path of a socket of this machine, like %s; "+
			"an engine that is reached by network can't mount the tasks' folders", socket, DefaultSocket)
	}
	c, err := client.New(client.WithHost(socket))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "container engine at %q: %w", socket, err)
	}
	return &engine{Client: c, socket: path, turns: make(chan struct{}, startsAtOnce), asking: make(chan struct{}, 1)}, nil
}

// bounded gives ctx a deadline if it has none that is earlier.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callLimit)
}

// facts asks the engine about itself.
func (e *engine) facts(ctx context.Context) (facts, error) {
	vctx, cancel := bounded(ctx)
	defer cancel()
	v, err := e.ServerVersion(vctx, client.ServerVersionOptions{})
	if err != nil {
		return facts{}, e.fault(err)
	}
	ictx, cancel := bounded(ctx)
	defer cancel()
	res, err := e.Info(ictx, client.InfoOptions{})
	if err != nil {
		return facts{}, e.fault(err)
	}
	info := res.Info
	if uid, err := e.owner(ictx); err != nil {
		return facts{}, e.fault(err)
	} else if uid != 0 || slices.ContainsFunc(info.SecurityOptions, func(o string) bool { return strings.HasPrefix(o, "name=rootless") }) {
		return facts{}, pcm.Errorf(pcm.Unavailable, "the container engine at %s runs without root (as user %d): it would ignore limits where it can't set them, "+
			"and number users in its own way; give the socket of one that runs as root, or sell processes instead", e.socket, uid)
	}
	f := facts{
		name: "docker", version: v.Version, os: info.OSType, arch: goArch(info.Architecture), cpus: info.NCPU, memory: pcm.Bytes(info.MemTotal),
		driver: info.CgroupDriver, cgroups: "v" + info.CgroupVersion, runtime: info.DefaultRuntime,
	}
	if f.cgroups == "v" {
		f.cgroups = "v1"
	}
	for _, c := range v.Components {
		switch {
		case strings.HasPrefix(c.Name, "Podman"):
			f.name = "podman"
		case c.Name == "docker-init":
			f.init = c.Version != "" && c.Version != "N/A"
		}
	}
	return f, nil
}

// owner is the user who listens at the socket.
func (e *engine) owner(ctx context.Context) (uid uint32, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", e.socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = cmp.Or(cerr, err); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// known are the facts as they were last seen; asked for if they never were.
func (e *engine) known(ctx context.Context) (facts, error) { return e.seen(ctx, false) }

// current are facts of an engine that answers now.
func (e *engine) current(ctx context.Context) (facts, error) {
	pctx, cancel := bounded(ctx)
	defer cancel()
	if _, err := e.Ping(pctx, client.PingOptions{}); err != nil {
		return facts{}, e.fault(err)
	}
	return e.seen(ctx, true)
}

// seen are the facts, asked for by one at a time. If fresh, they are asked for again
// when they are old; an engine that is too busy to tell is believed to be as it was.
func (e *engine) seen(ctx context.Context, fresh bool) (facts, error) {
	last := func() *facts {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.about == nil || fresh && time.Since(e.asked) > factsAge {
			return nil
		}
		return e.about
	}
	if f := last(); f != nil {
		return *f, nil
	}
	select {
	case e.asking <- struct{}{}:
		defer func() { <-e.asking }()
	case <-ctx.Done():
		return facts{}, e.fault(ctx.Err())
	}
	if f := last(); f != nil {
		return *f, nil
	}
	f, err := e.facts(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil:
		e.about = &f
	case e.about == nil || !away(err):
		return facts{}, err
	}
	e.asked = time.Now()
	return *e.about, nil
}

// is tells whether the engine, as it was last seen, is the one named.
func (e *engine) is(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.about != nil && e.about.name == name
}

func goArch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return machine
}

// fault turns an error of the client into one of ours. That the engine can't be
// reached or doesn't answer in time is Unavailable.
func (e *engine) fault(err error) error {
	var ours *pcm.Error
	switch {
	case err == nil || errors.As(err, &ours):
		return err
	case errors.Is(err, os.ErrPermission):
		return pcm.Errorf(pcm.Unavailable, "the container engine at %s refuses this user: add the user to the socket's group, or give another socket", e.socket)
	case away(err):
		return pcm.Errorf(pcm.Unavailable, "the container engine at %s does not answer: %s", e.socket, brief(err))
	case errdefs.IsNotFound(err):
		return pcm.Errorf(pcm.NotFound, "container engine: %s", brief(err))
	case errdefs.IsConflict(err):
		return pcm.Errorf(pcm.Conflict, "container engine: %s", brief(err))
	}
	return pcm.Errorf(pcm.Internal, "container engine: %s", brief(err))
}

// away tells whether the engine could not be asked, so that asking again may help.
func away(err error) bool {
	var ne net.Error
	return client.IsErrConnectionFailed(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.As(err, &ne) || errdefs.IsUnavailable(err) || errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "EOF") ||
		strings.Contains(err.Error(), "connection reset") || strings.Contains(err.Error(), "broken pipe") ||
		pcm.ErrorCode(err) == pcm.Unavailable
}

// brief is what the engine said, without the client's prefix.
func brief(err error) string {
	s := strings.TrimSpace(err.Error())
	s = strings.TrimPrefix(s, "Error response from daemon: ")
	s, _, _ = strings.Cut(s, "\n")
	return fmt.Sprintf("%.200s", s)
}
