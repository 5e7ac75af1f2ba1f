package process

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// breakout names, in a task's environment, what this test binary tries there.
const breakout = "PCM_TEST_BREAKOUT"

func init() {
	try := map[string]func(){"calls": tryCalls, "files": tryFiles, "foreign": foreignCall, "abstract": tryAbstract}[os.Getenv(breakout)]
	if try != nil {
		try()
		fmt.Println("over")
		os.Exit(0)
	}
}

// got prints what must not be: anything but the wanted errors.
func got(what string, err error, want ...error) {
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	fmt.Printf("CAN %s: %v\n", what, err)
}

func raw(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// tryCalls makes system calls as who looks for a gap in the filter would.
func tryCalls() {
	letter := byte('x')
	for _, high := range []uintptr{0, 1 << 32, 0xffffffff << 32} {
		got("push input", raw(unix.SYS_IOCTL, 0, high|unix.TIOCSTI, uintptr(unsafe.Pointer(&letter))), unix.EPERM)
		got("make a namespace", raw(unix.SYS_UNSHARE, high|unix.CLONE_NEWUSER), unix.EPERM)
	}
	got("clone3", raw(unix.SYS_CLONE3), unix.ENOSYS)
	got("call what is newer than the filter", raw(499), unix.ENOSYS)
	got("io_uring", raw(unix.SYS_IO_URING_SETUP, 1), unix.EPERM)
	for _, family := range []uintptr{unix.AF_VSOCK, unix.AF_ALG, unix.AF_PACKET, unix.AF_TIPC, unix.AF_XDP} {
		got(fmt.Sprintf("make a socket of family %d", family), raw(unix.SYS_SOCKET, family, unix.SOCK_DGRAM, 0), unix.EPERM)
	}
	if os.Getenv("UNSPACED") == "" {
		return
	}
	parent := uintptr(os.Getppid())
	own := "own"
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		fmt.Println(err)
	}
	f, err := os.Open(own)
	if err != nil {
		fmt.Println(err)
		return
	}
	got("change modes", unix.Chmod(own, 0o644), unix.EPERM)
	got("change the mode of an open file", unix.Fchmod(int(f.Fd()), 0o644), unix.EPERM)
	got("change owners", unix.Fchown(int(f.Fd()), os.Getuid(), os.Getgid()), unix.EPERM)
	got("set attributes", unix.Setxattr(own, "user.x", []byte("x"), 0), unix.EPERM)
	got("set flags", unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0), unix.EPERM)
	var param struct{ priority int32 }
	got("make its parent idle", raw(unix.SYS_SCHED_SETSCHEDULER, parent, unix.SCHED_IDLE, uintptr(unsafe.Pointer(&param))), unix.EPERM)
	got("slow down all of its user", unix.Setpriority(unix.PRIO_USER, 0, 19), unix.EPERM)
	got("slow down its parent", unix.Setpriority(unix.PRIO_PROCESS, int(parent), 19), unix.EPERM)
	got("slow down what its user reads and writes", raw(unix.SYS_IOPRIO_SET, 3, 0, 3<<13), unix.EPERM)
}

// tryAbstract connects to an abstract socket of the machine.
func tryAbstract() {
	conn, err := net.Dial("unix", os.Getenv("SOCKET"))
	if err == nil {
		conn.Close()
	}
	got("connect to an abstract socket", err, unix.EPERM, unix.ECONNREFUSED)
}

// tryFiles goes by what the kernel shows of itself and of the sandbox.
func tryFiles() {
	for _, name := range []string{
		"sys/kernel/core_pattern", "sys/kernel/hostname", "sys/vm/drop_caches", "sys/vm/overcommit_memory", "sysrq-trigger", "irq/default_smp_affinity",
		"1/mem", "1/oom_score_adj", fmt.Sprint(os.Getppid(), "/mem"),
	} {
		if f, err := os.OpenFile("/proc/"+name, os.O_WRONLY, 0); err == nil {
			f.Close()
			fmt.Println("CAN write to", name)
		}
	}
	for _, name := range strings.Fields(os.Getenv("PROGRAMS")) {
		unix.Chmod(name, 0o1755) // what becomes of the host's is seen there
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			f.Close()
			fmt.Println("CAN write to", name)
		}
	}
}

// A task finds no gap in the filter of system calls, none to the kernel's own
// files, and no way to the programs that made its sandbox.
func TestBreakout(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := []string{self, "/usr/bin/env"}
	if bwrap, err := exec.LookPath("bwrap"); err == nil {
		programs = append(programs, bwrap)
	}
	modes := map[string]os.FileMode{}
	for _, name := range programs {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		modes[name] = info.Mode()
	}
	t.Cleanup(func() {
		for name, mode := range modes {
			info, err := os.Stat(name)
			if err == nil && info.Mode() != mode {
				t.Errorf("a task has changed %s of the host: %s", name, info.Mode())
				os.Chmod(name, mode)
			}
		}
	})
	forBoxes(t, "", func(t *testing.T, l *lab, mode string) {
		run := func(what string) (adapters.Status, string) {
			task := l.start(func(t *adapters.Task) {
				t.Command = []string{"./task"}
				t.Env = map[string]string{breakout: what, "PROGRAMS": strings.Join(append([]string{"/proc/1/exe", "/proc/self/exe"}, programs...), " ")}
				if strings.HasSuffix(mode, "unspaced") {
					t.Env["UNSPACED"] = "1"
					t.Env["PROGRAMS"] = strings.Join(programs, " ") // its own is a copy
				}
			})
			return l.wait(task.Key, adapters.Ended), l.stdout(task.Key, false)
		}
		for _, what := range []string{"calls", "files"} {
			if st, out := run(what); st.Outcome != pcm.OutcomeOK || out != "over\n" {
				t.Errorf("%s: %+v\n%s", what, st, out)
			}
		}
		if !foreign {
			return
		}
		if st, out := run("foreign"); st.ExitCode != 128+int(syscall.SIGSYS) || out != "" {
			t.Errorf("a call of another architecture: %+v %q", st, out)
		}
	})
}

// What is run beside a task can't be this program, which stands before it in its process.
func TestExecItself(t *testing.T) {
	forBoxes(t, "", func(t *testing.T, l *lab, mode string) {
		if strings.HasSuffix(mode, "unspaced") {
			return // where the task sees the host's programs by their names
		}
		task := l.sh("ln -s /proc/self/exe me; echo '#!/proc/self/exe' >script; chmod 755 script; echo ready; sleep 300", nil)
		l.await("the beginning", func() bool { return l.stdout(task.Key, false) != "" })
		for _, program := range []string{"true", "/proc/self/exe", "./me", "./script"} {
			var out bytes.Buffer
			want := 126
			if program == "true" {
				want = 0
			}
			code, err := l.a.Exec(l.ctx, task.Key, adapters.Exec{Command: []string{program, "-test.list", "."}, Stdout: &out, Stderr: &out})
			if code != want || err != nil {
				t.Errorf("%s: exit code %d, %v\n%s", program, code, err, out.String())
			}
		}
	})
}

// A copy of a program can be run; changing it changes no other.
func TestPrivateProgram(t *testing.T) {
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte("#!/bin/sh\necho \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !ours(name) {
		t.Error("it is not ours")
	}
	f, err := private(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	copied := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	if out, err := exec.Command(copied, "fine").Output(); string(out) != "fine\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := os.WriteFile(copied, []byte("other"), 0); err == nil {
		t.Error("it can be written to")
	}
	os.Chmod(copied, 0o700)
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
}

// A folder that the task has closed is added up all the same, and stays closed.
func TestClosedFolders(t *testing.T) {
	dir := t.TempDir()
	inner := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "f"), make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{inner, filepath.Dir(inner)} {
		if err := os.Chmod(d, 0); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(d, 0o700)
	}
	if n := occupied(&supervisor.Run{Work: dir}, 1<<30); n < 3<<20 {
		t.Errorf("%d bytes seen", n)
	}
	if info, err := os.Stat(filepath.Dir(inner)); err != nil || info.Mode().Perm() != 0 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// What takes long to be added up is so at once when the disk fills.
func TestPace(t *testing.T) {
	now := time.Now()
	p := pace{next: now.Add(time.Hour), free: 100, left: 10}
	for free, want := range map[int64]bool{100: false, 200: false, 91: false, 90: true, 0: true} {
		if p.due(now, free) != want {
			t.Errorf("%d bytes free: %v", free, !want)
		}
	}
	if !p.due(now.Add(time.Hour), 100) || !(pace{}).due(now, 100) {
		t.Error("not due in time")
	}
}

// What can't hold all processes of a task is sold to the own account only.
func TestWeakIsOwnOnly(t *testing.T) {
	for _, mode := range append(modes, landlockedLeast) {
		l := newLab(t, mode)
		pools, err := l.a.Pools(l.ctx)
		if err != nil || len(pools) != 1 {
			t.Fatal(pools, err)
		}
		if want := strings.HasPrefix(mode, SandboxNone) || mode == landlockedLeast; pools[0].OwnOnly != want {
			t.Errorf("%s: own only: %v", mode, pools[0].OwnOnly)
		}
	}
}

// With the network, too, root's tasks don't get at what listens on abstract
// sockets, and trusts root.
func TestAbstractSockets(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this is not root")
	}
	name := fmt.Sprintf("@pcm-breakout-%d", os.Getpid())
	listener, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() }) // after the parallel ones
	forBoxes(t, "network", func(t *testing.T, l *lab, _ string) {
		task := l.start(func(t *adapters.Task) {
			t.Command, t.Env, t.Network = []string{"./task"}, map[string]string{breakout: "abstract", "SOCKET": name}, true
		})
		if st := l.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeOK || l.stdout(task.Key, false) != "over\n" {
			t.Errorf("%+v %s", st, l.stdout(task.Key, false))
		}
	})
}
