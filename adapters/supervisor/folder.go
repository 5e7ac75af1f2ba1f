package supervisor

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// folder is where one attempt lives on disk.
type folder string

func folderOf(dir string, k string) folder { return folder(filepath.Join(dir, "tasks", k)) }

func (f folder) work() string                         { return filepath.Join(string(f), "work") }
func (f folder) stream(s adapters.StreamName) string  { return filepath.Join(string(f), string(s)) }
func (f folder) taskFile() string                     { return filepath.Join(string(f), "task.cbor") }
func (f folder) statusFile() string                   { return filepath.Join(string(f), "status.cbor") }
func (f folder) exists() bool                         { _, err := os.Lstat(string(f)); return err == nil }
func (f folder) ended() bool                          { _, err := os.Lstat(f.statusFile()); return err == nil }
func (f folder) write(name string, data []byte) error { return os.WriteFile(name, data, 0o600) }

// create makes the folder. One that is already there is an attempt of before
// whose start was cut short: it is replaced.
func (f folder) create(t *task) error {
	err := os.Mkdir(string(f), 0o700)
	if errors.Is(err, fs.ErrExist) {
		if err = f.remove(); err == nil {
			err = os.Mkdir(string(f), 0o700)
		}
	}
	if err == nil {
		err = os.Mkdir(f.work(), 0o700)
	}
	if err == nil {
		err = f.write(f.taskFile(), pcm.MustMarshal(t))
	}
	if err != nil {
		f.remove()
		return pcm.Errorf(pcm.Unavailable, "can't make the folder of attempt %s: %w", t.Key, err)
	}
	return nil
}

// finish records how the attempt ended, atomically. It is not synced: after a
// crash of the machine the attempt counts as lost with it.
func (f folder) finish(s status) error {
	tmp := f.statusFile() + ".new"
	if err := f.write(tmp, pcm.MustMarshal(s)); err != nil {
		return err
	}
	return os.Rename(tmp, f.statusFile())
}

func (f folder) loadTask() (*task, error) {
	data, err := os.ReadFile(f.taskFile())
	if err != nil {
		return nil, err
	}
	t := new(task)
	return t, pcm.Unmarshal(data, t)
}

func (f folder) loadStatus() (status, error) {
	var s status
	data, err := os.ReadFile(f.statusFile())
	if err != nil {
		return s, err
	}
	return s, pcm.Unmarshal(data, &s)
}

// remove deletes the folder, also where the task took its own permissions away.
func (f folder) remove() error {
	err := os.RemoveAll(string(f))
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	for range maxDepth { // each pass may open one level more
		filepath.WalkDir(string(f), func(p string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
		if err = os.RemoveAll(string(f)); err == nil {
			return nil
		}
	}
	return err
}

// measure adds up the declared outputs, inputs excepted, and makes them
// readable for their owner. Links are not followed. It stops when over limit.
func measure(work string, t adapters.Task, limit int64) (int64, error) {
	root, err := os.OpenRoot(work)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	var sum int64
	inputs := inputTargets(t.Inputs)
	var walk func(name string, depth int) error
	walk = func(name string, depth int) error {
		if covered(inputs, name) {
			return nil
		}
		info, err := root.Lstat(name)
		if err != nil {
			return nil // not there, or a path that leads out: not an output then
		}
		switch {
		case info.Mode().IsRegular():
			if info.Mode()&0o400 == 0 {
				root.Chmod(name, info.Mode().Perm()|0o400)
			}
			if sum += info.Size(); sum > limit {
				return ErrOver
			}
		case info.IsDir():
			if depth > maxDepth {
				return pcm.Errorf(pcm.TooLarge, "output folders are nested more than %d deep", maxDepth)
			}
			if info.Mode()&0o700 != 0o700 {
				root.Chmod(name, info.Mode().Perm()|0o700)
			}
			d, err := root.Open(name)
			if err != nil {
				return nil
			}
			defer d.Close()
			for {
				names, err := d.Readdirnames(1024)
				for _, n := range names {
					if sum += entryCost; sum > limit {
						return ErrOver
					}
					if err := walk(path.Join(name, n), depth+1); err != nil {
						return err
					}
				}
				if err != nil {
					return nil
				}
			}
		}
		return nil
	}
	for _, out := range t.Outputs {
		if err := walk(path.Clean(out), 0); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

const (
	maxDepth  = 128
	entryCost = 64 // bytes that a name counts for, so that empty files are bounded too
)

// ErrOver says that files are over a bound.
var ErrOver = errors.New("over the cap")

func inputTargets(in []adapters.Mount) []string {
	targets := make([]string, len(in))
	for i, m := range in {
		targets[i] = path.Clean(m.Target)
	}
	return targets
}

// covered tells whether name is one of the cleaned paths or below one.
func covered(paths []string, name string) bool {
	return slices.ContainsFunc(paths, func(p string) bool { return within(p, name) })
}

// within tells whether name is p or below it; both are clean and relative.
func within(p, name string) bool {
	return p == "." || name == p || strings.HasPrefix(name, p) && name[len(p)] == '/'
}

// checkTask refuses what no runner can run as it is asked.
func checkTask(t adapters.Task) error {
	if t.Deadline == 0 {
		return pcm.Errorf(pcm.Invalid, "attempt %s has no lease: set its deadline", t.Key)
	}
	if err := t.Resources.Validate(); err != nil {
		return err
	}
	if t.Limit < 0 || t.OutputCap < 0 || t.Count < 0 {
		return pcm.Errorf(pcm.Invalid, "attempt %s has a negative limit, cap or count", t.Key)
	}
	for k, v := range t.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return pcm.Errorf(pcm.Invalid, "%q is not the name of a variable", k)
		}
	}
	for _, words := range [][]string{t.Command, t.Args} {
		for _, w := range words {
			if strings.ContainsRune(w, 0) {
				return pcm.Errorf(pcm.Invalid, "a word of the command holds a NUL character")
			}
		}
	}
	for _, out := range t.Outputs {
		if !local(out) {
			return pcm.Errorf(pcm.Invalid, "output %q leads out of the task's working folder: give a relative path without ..", out)
		}
	}
	targets := inputTargets(t.Inputs)
	for i, in := range t.Inputs {
		if !local(in.Target) || targets[i] == "." {
			return pcm.Errorf(pcm.Invalid, "input target %q is not below the task's working folder: give a relative path without ..", in.Target)
		}
		if !filepath.IsAbs(in.Path) {
			return pcm.Errorf(pcm.Invalid, "input %q is not an absolute path", in.Path)
		}
		for j, other := range targets {
			if j != i && within(other, targets[i]) {
				return pcm.Errorf(pcm.Invalid, "input target %q is inside input target %q: give them separate places", in.Target, other)
			}
		}
	}
	return nil
}

// share has a task use the words of another one where they are the same: of
// thousands of one job each would keep its own.
func share(t, with *adapters.Task) {
	if t.Job == with.Job {
		t.Job = with.Job
	}
	if t.Pool == with.Pool {
		t.Pool = with.Pool
	}
	if t.Module == with.Module {
		t.Module = with.Module
	}
	if t.Image == with.Image {
		t.Image = with.Image
	}
	if slices.Equal(t.Command, with.Command) {
		t.Command = with.Command
	}
	if slices.Equal(t.Args, with.Args) {
		t.Args = with.Args
	}
	if maps.Equal(t.Env, with.Env) {
		t.Env = with.Env
	}
	if slices.Equal(t.Inputs, with.Inputs) {
		t.Inputs = with.Inputs
	}
	if slices.Equal(t.Outputs, with.Outputs) {
		t.Outputs = with.Outputs
	}
}

func local(p string) bool {
	return !strings.ContainsAny(p, "\\\x00") && filepath.IsLocal(p)
}

func environ(t adapters.Task, home, path string) []string {
	env := map[string]string{"PATH": path, "HOME": home}
	maps.Copy(env, t.Env)
	env["PCM_TASK_INDEX"] = strconv.Itoa(t.Index)
	env["PCM_TASK_COUNT"] = strconv.Itoa(t.Count)
	env["PCM_JOB"] = string(t.Job)
	env["PCM_ATTEMPT"] = t.Key.String()
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	s = s[:n-3]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "..."
}

func byKey(a, b status) int { return cmp.Compare(a.Key, b.Key) }
