package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// pickTasks finds the tasks that a person meant: "" is all, "3" is task 3 of the
// only (or first) step, "STEP/3" or "JOB/STEP/3" is one, "STEP" all of a step.
func pickTasks(tasks []api.Task, typed string) ([]api.Task, error) {
	if typed == "" {
		return tasks, nil
	}
	var picked []api.Task
	_, err := strconv.Atoi(typed)
	for _, t := range tasks {
		name := fmt.Sprintf("%s/%d", t.Step, t.Index)
		switch {
		case t.ID == typed, name == typed, t.Step == typed:
			picked = append(picked, t)
		case err == nil && t.Step == tasks[0].Step && strconv.Itoa(t.Index) == typed:
			return []api.Task{t}, nil
		}
	}
	if len(picked) == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "the job has no task %q; name one by INDEX or STEP/INDEX, as 'pcm job describe' shows them", typed)
	}
	return picked, nil
}

func (a *app) jobLogsCommand() *cobra.Command {
	var follow, stderr bool
	c := &cobra.Command{
		Use: "logs JOB [TASK]", Short: "Show what a job's tasks have written to standard output", Args: between(1, 2, "a JOB and perhaps a TASK (INDEX or STEP/INDEX)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			job, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			all, err := c.Tasks(ctx, string(job.ID), api.Query{})
			if err != nil {
				return err
			}
			tasks, err := pickTasks(all.Items, strings.Join(args[1:], ""))
			if err != nil {
				return err
			}
			stream := "stdout"
			if stderr {
				stream = "stderr"
			}
			return a.showLogs(ctx, c, tasks, stream, follow)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "stay until the tasks end")
	c.Flags().BoolVar(&stderr, "stderr", false, "show standard error instead")
	return c
}

// showLogs shows one stream of tasks: one after the other, or, following, at once.
func (a *app) showLogs(ctx context.Context, c *api.Client, tasks []api.Task, stream string, follow bool) error {
	if follow && len(tasks) > maxLive {
		return pcm.Errorf(pcm.Invalid, "%d tasks are too many to follow at once, at most %d: name one", len(tasks), maxLive)
	}
	screen := &sync.Mutex{}
	g, gctx := errgroup.WithContext(ctx)
	if !follow {
		g.SetLimit(1)
	}
	for _, t := range tasks {
		w := a.out
		if len(tasks) > 1 {
			w = &lineWriter{w: a.out, screen: screen, prefix: taskPrefix(t)}
		}
		g.Go(func() error {
			f := follower{c: c, task: t, stream: stream, w: w, notice: a.errOut}
			if follow {
				return f.run(gctx)
			}
			defer flush(w)
			err := f.read(gctx, false)
			if len(tasks) > 1 && pcm.ErrorCode(err) == pcm.NotFound {
				return nil // of many tasks some have written nothing yet
			}
			return err
		})
	}
	return g.Wait()
}

func (a *app) jobGetCommand() *cobra.Command {
	var typed string
	c := &cobra.Command{
		Use: "get JOB [DIR]", Short: "Fetch what a job's tasks left: DIR/STEP/INDEX/stdout, stderr, out/…", Args: between(1, 2, "a JOB and perhaps a DIR (default: one named after the job)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			job, err := c.Job(ctx, args[0])
			if err != nil {
				return err
			}
			all, err := c.Tasks(ctx, string(job.ID), api.Query{})
			if err != nil {
				return err
			}
			tasks, err := pickTasks(all.Items, typed)
			if err != nil {
				return err
			}
			dir := pcm.Short(job.ID)
			if len(args) == 2 {
				dir = args[1]
			}
			return a.fetch(ctx, c, job, tasks, dir)
		},
	}
	c.Flags().StringVar(&typed, "task", "", "only this `TASK`: INDEX, STEP/INDEX or STEP")
	return c
}

// fetched is what 'job get' tells.
type fetched struct {
	ID    pcm.JobID `json:"id"`
	Dir   string    `json:"dir"`
	Tasks int       `json:"tasks"`
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
}

func (a *app) fetch(ctx context.Context, c *api.Client, job api.Job, tasks []api.Task, dir string) error {
	sum := fetched{ID: job.ID, Dir: dir}
	var files, size atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for _, t := range tasks {
		if t.State != pcm.TaskDone && t.State != pcm.TaskFailed {
			continue
		}
		sum.Tasks++
		g.Go(func() error {
			n, b, err := fetchTask(gctx, c, t, filepath.Join(dir, t.Step, strconv.Itoa(t.Index)))
			files.Add(n)
			size.Add(b)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if sum.Tasks == 0 {
		return pcm.Errorf(pcm.Conflict, "no task of %s that was asked for has a result yet; see 'pcm job describe %s'", pcm.Short(job.ID), pcm.Short(job.ID))
	}
	sum.Files, sum.Bytes = files.Load(), size.Load()
	return a.print(sum, func(t *table) {
		t.text("%s: results of %s, %s, %s", dir, plural(sum.Tasks, "task"), plural(int(sum.Files), "file"), pcm.Bytes(sum.Bytes))
		if left := len(tasks) - sum.Tasks; left > 0 {
			a.hint("%s of %s not there yet", plural(left, "result"), pcm.Short(job.ID))
		}
	})
}

func fetchTask(ctx context.Context, c *api.Client, t api.Task, dir string) (files, size int64, err error) {
	rc, err := c.Output(ctx, string(t.Job), t.Step, t.Index)
	if pcm.ErrorCode(err) == pcm.NotFound && t.Output == "" {
		return 0, 0, nil // it left nothing
	}
	if err != nil {
		return 0, 0, err
	}
	defer rc.Close()
	return untar(rc, dir)
}

// untar unpacks an archive below dir. The archive comes from another peer: nothing
// in it can reach outside dir, not through "..", nor through a link, nor one that
// was there before. Only folders, files and links that stay inside are made.
func untar(r io.Reader, dir string) (files, size int64, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, 0, pcm.Errorf(pcm.Invalid, "can't make the folder for results: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, pcm.Errorf(pcm.Invalid, "can't open the folder for results: %w", err)
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// The rest must be read: an error that cut the stream short stands at its end.
			_, err := io.Copy(io.Discard, r)
			return files, size, err
		}
		if err != nil {
			return files, size, asError(err, "the results are cut short or damaged")
		}
		n, err := unpack(root, h, tr)
		if err != nil {
			return files, size, asError(err, fmt.Sprintf("can't write %q below %s", h.Name, dir))
		}
		if h.Typeflag == tar.TypeReg {
			files++
			size += n
		}
	}
}

func unpack(root *os.Root, h *tar.Header, r io.Reader) (int64, error) {
	name := path.Clean(h.Name)
	if !filepath.IsLocal(name) {
		return 0, pcm.Errorf(pcm.Refused, "the results hold the path %q, which leads out of their folder", h.Name)
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return 0, root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
			return 0, pcm.Errorf(pcm.Refused, "the results hold the link %q to %q, which leads out of their folder", h.Name, h.Linkname)
		}
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		return 0, root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		mode := fs.FileMode(0o644)
		if h.Mode&0o100 != 0 {
			mode = 0o755
		}
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(f, r)
		return n, errors.Join(err, f.Close())
	}
	return 0, pcm.Errorf(pcm.Refused, "the results hold %q, which is neither file nor folder nor link", h.Name)
}

// asError keeps an *pcm.Error and gives any other error a code.
func asError(err error, what string) error {
	if e, ok := errors.AsType[*pcm.Error](err); ok {
		return e
	}
	return pcm.Errorf(pcm.Internal, "%s: %w", what, err)
}
