package plugin

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// stage puts what an attempt needs where a plug-in of another user can reach it:
// copies of the inputs, to be read, and a folder of its own.
func (f folders) stage(req *pluginpb.StartRequest) error {
	stage := f.stageOf(req.Key)
	if err := os.RemoveAll(stage); err != nil { // half made, before a restart
		return err
	}
	inputs, work := filepath.Join(stage, "in"), filepath.Join(stage, "work")
	for _, dir := range []string{stage, inputs, work} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := f.give(dir, dir == work); err != nil {
			return err
		}
	}
	for i, in := range req.Inputs {
		to := filepath.Join(inputs, numbered(i))
		info, err := os.Stat(in.Path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			err = f.copyFile(in.Path, to, info.Mode())
		} else {
			err = filepath.WalkDir(in.Path, func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				rel, err := filepath.Rel(in.Path, p)
				if err != nil {
					return err
				}
				info, err := d.Info()
				switch {
				case err != nil:
					return err
				case d.IsDir():
					if err := os.Mkdir(filepath.Join(to, rel), 0o700); err != nil {
						return err
					}
					return f.readable(filepath.Join(to, rel), 0o750)
				case info.Mode().IsRegular():
					return f.copyFile(p, filepath.Join(to, rel), info.Mode())
				}
				return nil // inputs are files and folders
			})
		}
		if err != nil {
			return err
		}
		in.Path = to
	}
	if req.Module != "" {
		to := filepath.Join(inputs, "module")
		if err := f.copyFile(req.Module, to, 0o600); err != nil {
			return err
		}
		req.Module = to
	}
	req.Work = work
	return nil
}

func (f folders) copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return f.readable(to, 0o440|mode.Perm()&0o110)
}

// readable lets the plug-in's user read what stays ours.
func (f folders) readable(name string, mode fs.FileMode) error {
	if err := os.Lchown(name, 0, int(f.number.gid)); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

// maxFetched bounds how many files and folders one attempt's outputs may have.
const maxFetched = 100_000

// fetch brings declared outputs from an attempt's stage into its working folder: plain
// files and folders, at most limit bytes. Links lead nowhere but to files inside.
func (f folders) fetch(key, work string, outputs []string, limit int64) error {
	from, err := os.OpenRoot(filepath.Join(f.stageOf(key), "work"))
	if err != nil {
		return pcm.Errorf(pcm.NotFound, "the folder of attempt %s is gone", key)
	}
	defer from.Close()
	to, err := os.OpenRoot(work)
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't open the folder of attempt %s: %w", key, err)
	}
	defer to.Close()
	c := &carrier{from: from, to: to, left: limit, files: maxFetched}
	for _, out := range outputs {
		out = path.Clean(out)
		if err := to.MkdirAll(path.Dir(out), 0o700); err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't make the folder of an output: %w", err)
		}
		if err := c.carry(out, 0); err != nil {
			return err
		}
	}
	return nil
}

type carrier struct {
	from, to *os.Root
	left     int64
	files    int
}

const maxDepth = 100

func (c *carrier) carry(name string, depth int) error {
	info, err := c.from.Lstat(name)
	if err != nil {
		return nil // what doesn't exist, or leads out, is left out
	}
	if c.files--; c.files < 0 || depth > maxDepth {
		return pcm.Errorf(pcm.TooLarge, "the outputs are more than %d files and folders, or deeper than %d", maxFetched, maxDepth)
	}
	switch {
	case info.IsDir():
		if err := c.to.MkdirAll(name, 0o700); err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't make a folder of an output: %w", err)
		}
		dir, err := c.from.Open(name)
		if err != nil {
			return nil
		}
		defer dir.Close()
		for {
			names, err := dir.Readdirnames(256)
			for _, n := range names {
				if err := c.carry(path.Join(name, n), depth+1); err != nil {
					return err
				}
			}
			if err != nil || len(names) == 0 {
				return nil
			}
		}
	case info.Mode().IsRegular() || info.Mode().Type() == fs.ModeSymlink: // a link to a file inside is that file
		return c.file(name)
	}
	return nil
}

func (c *carrier) file(name string) error {
	in, err := openPlain(c.from, name)
	if err != nil {
		return nil
	}
	defer in.Close()
	c.to.Remove(name) // of an earlier try
	out, err := c.to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make an output: %w", err)
	}
	n, err := io.Copy(out, io.LimitReader(in, c.left+1)) // one byte over the cap, and the supervisor finds it
	c.left -= min(n, c.left)
	if err = errors.Join(err, out.Close()); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't copy an output: %w", err)
	}
	return nil
}

// openPlain opens a regular file, and waits for no pipe that took its place.
func openPlain(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|nonBlocking, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}
