package modelarts

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// run takes a job to its end.
func (c *Cloud) run(j *job) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if j.left = true; j.gone {
			os.RemoveAll(j.dir)
		}
	}()
	if c.o.Creating > 0 && !j.waits(time.After(c.o.Creating)) {
		c.finish(j, terminated, terminated, nil)
		return
	}
	c.phase(j, pending, "Queuing")
	place := c.room.Enter(1)
	defer place.Leave()
	select {
	case <-place.Ready():
	case <-j.stop:
		c.finish(j, terminated, terminated, nil)
		return
	}
	c.mu.Lock()
	j.began = c.o.Now()
	j.note(j.began, "Info", "Job", "Training job is running.")
	c.mu.Unlock()
	c.phase(j, running, running)
	if err := c.prepare(j); err != nil {
		c.finish(j, failed, failed, &taskStatus{worker, 1, err.Error()})
		return
	}
	p, err := c.start(j)
	if err != nil {
		c.finish(j, failed, failed, &taskStatus{worker, 127, err.Error()})
		return
	}
	exit := c.attend(j, p)
	c.mu.Lock()
	j.note(c.o.Now(), "Info", "Task", fmt.Sprintf("[%s] Training finished. Exit code %d.", worker, exit.Code))
	c.mu.Unlock()
	c.serviceLog(j, "training end with exit code: %d", exit.Code)
	task := &taskStatus{worker, exit.Code, ""}
	if err := c.save(j); err != nil && exit.Code == 0 {
		task.Code, task.Message = 1, err.Error()
	}
	switch {
	case exit.OutOfMemory:
		task.Message = "OOMKilled"
		c.finish(j, failed, failed, task)
	case exit.Stopped:
		c.finish(j, terminated, terminated, task)
	case task.Code != 0:
		if task.Message == "" {
			task.Message = fmt.Sprintf("training process exited with code %d", exit.Code)
		}
		c.finish(j, failed, failed, task)
	default:
		c.finish(j, completed, completed, task)
	}
}

// waits is false if the end is wanted first.
func (j *job) waits(c <-chan time.Time) bool {
	select {
	case <-c:
		return true
	case <-j.stop:
		return false
	}
}

func (c *Cloud) phase(j *job, phase, secondary string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.status.Phase != terminating {
		j.status.Phase, j.status.Secondary = phase, secondary
	}
}

func (c *Cloud) finish(j *job, phase, secondary string, task *taskStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.ended = c.o.Now()
	if task != nil {
		j.status.Statuses = []taskStatus{*task}
	}
	level := "Info"
	if phase == failed {
		level = "Error"
	}
	j.note(j.ended, level, "Job", "Training job "+strings.ToLower(phase)+".")
	j.status.Phase, j.status.Secondary = phase, secondary
}

// attend waits for the end of the program, which may be wanted or due.
func (c *Cloud) attend(j *job, p *machine.Process) machine.Exit {
	var due <-chan time.Time
	if a := j.Spec.AutoStop; a != nil {
		timer := time.NewTimer(time.Duration(a.Duration) * time.Hour)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-p.Done():
	case <-due:
		p.Stop(c.o.Grace)
	case <-j.stop:
		if j.grace > 0 {
			p.Stop(j.grace)
		} else {
			p.Kill()
		}
	}
	return p.Wait()
}

// at is where a path of the container is on this machine.
func (j *job) at(p string) string { return filepath.Join(j.dir, "root", filepath.FromSlash(p)) }

// prepare makes the job's folders and brings code and inputs into them.
func (c *Cloud) prepare(j *job) error {
	a := j.Algorithm
	dirs := []string{codeFolder, logFolder, a.WorkingDir}
	for _, o := range a.Outputs {
		dirs = append(dirs, o.LocalDir)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(j.at(d), 0o755); err != nil {
			return err
		}
	}
	c.serviceLog(j, "start to download inputs")
	if a.CodeDir != "" {
		if err := c.fetch(j, a.CodeDir, j.code()); err != nil {
			return err
		}
	}
	for _, in := range a.Inputs {
		if err := c.fetch(j, in.Remote.OBS.URL, in.LocalDir); err != nil {
			return fmt.Errorf("input %s: %w", in.Name, err)
		}
	}
	return nil
}

// code is where the code is in the container.
func (j *job) code() string {
	if j.Algorithm.LocalCodeDir != "" {
		return j.Algorithm.LocalCodeDir
	}
	return codeFolder + "/" + path.Base(strings.TrimSuffix(j.Algorithm.CodeDir, "/"))
}

// fetch copies what is at a place of the object store: a file, or all below a folder.
func (c *Cloud) fetch(j *job, url, to string) error {
	bucket, key, err := place(url)
	if err != nil {
		return err
	}
	prefix := key
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	list, err := c.o.Store.List(bucket, prefix)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(j.at(to), 0o755); err != nil {
		return err
	}
	if len(list) == 0 {
		return c.fetchOne(bucket, key, filepath.Join(j.at(to), path.Base("/"+key)))
	}
	if len(list) > maxFiles {
		return fmt.Errorf("%s holds %d objects, more than %d", url, len(list), maxFiles)
	}
	for _, o := range list {
		name := strings.TrimPrefix(o.Key, prefix)
		if name == "" || strings.HasSuffix(name, "/") { // a marker of a folder
			continue
		}
		if !filepath.IsLocal(filepath.FromSlash(name)) {
			return fmt.Errorf("the object %q has a name that leaves its folder", o.Key)
		}
		if err := c.fetchOne(bucket, o.Key, filepath.Join(j.at(to), filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cloud) fetchOne(bucket, key, to string) error {
	r, _, err := c.o.Store.Get(bucket, key)
	if err != nil {
		return fmt.Errorf("%s/%s: %w", bucket, key, err)
	}
	defer r.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// start runs the program, if the end is not wanted by now.
func (c *Cloud) start(j *job) (*machine.Process, error) {
	a := j.Algorithm
	dir := codeFolder
	if a.WorkingDir != "" {
		dir = a.WorkingDir
	}
	command := []string{"/bin/sh", "-c", a.Command}
	if a.Command == "" {
		boot := path.Join(j.code(), strings.TrimPrefix(strings.TrimPrefix(a.BootFile, "obs:/"), strings.TrimPrefix(strings.TrimSuffix(a.CodeDir, "/"), "obs:/")))
		command = append([]string{"python3", j.at(boot)}, j.arguments()...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := machine.Run(machine.Spec{
		Dir: j.at(dir), Command: command, Env: j.environment(), Output: j.log(), Memory: int64(j.flavor.MemoryMB) << 20,
	})
	if err != nil {
		return nil, err
	}
	j.process = p
	c.starts[j.Metadata.Name]++
	j.note(c.o.Now(), "Info", "Task", "["+worker+"] training started.")
	return p, nil
}

// arguments are those of a boot file. Whether the service adds them to the command of a
// custom image is not known; the fake doesn't.
func (j *job) arguments() (args []string) {
	for _, p := range j.Algorithm.Parameters {
		args = append(args, "--"+p.Name+"="+p.Value)
	}
	for _, list := range [][]channel{j.Algorithm.Inputs, j.Algorithm.Outputs} {
		for _, ch := range list {
			if ch.Access != "env" {
				args = append(args, "--"+ch.Name+"="+j.at(ch.LocalDir))
			}
		}
	}
	return args
}

func (j *job) environment() []string {
	cards := 0
	if !j.flavor.Ascend {
		cards = j.flavor.Accelerators
	}
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
		"HOME=" + j.at(home), "MA_HOME=" + j.at(home), "MA_MOUNT_PATH=" + j.at(mount),
		"MA_JOB_DIR=" + j.at(codeFolder), "MA_LOG_DIR=" + j.at(logFolder),
		"MA_NUM_GPUS=" + strconv.Itoa(cards), "MA_NUM_HOSTS=1", "MA_TASK_NAME=worker", "MA_CURRENT_IP=127.0.0.1",
		"VC_TASK_INDEX=0", "VC_WORKER_NUM=1", "VC_WORKER_HOSTS=localhost",
	}
	for _, list := range [][]channel{j.Algorithm.Inputs, j.Algorithm.Outputs} {
		for _, ch := range list {
			if ch.Access == "env" {
				env = append(env, ch.Name+"="+j.at(ch.LocalDir))
			}
		}
	}
	for name, value := range j.env {
		env = append(env, name+"="+value)
	}
	return env
}

// save brings outputs and log into the object store.
func (c *Cloud) save(j *job) error {
	for _, o := range j.Algorithm.Outputs {
		c.event(j, "[%s] Training output(parameter name: %s) Uploading.", worker, o.Name)
		if err := c.upload(j.at(o.LocalDir), o.Remote.OBS.URL); err != nil {
			return fmt.Errorf("output %s: %w", o.Name, err)
		}
		c.event(j, "[%s] Upload training output(parameter name: %s) finished.", worker, o.Name)
	}
	if l := j.Spec.LogExport; l != nil && l.URL != "" {
		bucket, key, err := place(l.URL)
		if err != nil {
			return err
		}
		return c.store(bucket, path.Join(key, j.logName()), j.log())
	}
	return nil
}

// upload stores the regular files below a folder.
func (c *Cloud) upload(dir, url string) error {
	bucket, key, err := place(url)
	if err != nil {
		return err
	}
	files := 0
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if files++; files > maxFiles {
			return fmt.Errorf("there are more than %d files", maxFiles)
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return c.store(bucket, path.Join(key, filepath.ToSlash(name)), file)
	})
}

func (c *Cloud) event(j *job, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.note(c.o.Now(), "Info", "Task", fmt.Sprintf(format, args...))
}

// serviceLog writes a line of the service's own into the job's log.
func (c *Cloud) serviceLog(j *job, format string, args ...any) {
	if !c.o.ServiceLog {
		return
	}
	if f, err := os.OpenFile(j.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		fmt.Fprintf(f, "[ModelArts Service Log][INFO][%s]: "+format+"\n", append([]any{c.o.Now().Format("2006/01/02 15:04:05")}, args...)...)
		f.Close()
	}
}
