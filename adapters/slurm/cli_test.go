package slurm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A submission has Slurm ask nobody's login shell for an environment, and gives
// away nothing of the node's.
func TestSubmittedEnvironment(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >" + dir + "/args\nenv >" + dir + "/env\necho 7\n"
	if err := os.WriteFile(filepath.Join(dir, "sbatch"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NODE_SECRET", "not-for-jobs")
	c, err := newCLI(Config{Commands: dir, Conf: "/etc/ours.conf", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.submit(t.Context(), batch{Name: "pcm.x", Count: 3, Width: 2, Dir: "/"})
	if err != nil || id != 7 {
		t.Fatalf("%d, %v", id, err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--export=ALL", "--array=0-2%2"} {
		if !strings.Contains(string(args), want) {
			t.Errorf("%s is not among %s", want, args)
		}
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(env); strings.Contains(text, "not-for-jobs") || !strings.Contains(text, "SLURM_CONF=/etc/ours.conf") {
		t.Errorf("jobs get the environment %s", text)
	}
}
