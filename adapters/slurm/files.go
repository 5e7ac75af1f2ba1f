package slurm

import (
	"context"
	"errors"
	"os"
	"path"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Files go into and out of the working folder by copies: a task that runs as
// our user could write through a link to what others share. What it left is
// opened through the folder's root, so that no link leads out.

// copyOut copies the declared outputs, inputs excepted, from a working folder to home, up to
// a little more than limit bytes: what is over it is for the supervisor to see.
func copyOut(ctx context.Context, t adapters.Task, from *os.Root, home string, limit int64) error {
	to, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer to.Close()
	var inputs []string
	for _, in := range t.Inputs {
		inputs = append(inputs, path.Clean(in.Target))
	}
	left := limit + 1
	for _, out := range t.Outputs {
		out = path.Clean(out)
		if _, err := from.Lstat(out); err != nil {
			continue // not there, or a way that leads out
		}
		if err := to.MkdirAll(path.Dir(out), 0o700); err != nil {
			return err
		}
		n, err := supervisor.CopyTree(ctx, from, out, to, out, inputs, left)
		if errors.Is(err, supervisor.ErrOver) {
			return nil
		}
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}
