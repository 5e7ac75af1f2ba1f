package node

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// missing says which declared outputs an attempt did not make; "" if none. It is
// for the buyer to judge whether that is a fault.
func (s *seller) missing(x *execution, k adapters.Key) string {
	h, ok := s.n.specs.get(x.terms.Job)
	if !ok || x.terms.Step >= len(h.spec.Steps) || len(h.spec.Steps[x.terms.Step].Outputs) == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
	defer cancel()
	results, err := s.adapters[x.terms.Adapter].Results(ctx, k)
	if err != nil {
		return ""
	}
	var absent []string
	for _, out := range h.spec.Steps[x.terms.Step].Outputs {
		if _, err := fs.Stat(results, path.Join("out", out)); errors.Is(err, fs.ErrNotExist) {
			absent = append(absent, out)
		}
	}
	if len(absent) == 0 {
		return ""
	}
	return "it did not make what it declared as output: " + strings.Join(absent, ", ")
}

// collect stores what an attempt left; "" if that is nothing. Of one that wrote
// more than it may, whole is false: only its streams are kept, which are cut at the cap.
func (s *seller) collect(x *execution, k adapters.Key, whole bool) (pcm.Digest, error) {
	ctx, cancel := context.WithTimeout(s.n.run, time.Hour)
	defer cancel()
	results, err := s.adapters[x.terms.Adapter].Results(ctx, k)
	if err != nil {
		return "", err
	}
	if !whole {
		results = streamsOnly{results}
	}
	if nothing(results) {
		return "", nil
	}
	d, stats, err := s.n.store.ImportFS(ctx, results, ".", tradeOwner(k.Trade))
	if err != nil {
		return "", err
	}
	for _, why := range stats.Skipped {
		s.n.log.Info("left out of a task's outputs", "trade", k.Trade, "task", k.Index, "what", why)
	}
	s.n.owners.add(tradeOwner(k.Trade), d)
	if emptyOutput(d) {
		return "", nil
	}
	return d, nil
}

// streamsOnly shows results without the declared outputs.
type streamsOnly struct{ fs.FS }

func (s streamsOnly) Open(name string) (fs.File, error) {
	switch name {
	case ".", string(adapters.Stdout), string(adapters.Stderr):
		return s.FS.Open(name)
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ReadDir lists the streams alone.
func (s streamsOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	list, err := fs.ReadDir(s.FS, ".")
	return slices.DeleteFunc(list, func(e fs.DirEntry) bool { return e.IsDir() }), err
}

// nothing tells whether results are two empty streams and no outputs.
func nothing(results fs.FS) bool {
	if _, err := fs.Stat(results, "out"); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	for _, name := range []string{"stdout", "stderr"} {
		if info, err := fs.Stat(results, name); err == nil && info.Size() > 0 {
			return false
		}
	}
	return true
}
