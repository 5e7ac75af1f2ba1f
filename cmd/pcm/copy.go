package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// copied is what 'cp' tells.
type copied struct {
	ID    string `json:"id"` // JOB/STEP/INDEX
	Path  string `json:"path"`
	Files int64  `json:"files"`
	Bytes int64  `json:"bytes"`
}

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp TASK:PATH LOCAL | LOCAL TASK:PATH",
		Short: "Copy files or folders out of or into a running task",
		Long: `Copies a file or folder between this machine and the working folder of a running
task. TASK is JOB, JOB/INDEX, JOB/STEP or JOB/STEP/INDEX.

Out of a task: into LOCAL if that is a folder, else LOCAL is the copy's name.
Into a task: a PATH that ends in / is a folder to copy into, else PATH is the
copy's name; an existing folder of that name is added to.
With - as LOCAL a tar archive goes to standard output, or comes from standard
input and is unpacked in the folder PATH.

  pcm cp job-x7k2mq4w:log.txt .
  pcm cp job-x7k2mq4w/train/0:checkpoints ./checkpoints
  pcm cp ./data job-x7k2mq4w:in/
  pcm cp job-x7k2mq4w:. - | tar t`,
		Args: exactly(2, "a source and a target, one of them TASK:PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			from, to := parsePlace(args[0]), parsePlace(args[1])
			switch {
			case from.task != "" && to.task != "":
				return pcm.Errorf(pcm.Invalid, "both %q and %q are in tasks: copy by way of this machine", args[0], args[1])
			case from.task == "" && to.task == "":
				return pcm.Errorf(pcm.Invalid, "neither %q nor %q is in a task: write TASK:PATH, like job-x7k2mq4w:out", args[0], args[1])
			}
			remote := from
			if to.task != "" {
				remote = to
			}
			if remote.path == "" {
				remote.path = "."
			}
			if !api.LocalPath(remote.path) {
				return pcm.Errorf(pcm.Invalid, "%q leads out of the task's working folder: give a relative path without ..", remote.path)
			}
			name, err := parseTask(remote.task)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := name.running(ctx, c)
			if err != nil {
				return err
			}
			if to.task != "" {
				return a.copyIn(ctx, c, t, from.path, remote.path)
			}
			return a.copyOut(ctx, c, t, remote.path, to.path)
		},
	}
}

// place is an end of a copy.
type place struct{ task, path string }

// parsePlace reads TASK:PATH, or a path of this machine: one that begins with /
// or ., or has no colon.
func parsePlace(typed string) place {
	task, rest, ok := strings.Cut(typed, ":")
	if !ok || task == "" || strings.HasPrefix(typed, ".") || filepath.IsAbs(typed) {
		return place{path: typed}
	}
	return place{task, rest}
}

// copyOut copies from a task. What comes is of another peer: see untar.
func (a *app) copyOut(ctx context.Context, c *api.Client, t api.Task, from, to string) error {
	if to == "-" {
		return c.CopyOut(ctx, string(t.Job), t.Step, t.Index, from, a.out)
	}
	dir, rename := to, ""
	if info, err := os.Stat(to); err != nil || !info.IsDir() {
		if err == nil || !strings.HasSuffix(to, string(filepath.Separator)) {
			dir, rename = filepath.Dir(to), filepath.Base(to)
		}
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.CopyOut(ctx, string(t.Job), t.Step, t.Index, from, w)) }()
	defer r.Close()
	base := path.Base(path.Clean(from))
	if rename == "" {
		rename = base
	}
	files, size, err := untar(asked(r, base, rename), dir)
	if err != nil {
		return err
	}
	sum := copied{ID: t.ID, Path: from, Files: files, Bytes: size}
	return a.print(sum, func(tb *table) {
		tb.text("%s: %s, %s, from %s", to, plural(int(files), "file"), pcm.Bytes(size), taskLine(t))
	})
}

// maxLinks bounds how many links a copy may hold.
const maxLinks = 100_000

// asked is an archive of the file or folder from, under the name to. What the
// other side sends beside it is refused, as is what would go through a link that
// it sent before: into a folder with other files, only what was asked for is written.
func asked(r io.Reader, from, to string) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		tr, tw, links := tar.NewReader(r), tar.NewWriter(pw), map[string]bool{}
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				if _, err = io.Copy(io.Discard, r); err == nil { // what cut it short stands at its end
					err = tw.Close()
				}
				pw.CloseWithError(err)
				return
			}
			if err == nil {
				if err = askedFor(h, from, to, links); err == nil {
					err = tw.WriteHeader(&tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode & 0o777, Size: h.Size})
				}
				if err == nil {
					_, err = io.Copy(tw, tr)
				}
			}
			if err != nil {
				pw.CloseWithError(err)
				return
			}
		}
	}()
	return pr
}

// askedFor renames an entry of an archive of from, unless it is none.
func askedFor(h *tar.Header, from, to string, links map[string]bool) error {
	name, ok := path.Clean(h.Name), true
	if from != "." {
		name, ok = strings.CutPrefix(name+"/", from+"/")
		name = path.Clean(name)
	}
	if !ok || !filepath.IsLocal(name) {
		return pcm.Errorf(pcm.Refused, "the copy of %q holds %q, which was not asked for", from, h.Name)
	}
	for dir := name; dir != "."; {
		if dir = path.Dir(dir); links[dir] {
			return pcm.Errorf(pcm.Refused, "the copy of %q holds %q, which would go through the link %q", from, h.Name, dir)
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		if len(links) >= maxLinks {
			return pcm.Errorf(pcm.TooLarge, "the copy of %q holds more than %d links: copy parts of it", from, maxLinks)
		}
		links[name] = true
	}
	h.Name = path.Join(to, name)
	return nil
}

// copyIn copies into a task.
func (a *app) copyIn(ctx context.Context, c *api.Client, t api.Task, from, to string) error {
	if from == "-" {
		return c.CopyIn(ctx, string(t.Job), t.Step, t.Index, to, a.in)
	}
	info, err := os.Stat(from)
	if err != nil {
		return pcm.Errorf(pcm.NotFound, "can't copy: %w", err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return pcm.Errorf(pcm.Invalid, "%s is neither a file nor a folder", from)
	}
	folder, name := path.Dir(path.Clean(to)), path.Base(path.Clean(to))
	if strings.HasSuffix(to, "/") || path.Clean(to) == "." {
		full, err := filepath.Abs(from)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "the current folder can't be found: %w", err)
		}
		folder, name = path.Clean(to), filepath.Base(full)
	}
	sum := copied{ID: t.ID, Path: to}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		var err error
		sum.Files, sum.Bytes, err = pack(w, from, name)
		w.CloseWithError(err)
		packed <- err
	}()
	err = c.CopyIn(ctx, string(t.Job), t.Step, t.Index, folder, r)
	r.CloseWithError(io.ErrClosedPipe)
	if perr := <-packed; err == nil && perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		err = perr
	}
	if err != nil {
		return err
	}
	return a.print(sum, func(tb *table) {
		tb.text("%s:%s: %s, %s", taskLine(t), to, plural(int(sum.Files), "file"), pcm.Bytes(sum.Bytes))
	})
}

// pack writes a file or folder as a tar archive under another name. Links inside
// a folder go as links if they stay in it; what is neither file, folder nor link
// is left out.
func pack(w io.Writer, from, name string) (files, size int64, err error) {
	tw := tar.NewWriter(w)
	err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "can't read what is to be copied: %w", err)
		}
		info, err := d.Info()
		if p == from { // the source itself may be a link
			info, err = os.Stat(p)
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "can't read what is to be copied: %w", err)
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return pcm.Errorf(pcm.Internal, "can't name %s: %w", p, err)
		}
		link := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = os.Readlink(p); err != nil {
				return pcm.Errorf(pcm.Invalid, "can't read what is to be copied: %w", err)
			}
			if filepath.IsAbs(link) || !filepath.IsLocal(filepath.Join(filepath.Dir(rel), link)) {
				return nil
			}
		case !info.IsDir() && !info.Mode().IsRegular():
			return nil
		}
		h, err := tar.FileInfoHeader(info, filepath.ToSlash(link))
		if err != nil {
			return pcm.Errorf(pcm.Internal, "can't describe %s: %w", p, err)
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = path.Join(name, filepath.ToSlash(rel)), 0, 0, "", ""
		if info.IsDir() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "can't read what is to be copied: %w", err)
		}
		defer f.Close()
		n, err := io.CopyN(tw, f, h.Size)
		if errors.Is(err, io.EOF) { // it became shorter: the rest is zeros, or the archive would be damaged
			_, err = io.Copy(tw, io.LimitReader(zeros{}, h.Size-n))
		}
		files, size = files+1, size+n
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	return files, size, err
}

// zeros reads as zeros.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte{0}, len(p))), nil }
