package server

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
)

// Engine is a container engine that speaks the Docker Engine API: [Dockerd] or [Podman].
type Engine struct {
	*Folder
	Socket  string // as unix://PATH
	Network string // by which its containers reach this machine
	API     *client.Client

	path  string
	args  []string
	env   []string
	proc  *Process
	below *Process // what it needs to run: containerd; nil: nothing
	stop  context.CancelFunc
	done  sync.WaitGroup

	linger time.Duration // how long its processes may outlive it

	mu     sync.Mutex
	starts map[string]int // by name of container
}

func (e *Engine) open(ctx context.Context) (err error) {
	e.Socket = "unix://" + e.Path("engine.sock")
	if e.API, err = client.New(client.WithHost(e.Socket)); err != nil {
		return err
	}
	if err := e.start(ctx); err != nil {
		return err
	}
	e.starts = map[string]int{}
	follow, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.done.Go(func() { e.follow(follow) })
	return nil
}

func (e *Engine) start(ctx context.Context) (err error) {
	if e.proc, err = e.Folder.Start("engine", e.env, e.path, e.args...); err != nil {
		return err
	}
	return e.proc.Ready(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := e.API.Ping(ctx, client.PingOptions{})
		return err
	})
}

// follow counts how often each container is started, also over restarts. Each
// connection is told all from the beginning, as the engine remembers it: it tells of
// starts in the order of their times only by chance.
func (e *Engine) follow(ctx context.Context) {
	type start struct {
		container string
		at        int64
	}
	since, counted := time.Now(), map[start]bool{}
	for ctx.Err() == nil {
		stream := e.API.Events(ctx, client.EventsListOptions{
			Since: fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()), Filters: client.Filters{}.Add("type", "container").Add("event", "start"),
		})
		for open := true; open; {
			select {
			case m := <-stream.Messages:
				if s := (start{m.Actor.ID, m.TimeNano}); !counted[s] {
					counted[s] = true
					e.mu.Lock()
					e.starts[m.Actor.Attributes["name"]]++
					e.mu.Unlock()
				}
			case <-stream.Err:
				open = false
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Starts tells how often a container of this name was started so far. The engine
// tells of it a moment after: one that was not started is waited for shortly.
func (e *Engine) Starts(name string) int {
	for end := time.Now().Add(5 * time.Second); ; {
		e.mu.Lock()
		n := e.starts[name]
		e.mu.Unlock()
		if n > 0 || time.Now().After(end) {
			return n
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Hang stops the engine until resume is called; containers run on.
func (e *Engine) Hang() (resume func()) { return e.proc.Hang() }

// Crash ends the engine hard. [Engine.Restart] starts it again.
func (e *Engine) Crash() { e.proc.Kill() }

// Restart ends the engine as a crash would and starts it again.
func (e *Engine) Restart(ctx context.Context) error {
	e.proc.Kill()
	return e.start(ctx)
}

// Shutdown ends the engine as an operator does, and starts it again.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.proc.Stop(30 * time.Second)
	return e.start(ctx)
}

// Load makes an image of files, by path, without a registry.
func (e *Engine) Load(ctx context.Context, name string, files map[string]string) error {
	layer := archive(files)
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	res, err := e.API.ImageLoad(ctx, bytes.NewReader(archive(map[string]string{
		"manifest.json": string(manifest), "config.json": string(config), "layer.tar": string(layer),
	})))
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't load image %s: %w", name, err)
	}
	defer res.Close()
	said, err := io.ReadAll(res)
	if err == nil {
		_, err = e.API.ImageInspect(ctx, name)
	}
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't load image %s: %w: %.500s", name, err, said)
	}
	return nil
}

func archive(files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, c := range name {
			if dir := name[:i]; c == '/' && !made[dir] {
				made[dir] = true
				w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}) // into memory
			}
		}
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))})
		io.WriteString(w, files[name])
	}
	w.Close()
	return buf.Bytes()
}

// Close removes all containers, ends the engine and deletes its folder.
func (e *Engine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if e.stop != nil {
		e.stop()
		e.done.Wait()
	}
	var left []string
	if e.proc != nil {
		e.proc.Signal(syscall.SIGCONT)
		all, err := e.API.ContainerList(ctx, client.ContainerListOptions{All: true})
		for _, c := range all.Items {
			left = append(left, strings.Join(c.Names, ","))
			e.API.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true}) // else its processes are named below
		}
		if err == nil && e.Network != "" {
			e.API.NetworkRemove(ctx, e.Network, client.NetworkRemoveOptions{}) // likewise
		}
		e.proc.Stop(30 * time.Second)
	}
	if e.below != nil {
		e.below.Stop(10 * time.Second)
	}
	for end := time.Now().Add(e.linger); time.Now().Before(end) && len(e.processes()) > 0; {
		<-time.After(50 * time.Millisecond)
	}
	err := e.Folder.Close()
	if err == nil && len(left) > 0 {
		err = pcm.Errorf(pcm.Internal, "containers were left: %s", strings.Join(left, " "))
	}
	return err
}

// bridge makes the network.
func (e *Engine) bridge(ctx context.Context) error {
	name := path.Base(e.Dir)
	_, err := e.API.NetworkCreate(ctx, name, client.NetworkCreateOptions{Driver: "bridge", IPAM: &network.IPAM{}})
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make a network: %w", err)
	}
	e.Network = name
	return nil
}
