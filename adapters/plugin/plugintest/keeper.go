package plugintest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// ended is how a task ended.
type ended struct {
	Outcome        pb.Outcome
	Code           int32
	Reason         string
	Started, Ended int64
	CPU, Memory    int64
}

// Keep runs the task of a folder to its end, and records that. It outlives the plug-in.
func Keep(dir string) error {
	begun, err := os.OpenFile(filepath.Join(dir, "begun"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err // another keeper was faster
	}
	begun.Close()
	var task pb.StartRequest
	data, err := os.ReadFile(filepath.Join(dir, "task.json"))
	if err == nil {
		err = json.Unmarshal(data, &task)
	}
	if err != nil {
		return err
	}
	e := keep(dir, &task)
	e.Ended = time.Now().UnixMilli()
	data, err = json.Marshal(e)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "end.json"), data)
}

func keep(dir string, task *pb.StartRequest) (e ended) {
	site := func(err error) ended {
		return ended{Outcome: pb.Outcome_OUTCOME_SITE, Code: 126, Reason: err.Error()}
	}
	stdout, err := os.OpenFile(filepath.Join(dir, "stdout"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return site(err)
	}
	defer stdout.Close()
	stderr, err := os.OpenFile(filepath.Join(dir, "stderr"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return site(err)
	}
	defer stderr.Close()
	if exists(filepath.Join(dir, "kill")) || exists(filepath.Join(dir, "term")) {
		return ended{Outcome: pb.Outcome_OUTCOME_STOPPED, Code: 143, Reason: "stopped before it ran"}
	}
	program, err := find(task.Command[0], task.Work)
	if err != nil {
		return ended{Outcome: pb.Outcome_OUTCOME_FAILED, Code: 127, Reason: fmt.Sprintf("program %q not found", task.Command[0])}
	}
	count(dir)
	cmd := &exec.Cmd{Path: program, Args: task.Command, Dir: task.Work, Env: environment(task), Stdout: stdout, Stderr: stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	e.Started = time.Now().UnixMilli()
	if err := cmd.Start(); err != nil {
		return ended{Outcome: pb.Outcome_OUTCOME_FAILED, Code: 126, Reason: err.Error()}
	}
	pid := cmd.Process.Pid
	if err := writeFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(pid))); err != nil {
		syscall.Kill(-pid, syscall.SIGKILL)
	}
	if exists(filepath.Join(dir, "kill")) { // it came meanwhile, and found no process
		syscall.Kill(-pid, syscall.SIGKILL)
	} else if exists(filepath.Join(dir, "term")) {
		syscall.Kill(-pid, syscall.SIGTERM)
	}
	over := make(chan struct{})
	bound := make(chan bool, 1)
	go func() { bound <- watchMemory(pid, task.Resources.GetMemoryBytes(), over) }()
	err = cmd.Wait()
	close(over)
	tooMuch := <-bound
	syscall.Kill(-pid, syscall.SIGKILL) // what it left of its group
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		e.CPU = (ru.Utime.Nano() + ru.Stime.Nano()) / 1e6
		e.Memory = ru.Maxrss << 10
	}
	if limit := task.Resources.GetMemoryBytes(); limit > 0 && e.Memory > limit {
		tooMuch = true
	}
	ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	e.Code = int32(ws.ExitStatus())
	if ws.Signaled() {
		e.Code = 128 + int32(ws.Signal())
	}
	switch {
	case exists(filepath.Join(dir, "kill")) || exists(filepath.Join(dir, "term")):
		e.Outcome, e.Reason = pb.Outcome_OUTCOME_STOPPED, "stopped"
	case tooMuch:
		e.Outcome, e.Reason = pb.Outcome_OUTCOME_MEMORY, "used more memory than it may"
		if e.Code == 0 {
			e.Code = 137
		}
	case err != nil:
		e.Outcome, e.Reason = pb.Outcome_OUTCOME_FAILED, err.Error()
	default:
		e.Outcome = pb.Outcome_OUTCOME_OK
	}
	return e
}

// count notes that a task was begun, for tests that count.
func count(dir string) {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(filepath.Dir(dir)), "starts"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		fmt.Fprintln(f, filepath.Base(dir))
		f.Close()
	}
}

// watchMemory ends the group when its processes have more than limit.
func watchMemory(pgid int, limit int64, over <-chan struct{}) bool {
	if limit <= 0 {
		<-over
		return false
	}
	for {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pgid))
		if fields := strings.Fields(string(data)); err == nil && len(fields) > 1 {
			if pages, _ := strconv.ParseInt(fields[1], 10, 64); pages*int64(os.Getpagesize()) > limit {
				syscall.Kill(-pgid, syscall.SIGKILL)
				return true
			}
		}
		select {
		case <-over:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

const searchPath = "/usr/local/bin:/usr/bin:/bin"

func environment(task *pb.StartRequest) []string {
	env := []string{"PATH=" + searchPath, "HOME=" + task.Work}
	for k, v := range task.Env {
		env = append(env, k+"="+v)
	}
	return env
}

// find is the program that a command names, as a shell in work would find it.
func find(name, work string) (string, error) {
	candidates := []string{filepath.Join(work, name)}
	if filepath.IsAbs(name) {
		candidates = []string{name}
	} else if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range filepath.SplitList(searchPath) {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, c := range candidates {
		if info, err := os.Stat(c); err == nil && info.Mode().IsRegular() {
			return c, nil
		}
	}
	return "", fs.ErrNotExist
}

// lay copies inputs to where the task finds them.
func lay(inputs []*pb.Input, work string) error {
	for _, in := range inputs {
		target := filepath.Join(work, in.Target)
		if !filepath.IsLocal(in.Target) {
			return fmt.Errorf("%q leads out", in.Target)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		err := filepath.WalkDir(in.Path, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(in.Path, p)
			if err != nil {
				return err
			}
			to := filepath.Join(target, rel)
			switch {
			case d.IsDir():
				return os.MkdirAll(to, 0o700)
			case d.Type() == fs.ModeSymlink:
				link, err := os.Readlink(p)
				if err != nil {
					return err
				}
				return os.Symlink(link, to)
			}
			return copyFile(p, to)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm()|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
