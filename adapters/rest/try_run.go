package rest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// run runs the task, as the node would.
func (t *trial) run() error {
	dir, err := os.MkdirTemp("", "pcm-try-")
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	cfg := t.cfg
	cfg.Dir = dir
	r, err := NewRunner(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	// Its calls are told of, too.
	method := cmp.Or(t.b.d.Create.Request.Method, http.MethodGet)
	var asked atomic.Bool // for a job
	b, err := open(t.ctx, cfg, func(x client.Exchange) {
		if x.Method == method {
			asked.Store(true)
		}
		t.trace(x)
	})
	if err != nil {
		return err
	}
	r.b, r.poller.b = b, b
	task := t.task()
	if err := r.Check(task); err != nil {
		return err
	}
	if err := r.Sweep(nil); err != nil {
		return err
	}
	var out, errs bytes.Buffer
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't make a folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(t.ctx, task.Limit)
	defer cancel()
	t.now("run")
	var strange atomic.Pointer[string] // a word that isn't described
	exit := r.Run(ctx, &supervisor.Run{
		Task: task, Work: work, Stdout: &capped{w: &out}, Stderr: &capped{w: &errs}, Stopping: make(chan supervisor.Stop),
		Started: func() { t.tell(Step{Part: "state", Facts: []Fact{{string(adapters.Running), ""}}}) },
		Report: func(s adapters.State, native, reason string) {
			if _, known := t.b.d.States[native]; !known && s == adapters.Running && native != "" {
				if strange.CompareAndSwap(nil, &native) {
					cancel() // nobody could tell when it ends
				}
			}
			t.tell(Step{Part: "state", Facts: []Fact{{strings.TrimSpace(string(s) + " " + reason), native}}})
		},
		Used: func(int64, pcm.Bytes) {},
	})
	t.tell(Step{Part: "end", Facts: []Fact{
		{ending(exit), exit.Native},
		{"stdout", t.b.clean(out.String(), maxFact)}, {"stderr", t.b.clean(errs.String(), maxFact)},
	}})
	t.now("delete")
	if err := r.Close(t.ctx); err != nil {
		return err
	}
	left := r.notes.keys()
	n := (*note)(nil)
	if len(left) > 0 {
		n = r.notes.load(left[0])
	}
	if word := strange.Load(); word != nil {
		text := fmt.Sprintf("the back end calls the job's state %s, which is not described: add it under states", t.b.clean(*word, maxNative))
		if n != nil && n.ID != "" {
			text += "; job " + n.ID + " was not seen to end: look for it there"
		}
		return pcm.Errorf(pcm.Invalid, "%s", text)
	}
	switch {
	case n != nil && n.ID == "" && asked.Load() && n.Stage == making:
		return pcm.Errorf(pcm.Unavailable, "the back end did not say whether it made job %s: look for it there (%s)", jobName(cfg.Instance, n.Task.Key), exit.Reason)
	case n != nil && n.ID == "": // no job was made
	case len(left) > 0:
		return pcm.Errorf(pcm.Unavailable, "the back end did not let us delete job %s: delete it there", left[0])
	}
	if exit.Outcome != pcm.OutcomeOK {
		return pcm.Errorf(pcm.Refused, "the task ended as %s: %s", exit.Outcome, exit.Reason)
	}
	return nil
}

// ending says how a task ended.
func ending(exit supervisor.Exit) string {
	text := fmt.Sprintf("outcome %s, exit code %d", exit.Outcome, exit.Code)
	if exit.Reason != "" && exit.Reason != fmt.Sprintf("exit code %d", exit.Code) {
		text += ": " + exit.Reason
	}
	return text
}

// capped keeps the first bytes of what is written.
type capped struct{ w *bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.w.Write(p[:min(len(p), max(0, 64<<10-c.w.Len()))])
	return len(p), nil
}
