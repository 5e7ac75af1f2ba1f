// Package kubernetes runs tasks in a Kubernetes cluster: each as a batch/v1 Job of
// one pod, or, where many tasks of a trade are started together, as an Indexed
// Job. Nothing is installed in the cluster: inputs and outputs travel by exec
// through a small helper container, output is read from the pods' logs.
//
// [New] is the daemon's side, [NewRunner] the supervisor's.
package kubernetes

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"path"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Name is the name of the adapter, its first pool and its runner.
const Name = "kubernetes"

// Config says what the pools offer.
type Config struct {
	Settings
	Capacity pcm.Resources // at most; zero parts: what the cluster has
	Slots    int           // attempts at once, at most; 0: as many pods as fit
	Labels   pcm.Labels
	Logger   *slog.Logger
}

// Adapter is the daemon's side. It implements adapters.Adapter, adapters.Fencer
// and the roles below. It is no Suspender: suspending a Job deletes its pod.
type Adapter struct {
	*supervisor.Attempts
	cfg    Config
	c      *cluster
	census *census
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Fencer  = (*Adapter)(nil)
	_ adapters.Batcher = (*Adapter)(nil)
	_ adapters.Execer  = (*Adapter)(nil)
	_ adapters.Copier  = (*Adapter)(nil)
	_ adapters.Dialer  = (*Adapter)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's
// runner. It watches the cluster until ctx ends.
func New(ctx context.Context, cfg Config, client *supervisor.Client) (*Adapter, error) {
	cfg.Settings.Defaults()
	if err := cfg.Settings.Validate(); err != nil {
		return nil, err
	}
	c, err := connect(cfg.Settings)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Adapter{Attempts: client.Attempts(Name), cfg: cfg, c: c, census: newCensus(c, cfg.Logger)}
	go a.census.run(ctx)
	return a, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return Name }

// MaxBatch implements adapters.Batcher.
func (a *Adapter) MaxBatch() int { return pcm.MaxBatch }

// maxSlots of a pool whose number of pods nothing bounds.
const maxSlots = 1024

// Pools describes the cluster: a pool of nodes without accelerators, and one for
// each kind of accelerator.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	shares, bound, listed, err := a.census.shares(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.c.answers(ctx); err != nil {
		return nil, err // what is known of it may be old
	}
	facts, err := a.Facts(ctx)
	if err != nil {
		return nil, err
	}
	if !listed {
		one := share{amounts: bound}
		if bound.cpu < 0 {
			one.cpu = int64(a.cfg.Capacity.CPU)
		}
		if bound.memory < 0 {
			one.memory = int64(a.cfg.Capacity.Memory)
		}
		if one.gpu = bound.gpu; bound.gpu < 0 {
			one.gpu = a.cfg.Capacity.GPU
		}
		if one.pods < 0 {
			one.pods = maxSlots
		}
		if one.cpu <= 0 || one.memory <= 0 {
			return nil, pcm.Errorf(pcm.Refused, "the nodes of the cluster may not be listed, and no quota of namespace %s says how much there is: set the capacity, or allow listing nodes", a.cfg.Namespace)
		}
		shares = []share{one}
	}
	var pools []pcm.Pool
	for _, s := range shares {
		if p, ok := a.pool(s, bound, facts); ok {
			pools = append(pools, p)
		}
	}
	return pools, nil
}

func (a *Adapter) pool(s share, bound amounts, facts supervisor.Facts) (pcm.Pool, bool) {
	limit := func(have, quota, most int64) int64 {
		if quota >= 0 {
			have = min(have, quota)
		}
		if most > 0 {
			have = min(have, most)
		}
		return have
	}
	p := pcm.Pool{ID: Name, Adapter: Name, Sandbox: facts.Sandbox, Labels: pcm.Labels{"os": "linux", "measured": "with-inputs"}}
	if a.cfg.Measure {
		p.Labels["measured"] = "always"
	}
	p.Capacity.CPU = pcm.MilliCPU(limit(s.cpu, bound.cpu, int64(a.cfg.Capacity.CPU)))
	p.Capacity.Memory = pcm.Bytes(limit(s.memory, bound.memory, int64(a.cfg.Capacity.Memory)))
	slots := a.cfg.Slots
	if slots == 0 {
		slots = math.MaxInt32
	}
	p.Slots = int(min(limit(s.pods, bound.pods, int64(slots)), 1<<20))
	if s.accelerator != "" {
		p.ID = poolOf(s.accelerator)
		p.Capacity.GPU = limit(s.gpu, bound.gpu, a.cfg.Capacity.GPU)
		kind, _ := adapters.AcceleratorOf(adapters.NameKubernetes, s.accelerator)
		kind, _ = adapters.WithProduct(kind, s.product)
		p.Accelerator = &kind
	}
	if s.nodes > 1 {
		p.Largest = &pcm.Resources{CPU: pcm.MilliCPU(s.largest.cpu), Memory: pcm.Bytes(s.largest.memory)}
		if s.accelerator != "" {
			p.Largest.GPU = s.largest.gpu
		}
	}
	if s.arch != "" {
		p.Labels["arch"] = s.arch
	}
	if s.os != "" {
		p.Labels["os"] = s.os
	}
	if s.nodes > 0 {
		p.Labels["nodes"] = fmt.Sprint(s.nodes)
	}
	maps.Copy(p.Labels, facts.Labels)
	maps.Copy(p.Labels, a.cfg.Labels)
	features := []pcm.Feature{pcm.FeatureCommand}
	if len(a.cfg.Images) > 0 {
		features = append(features, pcm.FeatureImage)
	}
	if a.cfg.Network {
		features = append(features, pcm.FeatureNetwork)
	}
	p.Features = adapters.Features(a, features...)
	return p, p.Capacity.CPU > 0 && p.Capacity.Memory > 0 && p.Slots > 0
}

// found is a running pod.
type found struct {
	name    string
	helped  bool // has busybox
	holding bool // has the helper that keeps outputs
}

// find looks up the pod of an attempt by labels that derive from its key.
func (a *Adapter) find(ctx context.Context, k adapters.Key) (found, error) {
	own := labelManaged + "=" + managed + "," + labelInstance + "=" + a.cfg.Instance + ","
	for _, selector := range []string{own + labelKey + "=" + hash(k.String()), own + labelTrade + "=" + string(k.Trade)} {
		opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
		for range maxPages {
			page, err := a.c.in(pods).List(ctx, opts)
			if err != nil {
				return found{}, fault("look for the pod of attempt "+k.String(), err)
			}
			for i := range page.Items {
				o := &page.Items[i]
				v, err := viewPod(o)
				if pk, kerr := keyOf(o); kerr != nil || err != nil || pk != k || !v.started || v.ended {
					continue
				}
				var w wirePod
				if err := decode(o, &w); err != nil {
					continue
				}
				return found{v.name, len(w.Spec.InitContainers) > 0, len(w.Spec.Containers) > 1}, nil
			}
			if opts.Continue = page.GetContinue(); opts.Continue == "" {
				break
			}
		}
	}
	return found{}, pcm.Errorf(pcm.Conflict, "attempt %s does not run now", k)
}

// Exec implements adapters.Execer.
func (a *Adapter) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	if len(x.Command) == 0 {
		return 0, pcm.Errorf(pcm.Invalid, "no command is given")
	}
	p, err := a.find(ctx, k)
	if err != nil {
		return 0, err
	}
	resize := x.Resize
	if x.TTY && x.Rows > 0 && x.Cols > 0 {
		sizes := make(chan [2]uint16, 1)
		sizes <- [2]uint16{x.Rows, x.Cols}
		resize = sizes
		if x.Resize != nil {
			done := make(chan struct{})
			defer close(done)
			go func() {
				for {
					select {
					case <-done:
						return
					case s, ok := <-x.Resize:
						if !ok {
							return
						}
						select {
						case sizes <- s:
						case <-done:
							return
						}
					}
				}
			}()
		}
	}
	code, err := a.c.exec(ctx, command{pod: p.name, container: taskContainer, argv: x.Command, tty: x.TTY, stdin: x.Stdin, stdout: x.Stdout, stderr: x.Stderr, resize: resize})
	if err != nil && strings.Contains(err.Error(), "not found") && strings.Contains(err.Error(), "exec") {
		return 127, nil
	}
	return code, fault("run a command in attempt "+k.String(), err)
}

// tool gives the container and the words by which busybox or the image's own
// programs run.
func (p found) tool(script string, args ...string) (container string, argv []string) {
	if p.helped {
		// Its applets are found before those of the image.
		return taskContainer, append([]string{busybox, "sh", "-c", `tar() { ` + busybox + ` tar "$@"; }; ` + script, "pcm"}, args...)
	}
	container = taskContainer
	if p.holding {
		container = outputContainer
	}
	return container, append([]string{"sh", "-c", script, "pcm"}, args...)
}

func checkPath(p string) error {
	if !filepath.IsLocal(p) || strings.ContainsAny(p, "\\\x00") {
		return pcm.Errorf(pcm.Invalid, "%q is not a path within the working folder: give a relative one without ..", p)
	}
	return nil
}

// inside goes to the folder $1 and refuses one that a link leads out to.
const inside = `d=` + workDir + `/$1
r=$(cd "$d" 2>/dev/null && pwd -P) || { echo "no folder $1" >&2; exit 3; }
case "$r/" in ` + workDir + `/*) cd "$r" || exit 3;; *) echo "$1 leads out of the working folder" >&2; exit 4;; esac
`

// CopyOut implements adapters.Copier.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, name string, w io.Writer) error {
	if err := checkPath(name); err != nil {
		return err
	}
	name = path.Clean(name)
	script := inside + `[ -e "./$2" ] || [ -L "./$2" ] || { echo "no file $2" >&2; exit 3; }
[ -L "./$2" ] && { echo "$2 is a link" >&2; exit 4; }
tar -cf - -- "$2"`
	return a.tar(ctx, k, script, []string{path.Dir(name), path.Base(name)}, nil, w)
}

// CopyIn implements adapters.Copier.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	if err := checkPath(folder); err != nil {
		return err
	}
	pr, pw := io.Pipe()
	checked := make(chan error, 1)
	go func() {
		err := relay(pw, r)
		pw.CloseWithError(err)
		checked <- err
	}()
	script := `mkdir -p "` + workDir + `/$1" 2>/dev/null
` + inside + `tar -xf -`
	err := a.tar(ctx, k, script, []string{path.Clean(folder)}, pr, nil)
	pr.CloseWithError(errWrite)
	if cerr := <-checked; cerr != nil && pcm.ErrorCode(cerr) == pcm.Invalid {
		return cerr
	}
	return err
}

func (a *Adapter) tar(ctx context.Context, k adapters.Key, script string, args []string, in io.Reader, out io.Writer) error {
	p, err := a.find(ctx, k)
	if err != nil {
		return err
	}
	said := &said{}
	container, argv := p.tool(script, args...)
	code, err := a.c.exec(ctx, command{pod: p.name, container: container, argv: argv, stdin: in, stdout: out, stderr: said})
	text := strings.TrimSpace(said.String())
	switch {
	case err != nil:
		return fault("copy files of attempt "+k.String(), err)
	case code == 0:
		return nil
	case code == 3:
		return pcm.Errorf(pcm.NotFound, "attempt %s has %s", k, text)
	case code == 4:
		return pcm.Errorf(pcm.Refused, "%s", text)
	case code == 126 || code == 127:
		return pcm.Errorf(pcm.Refused, "the image of attempt %s has no sh and tar to copy with: declare an input or an output, and it gets them", k)
	}
	return pcm.Errorf(pcm.Unavailable, "copying files of attempt %s ended with %d: %s", k, code, text)
}

// Dial implements adapters.Dialer.
func (a *Adapter) Dial(ctx context.Context, k adapters.Key, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, pcm.Errorf(pcm.Invalid, "%d is not a port", port)
	}
	p, err := a.find(ctx, k)
	if err != nil {
		return nil, err
	}
	conn, err := a.c.forward(ctx, p.name, port)
	if err != nil {
		return nil, err
	}
	return conn, nil
}
