package container

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The values of RunnerConfig.Pull.
const (
	PullMissing = "missing" // pull what is not here
	PullAlways  = "always"  // ask the registry each time; what was asked within freshFor counts
	PullNever   = "never"
)

const (
	freshFor  = time.Minute
	pullLimit = 30 * time.Minute
	maxFresh  = 1024
)

// images says which images may run, and sees to it that they are here.
type images struct {
	engine  *engine
	policy  string
	auth    string // path of a Docker config.json
	allowed []*regexp.Regexp
	deflt   string

	mu    sync.Mutex
	pulls map[string]*pull
	fresh map[string]time.Time // when an image was pulled last
}

// pull is one that goes on, for all attempts that wait for it.
type pull struct {
	done chan struct{}
	err  error // read after done

	mu       sync.Mutex
	progress string
	waiting  int
	cancel   context.CancelFunc
}

func newImages(e *engine, cfg RunnerConfig) (*images, error) {
	m := &images{engine: e, policy: cmp.Or(cfg.Pull, PullMissing), auth: cfg.Auth, deflt: cfg.DefaultImage, pulls: map[string]*pull{}, fresh: map[string]time.Time{}}
	if !slices.Contains([]string{PullMissing, PullAlways, PullNever}, m.policy) {
		return nil, pcm.Errorf(pcm.Invalid, "pull policy %q is not missing, always or never", m.policy)
	}
	for _, p := range cfg.Images {
		m.allowed = append(m.allowed, regexp.MustCompile("^"+strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*")+"$"))
	}
	if cfg.DefaultImage != "" {
		if _, err := reference.ParseNormalizedNamed(cfg.DefaultImage); err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "default image %q is not the name of an image: %w", cfg.DefaultImage, err)
		}
	}
	return m, nil
}

// check refuses images that this seller does not run. name is "" for the seller's own.
func (m *images) check(name string) error {
	if name == "" {
		if m.deflt == "" {
			return pcm.Errorf(pcm.Invalid, "this seller runs containers and has no image of its own: name one, as in image: debian:12")
		}
		return nil
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "%.255q is not the name of a container image, like debian:12 or registry.example/team/app@sha256:…: %w", name, err)
	}
	ref = reference.TagNameOnly(ref)
	names := []string{name, ref.String(), reference.FamiliarString(ref)}
	if slices.Contains(names, m.deflt) {
		return nil
	}
	for _, p := range m.allowed {
		if slices.ContainsFunc(names, p.MatchString) {
			return nil
		}
	}
	return pcm.Errorf(pcm.Refused, "this seller does not run image %s: its list of images lacks it", name)
}

// imageFacts are what an image says of the tasks that run in it.
type imageFacts struct {
	path string // its PATH
	stop string // its stop signal
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (m *images) inspect(ctx context.Context, name string) (imageFacts, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	res, err := m.engine.ImageInspect(ctx, name)
	l := imageFacts{path: defaultPath, stop: "SIGTERM"}
	if err != nil {
		return l, err
	}
	if c := res.Config; c != nil {
		for _, kv := range c.Env {
			if p, ok := strings.CutPrefix(kv, "PATH="); ok {
				l.path = p
			}
		}
		l.stop = cmp.Or(c.StopSignal, l.stop)
	}
	return l, nil
}

// ready sees to it that the image is here. An end that is not nil is the
// attempt's; the error is one of the engine's, or of ctx.
func (m *images) ready(ctx context.Context, name string, report func(adapters.State, string, string)) (imageFacts, *supervisor.Exit, error) {
	l, err := m.inspect(ctx, name)
	missing := errdefs.IsNotFound(err)
	switch {
	case err != nil && !missing:
		return l, nil, err
	case !missing && (m.policy != PullAlways || m.isFresh(name)):
		return l, nil, nil
	case missing && m.policy == PullNever:
		x := failed(125, "image %s is not at this seller, which pulls none: use one that it has", name)
		return l, &x, nil
	}
	p := m.pull(name)
	defer m.leave(p)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		p.mu.Lock()
		progress := p.progress
		p.mu.Unlock()
		report(adapters.Pending, "pulling", progress)
		select {
		case <-p.done:
			waiting = false
		case <-tick.C:
		case <-ctx.Done():
			return l, nil, ctx.Err()
		}
	}
	if p.err != nil {
		if away(p.err) && !registryFault(p.err.Error()) {
			return l, nil, p.err
		}
		x := pullExit(name, p.err)
		return l, &x, nil
	}
	l, err = m.inspect(ctx, name)
	return l, nil, err
}

func (m *images) isFresh(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.fresh[name]) < freshFor
}

// pull joins the pull of an image, or begins it.
func (m *images) pull(name string) *pull {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pulls[name]
	if p == nil {
		ctx, cancel := context.WithTimeout(context.Background(), pullLimit)
		p = &pull{done: make(chan struct{}), progress: "pulling image " + name, cancel: cancel}
		m.pulls[name] = p
		go func() {
			defer cancel()
			err := m.fetch(ctx, name, p)
			m.mu.Lock()
			delete(m.pulls, name)
			if len(m.fresh) >= maxFresh {
				clear(m.fresh)
			}
			if err == nil {
				m.fresh[name] = time.Now()
			}
			m.mu.Unlock()
			p.err = err
			close(p.done)
		}()
	}
	p.mu.Lock()
	p.waiting++
	p.mu.Unlock()
	return p
}

// leave ends the pull when nobody waits for it any more.
func (m *images) leave(p *pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting--; p.waiting == 0 {
		p.cancel()
	}
}

func (m *images) fetch(ctx context.Context, name string, p *pull) error {
	auth, err := m.credentials(name)
	if err != nil {
		return err
	}
	res, err := m.engine.ImagePull(ctx, name, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer res.Close()
	layers := map[string]bool{} // whether they are here
	for msg, err := range res.JSONMessages(ctx) {
		if err != nil {
			return err
		}
		if msg.Error != nil {
			return msg.Error
		}
		if msg.ID == "" || len(layers) > 1000 || strings.HasPrefix(msg.Status, "Pulling from") {
			continue
		}
		layers[msg.ID] = msg.Status == "Pull complete" || msg.Status == "Already exists"
		n := 0
		for _, here := range layers {
			if here {
				n++
			}
		}
		p.mu.Lock()
		p.progress = fmt.Sprintf("pulling image %s: %d of %d layers are here", name, n, len(layers))
		p.mu.Unlock()
	}
	return nil
}

// credentials reads those of the image's registry from the file that the
// operator named. They are sent to the engine and kept nowhere.
func (m *images) credentials(name string) (string, error) {
	if m.auth == "" {
		return "", nil
	}
	data, err := os.ReadFile(m.auth)
	if err != nil {
		return "", pcm.Errorf(pcm.Unavailable, "can't read the registries' credentials: %w", err)
	}
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
		} `json:"auths"`
	}
	if json.Unmarshal(data, &file) != nil {
		return "", pcm.Errorf(pcm.Unavailable, "the registries' credentials in %s are not a Docker config.json", m.auth)
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	host := reference.Domain(ref)
	keys := []string{host, "https://" + host, "http://" + host, "https://" + host + "/v1/", "https://" + host + "/v2/"}
	if host == "docker.io" {
		keys = append(keys, "https://index.docker.io/v1/", "index.docker.io")
	}
	for _, k := range keys {
		a, ok := file.Auths[k]
		if !ok {
			continue
		}
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, found := strings.Cut(string(plain), ":")
		if a.IdentityToken == "" && (err != nil || !found) {
			return "", pcm.Errorf(pcm.Unavailable, "the credentials for %s in %s can't be used: only plain ones and identity tokens can, not those of helpers", host, m.auth)
		}
		return authconfig.Encode(registry.AuthConfig{Username: user, Password: strings.TrimRight(password, "\x00"), IdentityToken: a.IdentityToken, ServerAddress: k})
	}
	return "", nil
}

// Signs by which one tells whose fault it is that an image can't be had. What
// the registry says differs from one to the next.
var (
	archSigns     = []string{"no matching manifest", "no image found in manifest list", "no image found in image index", "exec format error"}
	missingSigns  = []string{"manifest unknown", "not found", "does not exist", "name unknown", "repository name not known", "invalid reference"}
	deniedSigns   = []string{"pull access denied", "unauthorized", "denied", "authentication required", "no basic auth credentials"}
	registrySigns = []string{"dial tcp", "no such host", "connection refused", "i/o timeout", "tls", "x509", "toomanyrequests", "no route to host",
		"received unexpected http status: 5", "server gave http response", "proxyconnect", "pinging container registry", "network is unreachable"}
)

func has(s string, signs []string) bool {
	s = strings.ToLower(s)
	return slices.ContainsFunc(signs, func(sign string) bool { return strings.Contains(s, sign) })
}

func registryFault(s string) bool { return has(s, registrySigns) }

// pullExit says what it means for an attempt that its image can't be pulled.
func pullExit(name string, err error) supervisor.Exit {
	s := brief(err)
	var ours *pcm.Error
	switch {
	case errors.As(err, &ours):
		return seller("%s", ours.Error())
	case registryFault(s):
		return seller("the registry of image %s can't be reached from here: %.120s", name, s)
	case has(s, archSigns):
		return failed(125, "image %s is not made for this machine's architecture: %.120s", name, s)
	case has(s, deniedSigns):
		return failed(125, "image %s does not exist, or its registry does not let this seller pull it: %.120s", name, s)
	case has(s, missingSigns) || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err):
		return failed(125, "image %s was not found: check its name and tag: %.120s", name, s)
	}
	return seller("image %s can't be pulled: %.160s", name, s)
}
