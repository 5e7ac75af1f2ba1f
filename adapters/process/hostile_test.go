package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// forBoxes runs a test in each mode with a sandbox, and more words for the mode.
func forBoxes(t *testing.T, more string, f func(*testing.T, *lab, string)) {
	for _, mode := range modes {
		if strings.HasPrefix(mode, SandboxNone) {
			continue
		}
		t.Run(strings.ReplaceAll(mode, " ", "_"), func(t *testing.T) {
			t.Parallel()
			f(t, newLab(t, strings.TrimSpace(mode+" "+more)), mode)
		})
	}
}

// sh starts a shell script.
func (l *lab) sh(text string, change func(*adapters.Task)) adapters.Task {
	l.t.Helper()
	return l.start(func(t *adapters.Task) {
		t.Command, t.Inputs, t.Env = []string{"sh", "-c", text}, nil, nil
		if change != nil {
			change(t)
		}
	})
}

// What a task must not read, do or reach, tried from within each sandbox.
func TestKeptIn(t *testing.T) {
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outside.Close() }) // after the parallel ones
	abstract, err := net.Listen("unix", fmt.Sprintf("@pcm-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abstract.Close() })
	home, err := os.UserHomeDir()
	if err != nil || os.WriteFile(filepath.Join(home, ".pcm-probe"), nil, 0o600) != nil {
		home = t.TempDir()
	}
	os.Remove(filepath.Join(home, ".pcm-probe"))
	forBoxes(t, "", func(t *testing.T, l *lab, mode string) {
		secret := func(name string) string {
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte("treasure\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(name) })
			return name
		}
		other := l.sh("sleep 300", nil)
		l.wait(other.Key, adapters.Running)
		var script strings.Builder
		for _, name := range []string{
			secret(filepath.Join(l.box.Dir, "peer.key")),
			secret(filepath.Join(l.box.Dir, "tasks", other.Key.String(), "work", "theirs")),
			secret(filepath.Join(home, fmt.Sprintf("pcm-test-%d-%s", os.Getpid(), strings.ReplaceAll(mode, " ", "-")))),
			secret(filepath.Join(t.TempDir(), "of-another")),
		} {
			fmt.Fprintf(&script, "cat %s; ln -s %s l; cat l; rm -f l\n", name, name)
		}
		fmt.Fprintf(&script, "cat /proc/%d/environ /proc/%d/cmdline /proc/%d/mem | head -c 100 | tr '\\0' ' '\n", l.box.PID(), l.box.PID(), l.box.PID())
		for _, c := range []string{
			"cat /etc/shadow", "echo x >/usr/x", "echo x >/etc/x", "mount -t tmpfs none /tmp", "unshare -Ur true", "unshare -n true", "chroot / true",
			fmt.Sprintf("kill -0 %d", l.box.PID()), "nsenter -t 1 -m true", fmt.Sprintf("prlimit --pid %d --nofile=1024:1024", l.box.PID()), fmt.Sprintf("renice 19 -p %d", l.box.PID()), "mknod d b 7 0", "dmesg",
			fmt.Sprintf("bash -c ': </dev/tcp/127.0.0.1/%d'", outside.Addr().(*net.TCPAddr).Port),
			"ls " + l.box.Dir, "ls " + home,
		} {
			fmt.Fprintf(&script, "if %s; then echo 'CAN %s'; fi\n", c, strings.ReplaceAll(c, "'", ""))
		}
		script.WriteString("grep -c . /proc/self/status; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; echo over\n")
		task := l.sh(script.String(), nil)
		st := l.wait(task.Key, adapters.Ended)
		out := l.stdout(task.Key, false)
		if st.Outcome != pcm.OutcomeOK || !strings.HasSuffix(out, "over\n") {
			t.Fatalf("%+v\n%s", st, out)
		}
		if strings.Contains(out, "treasure") || strings.Contains(out, "CAN ") || strings.Contains(out, "PCM_TEST") {
			t.Errorf("it got out:\n%s", out)
		}
		for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
}

// The network is there for those who ask, if the node allows it.
func TestNetwork(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() }) // after the parallel ones
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello\n")
			c.Close()
		}
	}()
	command := fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d && cat <&3", server.Addr().(*net.TCPAddr).Port)
	forBoxes(t, "network", func(t *testing.T, l *lab, mode string) {
		for _, asks := range []bool{false, true} {
			task := l.sh("", func(t *adapters.Task) { t.Command, t.Network = []string{"bash", "-c", command}, asks })
			st := l.wait(task.Key, adapters.Ended)
			if out := l.stdout(task.Key, false); (st.Outcome == pcm.OutcomeOK) != asks || (out == "hello\n") != asks {
				t.Errorf("asks %v: %+v %q", asks, st, out)
			}
		}
		denied := newLab(t, mode)
		task := denied.sh("true", nil)
		task.Key.Index, task.Network = 7, true
		if err := denied.a.Start(denied.ctx, task); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "adapters.process.network") {
			t.Errorf("not allowed here: %v", err)
		}
	})
}

// A task that forks without end meets its bound, and others go on.
func TestForkBomb(t *testing.T) {
	forBoxes(t, "small", func(t *testing.T, l *lab, mode string) {
		if strings.Contains(mode, "rlimit") && (os.Getuid() == 0 || mode != landlockedRlimit) {
			t.Skip("without control groups only namespaces of a user who is not root bound processes: stated, not tested")
		}
		bomb := l.sh("echo ready; i=0; while [ $i -lt 500 ]; do sleep 300 & i=$((i+1)); done; echo all", nil)
		st := l.wait(bomb.Key, adapters.Ended)
		if out := l.stdout(bomb.Key, false); st.Outcome != pcm.OutcomeFailed || strings.Contains(out, "all") || !strings.Contains(out, "ready") {
			t.Errorf("%+v %q", st, out)
		}
		endless := l.sh("b() { b | b & }; b; sleep 300", nil)
		l.wait(endless.Key, adapters.Running)
		good := l.sh("echo fine", nil)
		if st := l.wait(good.Key, adapters.Ended); st.Outcome != pcm.OutcomeOK {
			t.Errorf("beside a fork bomb: %+v", st)
		}
		if err := l.a.Stop(l.ctx, endless.Key, 0, "enough"); err != nil {
			t.Fatal(err)
		}
		l.wait(endless.Key, adapters.Ended)
		l.await("the death of all", func() bool { return alive(endless.Key) == 0 })
	})
}

// A task that fills its folder, /tmp or one file ends by that or is refused it.
func TestFullDisk(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		l = newLab(t, l.box.Mode+" small")
		file := l.sh("dd if=/dev/zero of=big bs=1M count=64; stat -c %s big; exit 5", nil)
		st := l.wait(file.Key, adapters.Ended)
		if size, _ := strconv.Atoi(strings.TrimSpace(l.stdout(file.Key, false))); st.ExitCode != 5 || size > 8<<20 || size < 1<<20 {
			t.Errorf("one file: %+v, %d bytes", st, size)
		}
		many := l.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir -p d$i; dd if=/dev/zero of=d$i/f bs=1M count=1 2>/dev/null; done; sleep 300", nil)
		if st := l.wait(many.Key, adapters.Ended); st.Outcome != pcm.OutcomeOutput || !strings.Contains(st.Reason, "8MiB") {
			t.Errorf("many files: %+v", st)
		}
		if !strings.HasPrefix(l.box.Mode, SandboxNone) {
			tmp := l.sh("for d in /tmp /run /dev/shm /dev /; do i=0; while [ $i -lt 24 ]; do dd if=/dev/zero of=$d/f$i bs=1M count=1 2>/dev/null || break; i=$((i+1)); done; [ $i -lt 24 ] || echo unbounded $d; done", nil)
			if st := l.wait(tmp.Key, adapters.Ended); st.State != adapters.Ended || strings.Contains(l.stdout(tmp.Key, false), "unbounded") {
				t.Errorf("beside its folder: %+v %s", st, l.stdout(tmp.Key, false))
			}
		}
		small := l.sh("for i in 1 2 3 4; do dd if=/dev/zero of=f$i bs=1M count=1 2>/dev/null; done; sleep 300", func(t *adapters.Task) { t.Resources.Disk = 2 << 20 })
		if st := l.wait(small.Key, adapters.Ended); st.Outcome != pcm.OutcomeOutput || !strings.Contains(st.Reason, "2MiB") {
			t.Errorf("its own bound: %+v", st)
		}
	})
}

// Files that no folder names any more are found by who holds them.
func TestNamelessFiles(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if n := nameless(dir, []int{os.Getpid()}); n >= 3<<20 {
		t.Errorf("with a name: %d bytes", n)
	}
	os.Remove(f.Name())
	if n := nameless(dir, []int{os.Getpid(), os.Getpid()}); n < 3<<20 || n >= 6<<20 {
		t.Errorf("without: %d bytes", n)
	}
}

// A gigabyte of output is read, kept up to the cap, and ends its task.
func TestFlood(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		task := l.sh("head -c 1073741824 /dev/zero", func(t *adapters.Task) { t.OutputCap = 1 << 20 })
		st := l.wait(task.Key, adapters.Ended)
		if n := len(l.stdout(task.Key, false)); st.Outcome != pcm.OutcomeOutput || n != 1<<20 {
			t.Errorf("%+v, %d bytes kept", st, n)
		}
	})
}

// All of this holds for a node that is not run by root: its tests are run again as nobody.
func TestAsNobody(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this is not root")
	}
	needs(t, landlockedRlimit)
	t.Parallel()
	dir, err := os.MkdirTemp("", "pcm-nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "process.test")
	if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*testPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, "-test.run", "^(TestKeptIn|TestBreakout|TestClosedFolders|TestExecItself|TestNetwork|TestForkBomb|TestFullDisk|TestFlood|TestCommands|TestConformance)$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "PCM_TEST_REQUIRE=" + os.Getenv("PCM_TEST_REQUIRE")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestKeptIn/landlock_rlimit_unspaced") {
		t.Errorf("as nobody: %v\n%s", err, failures(string(out)))
	}
}

// failures leaves out what went well.
func failures(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- PASS") && !strings.Contains(line, "--- SKIP") && !strings.Contains(line, "UNSUPPORTED") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// The findings tell of each means, and what is weaker for the lack of it.
func TestProbe(t *testing.T) {
	for _, path := range []string{os.Getenv("PATH"), t.TempDir()} {
		t.Setenv("PATH", path)
		all, err := Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]Finding{}
		for _, f := range all {
			seen[f.What] = f
			if f.State == "" || !f.OK && (f.Consequence == "" || f.Remedy == "") {
				t.Errorf("%+v", f)
			}
		}
		for _, what := range []string{"bubblewrap", "landlock", "control groups", "sandbox"} {
			if seen[what].What == "" {
				t.Errorf("nothing about %s in %+v", what, all)
			}
		}
		if _, err := exec.LookPath("bwrap"); (err != nil) && seen["bubblewrap"].OK {
			t.Errorf("bubblewrap works without being there: %+v", seen["bubblewrap"])
		}
	}
}
