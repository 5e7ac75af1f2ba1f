package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// Materialize lays an artifact out at dst, which may not exist yet: a folder, or
// a file if the artifact is a single one. It is there whole or not at all. Files
// have mode 0644 or 0755. Errors: NotFound (artifact, or dst's parent folder),
// Conflict (dst exists), Refused (no space).
func (s *Store) Materialize(ctx context.Context, d pcm.Digest, dst string) error {
	t, ses, err := s.open(d)
	if err != nil {
		return err
	}
	defer ses.end(true)
	dst = filepath.Clean(dst)
	if _, err := os.Lstat(dst); err == nil {
		return pcm.Errorf(pcm.Conflict, "%s exists already: name another place, or remove it", dst)
	}
	parent := filepath.Dir(dst)
	if free := freeBytes(parent); int64(t.Size()) > free {
		return pcm.Errorf(pcm.Refused, "%s are needed at %s, %s are free", t.Size(), dst, pcm.Bytes(free))
	}
	tmp, err := os.MkdirTemp(parent, ".pcm-")
	if err != nil {
		return pathError(parent, err)
	}
	defer os.RemoveAll(tmp)
	if err := s.layOut(ctx, d, t, tmp, false); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, contentName), dst); err != nil {
		if _, e := os.Lstat(dst); e == nil {
			return pcm.Errorf(pcm.Conflict, "%s came into being meanwhile: name another place, or remove it", dst)
		}
		return s.diskError("lay out "+dst, err)
	}
	return nil
}

const contentName = "content"

// layOut writes the tree as dir/content. Every entry's folder stands before it
// in the tree and is a real one, so nothing is written through a link. Shared
// trees are read-only.
func (s *Store) layOut(ctx context.Context, d pcm.Digest, t Tree, dir string, shared bool) error {
	base := filepath.Join(dir, contentName)
	if !t.Single {
		if err := os.Mkdir(base, 0o755); err != nil {
			return s.diskError("lay out an artifact", err)
		}
	}
	var dirs []string
	for _, e := range t.Entries {
		p := base
		if !t.Single {
			p = filepath.Join(base, filepath.FromSlash(e.Path))
		}
		var err error
		switch e.Kind {
		case Dir:
			err = os.Mkdir(p, 0o755)
			dirs = append(dirs, p)
		case Link:
			err = os.Symlink(filepath.FromSlash(e.Target), p)
		case File:
			err = s.layOutFile(ctx, e, p, shared)
		}
		if errors.Is(err, errMissing) {
			return s.missing(d, e.Path, err)
		}
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "laying out artifact %s was given up: %w", pcm.Short(d), ctx.Err())
		}
		if err != nil {
			return s.diskError("lay out "+e.Path, err)
		}
	}
	if shared && !t.Single {
		slices.Reverse(dirs)
		for _, p := range append(dirs, base) {
			if err := os.Chmod(p, 0o555); err != nil {
				return s.diskError("lay out an artifact", err)
			}
		}
	}
	return nil
}

func (s *Store) layOutFile(ctx context.Context, e Entry, p string, shared bool) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.Mode())
	if err != nil {
		return err
	}
	c := content{s: s, e: e}
	err = c.copy(ctx, f)
	if err == nil && shared {
		err = f.Chmod(e.Mode() &^ 0o222)
		if err == nil && bootID() == "" {
			err = f.Sync() // no telling later whether the machine went down
		}
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// sharedTree is an artifact laid out for tasks under shared/<sum>.<cost>/content.
type sharedTree struct {
	cost  int64
	users int
	used  time.Time
	ready chan struct{} // closed when it stands or has failed
	err   error
}

func (s *Store) sharedDir(name sum, cost int64) string {
	return s.path(dirShared, name.String()+"."+strconv.FormatInt(cost, 10))
}

// openShared takes over the trees that an earlier run laid out: tasks may be
// using them. They were not synced, so after a restart of the machine, when no
// task can be, they are deleted.
func (s *Store) openShared() error {
	boot := bootID()
	old, err := os.ReadFile(s.path("boot"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	same := boot == string(old)
	if !same {
		if err := os.WriteFile(s.path("boot"), []byte(boot), 0o600); err != nil {
			return err
		}
	}
	dirs, err := os.ReadDir(s.path(dirShared))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		hex, bytes, _ := strings.Cut(d.Name(), ".")
		name, err1 := sumOf(pcm.Digest(hex))
		cost, err2 := strconv.ParseInt(bytes, 10, 64)
		if !same || err1 != nil || err2 != nil || cost < 0 {
			removeTree(s.path(dirShared, d.Name()))
			continue
		}
		ready := make(chan struct{})
		close(ready)
		s.shared[name] = &sharedTree{cost: cost, used: s.now(), ready: ready}
		s.used += cost
	}
	return nil
}

// Materialized gives the path of an artifact laid out for tasks: one read-only
// copy, made when first asked for and shared by all. It stays until release is
// called, and longer while the artifact is pinned or there is room.
func (s *Store) Materialized(ctx context.Context, d pcm.Digest) (p string, release func(), err error) {
	name, err := sumOf(d)
	if err != nil {
		return "", nil, err
	}
	for {
		s.mu.Lock()
		sh := s.shared[name]
		if sh == nil {
			sh = &sharedTree{ready: make(chan struct{}), users: 1, used: s.now()}
			s.shared[name] = sh
			s.mu.Unlock()
			sh.err = s.makeShared(ctx, d, name, sh)
			close(sh.ready)
		} else {
			sh.users++
			sh.used = s.now()
			s.mu.Unlock()
			select {
			case <-sh.ready:
			case <-ctx.Done():
				s.leaveShared(sh)
				return "", nil, pcm.Errorf(pcm.Unavailable, "waiting for artifact %s was given up: %w", pcm.Short(d), ctx.Err())
			}
			if sh.err != nil && pcm.ErrorCode(sh.err) == pcm.Unavailable && ctx.Err() == nil {
				continue // the one who made it gave up; we haven't
			}
		}
		if sh.err != nil {
			return "", nil, sh.err
		}
		release := sync.OnceFunc(func() { s.leaveShared(sh) })
		return filepath.Join(s.sharedDir(name, sh.cost), contentName), release, nil
	}
}

func (s *Store) leaveShared(sh *sharedTree) {
	s.mu.Lock()
	sh.users--
	s.mu.Unlock()
}

// makeShared lays the tree out and takes its space; on failure sh is forgotten.
func (s *Store) makeShared(ctx context.Context, d pcm.Digest, name sum, sh *sharedTree) (err error) {
	taken := int64(0)
	defer func() {
		if err != nil {
			s.mu.Lock()
			delete(s.shared, name)
			s.used -= taken
			s.mu.Unlock()
		}
	}()
	t, ses, err := s.open(d)
	if err != nil {
		return err
	}
	defer ses.end(true)
	space := int64(block)
	for _, e := range t.Entries {
		space += max(cost(e.Size), block)
	}
	if err := s.room(space); err != nil {
		return err
	}
	taken = cost(space)
	tmp, err := os.MkdirTemp(s.path(dirTmp), "shared-")
	if err != nil {
		return s.diskError("lay out an artifact", err)
	}
	defer removeTree(tmp)
	if err := s.layOut(ctx, d, t, tmp, true); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.sharedDir(name, taken)); err != nil {
		return s.diskError("lay out an artifact", err)
	}
	s.mu.Lock()
	sh.cost = taken
	s.mu.Unlock()
	return nil
}

// dropShared deletes laid-out trees that nobody holds or has pinned, the one used
// longest ago first, until goal bytes are free; gcMu is held.
func (s *Store) dropShared(goal int64) (freed int64) {
	for freed < goal {
		s.mu.Lock()
		var oldest sum
		var pick *sharedTree
		for name, sh := range s.shared {
			if sh.users == 0 && sh.cost > 0 && s.pins.count[name] == 0 && (pick == nil || sh.used.Before(pick.used)) {
				oldest, pick = name, sh
			}
		}
		if pick == nil {
			s.mu.Unlock()
			return freed
		}
		dir := s.sharedDir(oldest, pick.cost)
		trash := s.path(dirTmp, fmt.Sprintf("drop-%s-%d", oldest, s.now().UnixNano()))
		err := os.Rename(dir, trash) // out of sight before the next user looks
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			delete(s.shared, oldest)
			s.used -= pick.cost
			freed += pick.cost
		}
		s.mu.Unlock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("can't remove a laid-out artifact", "folder", dir, "error", err)
			return freed
		}
		removeTree(trash)
	}
	return freed
}

// noSpace tells whether err is a full disk, or the store's own refusal.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || pcm.ErrorCode(err) == pcm.Refused
}
