package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm/adapters/supervisor"
)

// cellSocket is the inherited socket over which the inner side of a dial sends
// its connection.
const cellSocket = 5

const allSpaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// enter goes where the task is, runs this program there in the next role, and
// ends as that does.
func (c *cell) enter() error {
	program := "/proc/self/exe"
	if c.Walls == SandboxBubblewrap && !landlocks() { // which else keeps the command from it; see join
		own, err := private(program)
		if err != nil {
			return err
		}
		program = fmt.Sprintf("/proc/self/fd/%d", own.Fd())
	}
	for _, dir := range c.Groups {
		if err := put(dir, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return fmt.Errorf("can't enter its control group: %w", err)
		}
	}
	target, err := unix.PidfdOpen(c.Target, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	if startOf(c.Target) != c.Since { // another process has its number
		return errors.New("the task's process has ended")
	}
	self, err := unix.Open(program, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	next, spaces := "join", allSpaces
	if c.Port != 0 {
		next, spaces = "dial", unix.CLONE_NEWUSER|unix.CLONE_NEWNET
	} else if c.Network {
		spaces &^= unix.CLONE_NEWNET
	}
	argv, err := syscall.SlicePtrFromStrings([]string{cellArg, next})
	if err != nil {
		return err
	}
	env := []*byte{nil}
	if _, err := unix.Seek(cellSettings, 0, 0); err != nil {
		return err
	}
	for _, fd := range []int{cellReport, cellSettings, cellSocket} {
		if fd != cellSocket || c.Port != 0 {
			unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		}
	}
	pid, errno := forkInto(uintptr(target), uintptr(spaces), uintptr(self), &argv[0], &env[0])
	if errno != 0 {
		return os.NewSyscallError("fork", errno)
	}
	var ws syscall.WaitStatus
	if err := wait(int(pid), &ws); err != nil {
		return err
	}
	if ws.ExitStatus() != 0 {
		return fmt.Errorf("can't enter its namespaces: %w", syscall.Errno(ws.ExitStatus()))
	}
	if err := wait(-1, &ws); err != nil {
		return err
	}
	if ws.Signaled() {
		os.Exit(128 + int(ws.Signal()))
	}
	os.Exit(ws.ExitStatus())
	return nil
}

func wait(pid int, ws *syscall.WaitStatus) error {
	for {
		_, err := syscall.Wait4(pid, ws, 0, nil)
		if err != syscall.EINTR {
			return os.NewSyscallError("wait", err)
		}
	}
}

// forkInto makes a process inside the namespaces of target that runs the program
// behind self: a child of this one, though not in its process namespace. Only a
// process of a single thread may change its user namespace, which one of Go is
// not but just after a fork: so until the exec it makes bare system calls.
//
//go:norace
//go:nosplit
func forkInto(target, spaces, self uintptr, argv, env **byte) (pid uintptr, errno syscall.Errno) {
	var full, old [1]uint64
	full[0] = ^uint64(0) // no handler of Go's may run in the child
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&full)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || errno != 0 {
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
		return pid, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_SETNS, target, spaces, 0)
	if errno == 0 {
		// The process namespace is that of children only.
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(syscall.SIGCHLD)|unix.CLONE_PARENT, 0, 0, 0, 0, 0)
		if pid == 0 && errno == 0 {
			syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
			full[0] = 0
			syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&full)), 0, 8, 0, 0)
			var empty byte
			_, _, errno = syscall.RawSyscall6(unix.SYS_EXECVEAT, self, uintptr(unsafe.Pointer(&empty)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(env)), unix.AT_EMPTY_PATH, 0)
		}
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	}
}

// join runs a command beside the task, within the same bounds.
func (c *cell) join() error {
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // the task must not look into what is not yet confined
	if !c.Spaced {
		for _, dir := range c.Groups {
			if err := put(dir, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
				return fmt.Errorf("can't enter its control group: %w", err)
			}
		}
	}
	if c.Terminal {
		if _, err := unix.Setsid(); err != nil {
			return os.NewSyscallError("setsid", err)
		}
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return os.NewSyscallError("terminal", err)
		}
	}
	work := c.Work
	if c.Spaced {
		work = workInside
	}
	if err := os.Chdir(work); err != nil {
		return err
	}
	var err error
	switch {
	case c.Walls == SandboxNone:
	case c.Walls == SandboxBubblewrap && !landlocks():
		err = c.refuse()
	default: // Landlock beside bubblewrap, too: until the command is run, this program of the host's is /proc/self/exe
		err = c.confine(work)
	}
	if err != nil {
		return err
	}
	program, err := lookPath(c.Command[0], work, c.Env)
	if err != nil {
		return err
	}
	bound(0, c.Memory)
	return execError(c.Command[0], syscall.Exec(program, c.Command, c.Env))
}

func landlocks() bool {
	abi, err := ll.LandlockGetABIVersion()
	return err == nil && abi > 0
}

func (c *cell) sockets() sockets {
	switch {
	case c.Network || c.Spaced:
		return allSockets
	case c.Listen != 0:
		return tcpSockets
	}
	return noSockets
}

// refuse gives up privileges and the system calls that no task may make.
func (c *cell) refuse() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("no_new_privs", err)
	}
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for i := range uintptr(64) { // EPERM where there never were any, EINVAL after the last
		unix.Prctl(unix.PR_CAPBSET_DROP, i, 0, 0, 0)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	p, err := policy(c.sockets(), c.Spaced)
	if err != nil {
		return err
	}
	return loadFilter(p)
}

// dialTimeout bounds a connection to a port of a task.
const dialTimeout = 5 * time.Second

// dial connects to a port in the network of the task and sends the connection home.
func (c *cell) dial() error {
	conn, err := dialLocal(c.Port)
	if err != nil {
		return &taskError{1, err.Error()}
	}
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(cellSocket, []byte{cellStarted}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	os.Exit(0)
	return nil
}

// dialLocal connects to the port on the loopback addresses.
func dialLocal(port int) (net.Conn, error) {
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), dialTimeout)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = supervisor.Errno(err)
		}
	}
	return nil, first
}

// startOf is when a process began, in ticks since boot; 0 if there is none.
func startOf(pid int) uint64 {
	fields := statOf(pid)
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[19], 10, 64)
	return n
}

// listens tells whether one of the processes listens on the port.
func listens(pids []int, port int) bool {
	sockets := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		for _, inode := range listeners(filepath.Join("/proc", strconv.Itoa(pids[0]), "net", table), port) {
			sockets["socket:["+inode+"]"] = true
		}
	}
	for _, pid := range pids {
		open, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
		for _, fd := range open {
			if to, err := os.Readlink(fd); err == nil && sockets[to] {
				return true
			}
		}
	}
	return false
}
