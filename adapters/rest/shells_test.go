package rest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest"
)

// The script does in each shell what it is to do: images have all of these. One
// that isn't here is passed over, but for the one that is sh.
func TestShells(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"UID": "7", "PPID": "8", "BASHOPTS": "x", "SHELLOPTS": "y", "n": "forged", "d": "/", "IFS": "x", "-i": "z", "odd name": "o", "OPTIND": "5", "RANDOM": "6",
	}
	for name, shell := range map[string][]string{"sh": {"sh"}, "dash": {"dash"}, "bash": {"bash", "--posix"}, "busybox": {"busybox", "sh"}} {
		if _, err := exec.LookPath(shell[0]); err != nil && name != "sh" {
			continue
		}
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
