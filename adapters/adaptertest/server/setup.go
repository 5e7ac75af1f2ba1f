package server

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/jointcloud/pcm"
)

// LoadBusybox gives the engine an image of busybox, the same that the nodes of
// [Kubernetes] have as [HelperImage].
func (e *Engine) LoadBusybox(ctx context.Context, name string) error {
	found, err := Need("busybox")
	if err != nil {
		return err
	}
	file := e.Path("image.tar")
	if err := writeImage(file, name, found["busybox"], nil, nil); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	res, err := e.API.ImageLoad(ctx, f)
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

// Apply makes the objects of a manifest, a YAML file as for kubectl.
func (k *Kubernetes) Apply(ctx context.Context, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return pcm.Errorf(pcm.Invalid, "%s can't be read: %w", file, err)
		}
		if err := k.Create(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// Started tells how many containers were started so far. The engine tells of one a
// moment after.
func (e *Engine) Started() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, times := range e.starts {
		n += times
	}
	return n
}
