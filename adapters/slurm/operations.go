package slurm

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// running finds an attempt that has begun and has not ended.
func (a *Adapter) running(k adapters.Key) (intent, begun, error) {
	in, ok := a.spool.loadIntent(k.String())
	if !ok {
		return in, begun{}, pcm.Errorf(pcm.NotFound, "no attempt %s runs here", k)
	}
	if _, ended := a.spool.readOver(k.String(), in.Generation); ended {
		return in, begun{}, pcm.Errorf(pcm.Conflict, "attempt %s has ended", k)
	}
	b, ok := a.spool.readBegun(k.String(), in.Generation, "start")
	if !ok {
		return in, b, pcm.Errorf(pcm.Conflict, "attempt %s still waits in Slurm's queue", k)
	}
	if b.Job == "none" {
		return in, b, pcm.Errorf(pcm.Conflict, "attempt %s has ended", k)
	}
	if _, err := os.Lstat(a.spool.file(k.String(), "kill")); err == nil {
		return in, b, pcm.Errorf(pcm.Conflict, "attempt %s is being ended", k)
	}
	return in, b, nil
}

// workOf opens the working folder of a running attempt.
func (a *Adapter) workOf(k adapters.Key) (*os.Root, error) {
	if _, _, err := a.running(k); err != nil {
		return nil, err
	}
	top, name := a.cfg.Dir, filepath.Join("tasks", k.String(), "work")
	if a.cfg.Shared != "" {
		top, name = string(a.spool), filepath.Join("attempts", k.String(), "work")
	}
	root, err := openWork(top, name)
	if err != nil {
		return nil, pcm.Errorf(pcm.Conflict, "attempt %s has no working folder: %w", k, supervisor.Errno(err))
	}
	return root, nil
}

// inside cleans a path of a request.
func inside(p string) (string, error) {
	if p == "" {
		p = "."
	}
	if !filepath.IsLocal(p) || strings.ContainsAny(p, "\\\x00") {
		return "", pcm.Errorf(pcm.Invalid, "%q leads out of the task's working folder: give a relative path without ..", p)
	}
	return path.Clean(p), nil
}

// CopyOut implements adapters.Copier.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, name string, w io.Writer) error {
	name, err := inside(name)
	if err != nil {
		return err
	}
	root, err := a.workOf(k)
	if err != nil {
		return err
	}
	defer root.Close()
	base := path.Base(name)
	out := tar.NewWriter(w)
	found := false
	err = fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if p == name {
				return err
			}
			return nil // gone meanwhile, or not for us to read
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		f, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
			return nil
		}
		found = true
		h := &tar.Header{Name: path.Join(base, strings.TrimPrefix(strings.TrimPrefix(p, name), "/")), Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Typeflag: tar.TypeReg, Size: info.Size()}
		if name == "." {
			h.Name = p
		}
		if info.IsDir() {
			h.Typeflag, h.Size, h.Name = tar.TypeDir, 0, h.Name+"/"
		}
		if err := out.WriteHeader(h); err != nil || info.IsDir() {
			return err
		}
		n, err := io.Copy(out, io.LimitReader(f, info.Size()))
		if err == nil && n < info.Size() { // it shrank: the header's size stands
			_, err = io.CopyN(out, zeros{}, info.Size()-n)
		}
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !found:
		return pcm.Errorf(pcm.NotFound, "attempt %s has no file or folder %q", k, name)
	case ctx.Err() != nil:
		return pcm.Errorf(pcm.Unavailable, "the copy was cut short: %w", context.Cause(ctx))
	case err != nil && strings.Contains(err.Error(), "escapes"):
		return pcm.Errorf(pcm.Refused, "%q leads out of the task's working folder", name)
	case err != nil:
		return pcm.Errorf(pcm.Unavailable, "can't copy %q: %w", name, supervisor.Errno(err))
	}
	if err := out.Close(); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't copy %q: %w", name, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// maxEntries bounds one copy into a task.
const maxEntries = 1 << 20

// CopyIn implements adapters.Copier. Links that lead outside are left out.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	folder, err := inside(folder)
	if err != nil {
		return err
	}
	root, err := a.workOf(k)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(folder, 0o700); err != nil {
		return pcm.Errorf(pcm.Refused, "can't make folder %q in the task's working folder: %w", folder, supervisor.Errno(err))
	}
	in := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && n >= maxEntries {
			return pcm.Errorf(pcm.TooLarge, "more than %d files in one copy", maxEntries)
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "what is to be copied in is no tar stream: %w", err)
		}
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "the copy was cut short: %w", context.Cause(ctx))
		}
		name, err := inside(strings.TrimSuffix(h.Name, "/"))
		if err != nil {
			return err
		}
		if err := place1(root, path.Join(folder, name), h, in); err != nil {
			return pcm.Errorf(pcm.Refused, "can't copy %q in: %w", h.Name, supervisor.Errno(err))
		}
	}
}

// place1 makes one entry of a tar stream.
func place1(root *os.Root, name string, h *tar.Header, from io.Reader) error {
	perm := fs.FileMode(h.Mode)&0o700 | 0o600
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeSymlink:
		if filepath.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
			return nil
		}
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		root.Remove(name)
		return root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		// A task that waits for the file must find it whole.
		tmp := name + ".pcm-copy"
		f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, from)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = root.Rename(tmp, name)
		}
		if err != nil {
			root.Remove(tmp)
		}
		return err
	}
	return nil // devices, pipes
}

// Dial implements adapters.Dialer: tasks listen in their node's network.
func (a *Adapter) Dial(ctx context.Context, k adapters.Key, port int) (net.Conn, error) {
	if port <= 0 || port > 65535 {
		return nil, pcm.Errorf(pcm.Invalid, "%d is no port", port)
	}
	_, b, err := a.running(k)
	if err != nil {
		return nil, err
	}
	host := b.Host
	nodes, err := a.link.nodes(ctx)
	if err != nil {
		return nil, unobservable(err)
	}
	for _, n := range nodes {
		if n.Name == b.Host && n.Address != "" {
			host = n.Address
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	conn, err := (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't reach port %d of attempt %s on node %s: %w", port, k, b.Host, err)
	}
	return conn, nil
}

// refOf is the job of a running attempt, as Slurm knows it.
func (c *Commanded) refOf(ctx context.Context, k adapters.Key) (intent, job, error) {
	in, _, err := c.running(k)
	if err != nil {
		return intent{}, job{}, err
	}
	if in.ID == 0 {
		return in, job{}, pcm.Errorf(pcm.Unavailable, "the number of attempt %s's job is not known yet: try again", k)
	}
	j, err := c.link.end(ctx, in.ref())
	return in, j, err
}

// Suspend implements adapters.Suspender.
func (c *Commanded) Suspend(ctx context.Context, k adapters.Key) error { return c.halt(ctx, k, true) }

// Resume implements adapters.Suspender.
func (c *Commanded) Resume(ctx context.Context, k adapters.Key) error { return c.halt(ctx, k, false) }

func (c *Commanded) halt(ctx context.Context, k adapters.Key, on bool) error {
	in, _, err := c.refOf(ctx, k)
	if err != nil {
		return err
	}
	err = c.link.suspend(ctx, in.ref(), on)
	if pcm.ErrorCode(err) == pcm.Refused && (strings.Contains(err.Error(), "permission") || strings.Contains(err.Error(), "Access")) {
		return pcm.Errorf(pcm.Forbidden, "Slurm does not let this node's user suspend and resume jobs: it must be an operator (sacctmgr modify user … set adminlevel=operator): %w", err)
	}
	return err
}
