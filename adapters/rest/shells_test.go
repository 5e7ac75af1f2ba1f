package rest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// shells are those that images have. One that isn't here is passed over, but for
// the one that is sh.
func shells() map[string][]string {
	all := map[string][]string{"sh": {"sh"}, "dash": {"dash"}, "bash": {"bash"}, "posix": {"bash", "--posix"}, "busybox": {"busybox", "sh"}}
	maps.DeleteFunc(all, func(name string, words []string) bool {
		_, err := exec.LookPath(words[0])
		return err != nil && name != "sh"
	})
	return all
}

// The script does in each shell what it is to do.
func TestShells(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"UID": "7", "PPID": "8", "BASHOPTS": "x", "SHELLOPTS": "y", "n": "forged", "d": "/", "IFS": "x", "-i": "z", "odd name": "o", "OPTIND": "5", "RANDOM": "6",
	}
	for name, shell := range shells() {
		for what, c := range map[string]struct {
			command []string
			code    int
			outputs []string
		}{
			"environment":          {command: []string{"env"}},
			"in the script's ways": {command: []string{"sh", "-c", "mkdir ../times ../peak; exit 3"}, code: 3},
			"nothing is left":      {command: []string{"sh", "-c", "rm -rf ../*; exit 4"}, code: 4},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				task := adaptertest.NewTask()
				task.Command, task.Env, task.Outputs = c.command, env, c.outputs
				cmd := exec.Command(shell[0], append(shell[1:], "-c", script(task, "job", "pcm-nonce-", nil, false))...)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PCM_WORK=" + t.TempDir()}
				log, err := cmd.Output()
				var out, errs bytes.Buffer
				m := &marks{nonce: []byte("pcm-nonce-"), stdout: &out, stderr: &errs, lose: func() {}}
				if _, err := m.Write(log); err != nil {
					t.Fatal(err)
				}
				if err := m.close(); err != nil {
					t.Fatal(err)
				}
				if !m.ended || m.code != c.code || m.fault != "" || cmd.ProcessState.ExitCode() != c.code {
					t.Errorf("%+v; %v, log %q", m, err, log)
				}
				if what != "environment" {
					return
				}
				for k, v := range env {
					if !strings.Contains("\n"+out.String(), "\n"+k+"="+v+"\n") {
						t.Errorf("%s=%s is not in %q, %q", k, v, out.String(), errs.String())
					}
				}
			})
		}
	}
}

// A shell whose wait is interrupted says what came of the command all the same. What is
// to come at once is brought about while the shell is stopped.
func TestShellsStopped(t *testing.T) {
	t.Parallel()
	const asked = `echo $$ >pid; while :; do sleep 0.1; done`
	for name, shell := range shells() {
		for what, c := range map[string]struct {
			command string
			before  syscall.Signal // to the command, which ends by it before the shell hears of anything
			told    int            // so often the shell gets SIGTERM
			code    int
		}{
			"it lives":               {`trap 'exit 7' TERM; ` + asked, 0, 1, 7},
			"it lives, and ends 127": {`trap 'exit 127' TERM; ` + asked, 0, 1, 127},
			"it lives, and is ended": {asked, 0, 1, 143},
			"it ends meanwhile":      {`trap 'exit 7' USR1; ` + asked, syscall.SIGUSR1, 1, 7},
			"it is ended meanwhile":  {asked, syscall.SIGTERM, 1, 143},
			"it lives on at first":   {`trap 'echo >told; trap "exit 7" TERM' TERM; ` + asked, 0, 2, 7},
			"it is killed meanwhile": {asked, syscall.SIGKILL, 1, 137},
			"nobody told the shell":  {asked, syscall.SIGTERM, 0, 143},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				task := adaptertest.NewTask()
				task.Command, task.Env, task.Outputs = []string{"sh", "-c", c.command}, nil, nil
				dir := t.TempDir()
				cmd := exec.Command(shell[0], append(shell[1:], "-c", script(task, "job", "pcm-nonce-", nil, false))...)
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PCM_WORK=" + dir}
				var log bytes.Buffer
				cmd.Stdout = &log
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() { defer close(ended); _ = cmd.Wait() }()
				t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
				var command int
				until(t, "the command runs", func() bool {
					text, _ := os.ReadFile(filepath.Join(dir, "job", "work", "pid"))
					command, _ = strconv.Atoi(strings.TrimSpace(string(text)))
					peak, err := os.ReadFile(filepath.Join(dir, "job", "peak"))
					return command > 0 && err == nil && len(peak) > 0
				})
				t.Cleanup(func() { _ = syscall.Kill(command, syscall.SIGKILL) })
				reaches(t, cmd.Process.Pid, 'S')
				if c.before != 0 {
					_ = cmd.Process.Signal(syscall.SIGSTOP)
					reaches(t, cmd.Process.Pid, 'T')
					_ = syscall.Kill(command, c.before)
					reaches(t, command, 'Z')
				}
				for i := range c.told {
					if i > 0 {
						until(t, "the command has heard", func() bool {
							_, err := os.Stat(filepath.Join(dir, "job", "work", "told"))
							return err == nil
						})
						reaches(t, cmd.Process.Pid, 'S')
					}
					_ = cmd.Process.Signal(syscall.SIGTERM)
				}
				_ = cmd.Process.Signal(syscall.SIGCONT)
				<-ended
				if !strings.HasSuffix(log.String(), fmt.Sprintf("pcm-nonce-x %d\n", c.code)) || cmd.ProcessState.ExitCode() != c.code {
					t.Errorf("%v, log %q, not %d", cmd.ProcessState, log.String(), c.code)
				}
			})
		}
	}
}

// A code that was collected before SIGTERM came is not lost by asking once more.
func TestShellsAskedTwice(t *testing.T) {
	for name, shell := range shells() {
		for command, code := range map[string]int{"kill -KILL $$": 137, "exit 200": 200, "exit 7": 7} {
			text := `told=''
wait() { command wait "$1"; set -- "$?"; told=${told:-1}; return "$1"; }
sh -c '` + command + `' &
pid=$!
` + supervisor.Await + `exit "$code"`
			cmd := exec.Command(shell[0], append(shell[1:], "-c", text)...)
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != code {
				t.Errorf("%s says of %q: %v", name, command, err)
			}
		}
	}
}

// reaches waits until a process is in a state of those of /proc.
func reaches(t *testing.T, pid int, state byte) {
	t.Helper()
	until(t, fmt.Sprintf("process %d is in state %c", pid, state), func() bool {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		at := bytes.LastIndexByte(text, ')') + 2
		return at < len(text) && text[at] == state
	})
}
