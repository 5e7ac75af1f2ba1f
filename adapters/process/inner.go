package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// cellArg is the name under which this program runs itself inside a sandbox.
const cellArg = "pcm-sandbox"

// The files that the inner side inherits.
const (
	cellReport   = 3 // what it says: cellBegun, then cellStarted or a cellFault
	cellSettings = 4
)

const (
	cellBegun   = '+'
	cellStarted = '!'
)

// cellFault is why the program was not started. A code makes it the task's own.
type cellFault struct {
	Code   int    `json:"code,omitempty"`
	Reason string `json:"reason"`
}

// cell is what the inner side of a sandbox is told.
type cell struct {
	Spaced    bool     `json:"spaced"` // it is the first process in namespaces of its own
	Network   bool     `json:"network"`
	Root      string   `json:"root"` // an empty folder, to lay out the task's view on
	Work      string   `json:"work"`
	Inputs    []part   `json:"inputs,omitempty"`
	Parts     []part   `json:"parts"`
	Scratch   int64    `json:"scratch"`
	Devices   []string `json:"devices,omitempty"`
	Libs      []string `json:"libs,omitempty"`
	Processes uint64   `json:"processes,omitempty"` // at most, where no control group counts them
	Memory    uint64   `json:"memory,omitempty"`    // of each process, where no control group counts it
	Listen    int      `json:"listen,omitempty"`    // the port of a service that has no network of its own
	Command   []string `json:"command"`
	Env       []string `json:"env"`

	// What is run beside the task is told this as well.
	Walls    string   `json:"walls,omitempty"` // the sandbox that the task is in
	Groups   []string `json:"groups,omitempty"`
	Target   int      `json:"target,omitempty"` // a process that is where to go
	Since    uint64   `json:"since,omitempty"`  // when that began
	Port     int      `json:"port,omitempty"`   // to connect to; 0: a command is run
	Terminal bool     `json:"terminal,omitempty"`
}

// file gives the settings as an unnamed file.
func (c cell) file() (*os.File, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("pcm-sandbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "settings")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// init makes this program the inner side of a sandbox where it was started as
// that, before anything else of it runs.
func init() {
	if len(os.Args) > 2 && os.Args[0] == cellArg && os.Args[1] == "scope" {
		scope(os.Args[2], os.Args[3:])
	}
	if len(os.Args) != 2 || os.Args[0] != cellArg {
		return
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it makes little and stays small
	report := os.NewFile(cellReport, "report")
	unix.CloseOnExec(cellReport)
	unix.CloseOnExec(cellSettings)
	var c cell
	err := json.NewDecoder(os.NewFile(cellSettings, "settings")).Decode(&c)
	if err == nil {
		switch os.Args[1] {
		case "run":
			report.Write([]byte{cellBegun})
			err = c.run(report)
		case "enter":
			err = c.enter()
		case "join":
			err = c.join()
		case "dial":
			err = c.dial()
		default:
			err = errors.New("no such thing to do in a sandbox")
		}
	}
	f := cellFault{Reason: err.Error()}
	if te := (*taskError)(nil); errors.As(err, &te) {
		f.Code = te.code
	}
	data, _ := json.Marshal(f)
	report.Write(data)
	os.Exit(125)
}

// scope runs a program that can't reach abstract Unix sockets of others: those go
// by the network.
func scope(program string, argv []string) {
	runtime.LockOSThread()
	var inherited int
	if n, _ := fmt.Sscanf(program, "/proc/self/fd/%d", &inherited); n == 1 {
		unix.CloseOnExec(inherited)
	}
	fd, flags, err := landlock.Config{Scoped: ll.ScopeAbstractUnixSocket}.NewRulesetFD()
	if err == nil {
		err = ll.LandlockRestrictSelf(fd, flags)
		unix.Close(fd)
	}
	if err == nil {
		err = syscall.Exec(program, argv, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "scope:", err)
	os.Exit(125)
}

// run makes the sandbox and takes the program to its end. It returns only if
// that was not started.
func (c *cell) run(report *os.File) error {
	work := c.Work
	if c.Spaced {
		if err := c.view(); err != nil {
			return err
		}
		if err := unix.Sethostname([]byte("task")); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
		if !c.Network {
			if err := loopback(); err != nil {
				return err
			}
		}
		work = workInside
		if c.Processes > 0 {
			unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: c.Processes, Max: c.Processes})
		}
	}
	if err := os.Chdir(work); err != nil {
		return err
	}
	if err := c.confine(work); err != nil {
		return err
	}
	program, err := lookPath(c.Command[0], work, c.Env)
	if err != nil {
		return err
	}
	if !c.Spaced {
		bound(0, c.Memory)
		return execError(c.Command[0], syscall.Exec(program, c.Command, c.Env))
	}
	// Its other threads keep what this one gave up: its memory and its program are not for the task.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("dumpable", err)
	}
	// As the first process it must outlive the task's own and bury the orphans.
	// A signal that it doesn't take would end it, or be inherited as ignored.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	proc, err := os.StartProcess(program, c.Command, &os.ProcAttr{Env: c.Env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return execError(c.Command[0], err)
	}
	bound(proc.Pid, c.Memory) // not before: this process needs threads of its own
	report.Write([]byte{cellStarted})
	for _, f := range []*os.File{report, os.Stdin, os.Stdout, os.Stderr} {
		f.Close() // the streams end with the task
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.EINTR || err == nil && pid != proc.Pid {
			continue
		}
		switch {
		case err != nil:
			os.Exit(125)
		case ws.Signaled():
			os.Exit(128 + int(ws.Signal()))
		}
		os.Exit(ws.ExitStatus())
	}
}

// bound bounds the memory of a process, 0 being this one, and of its children,
// each by itself: what is left without control groups.
func bound(pid int, memory uint64) {
	if memory > 0 {
		unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: memory, Max: memory}, nil)
		unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	}
}

// confine gives up, for good, what the task must not be able to do.
func (c *cell) confine(work string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("no_new_privs", err)
	}
	if err := c.landlock(work); err != nil {
		return err
	}
	return c.refuse()
}

// landlock leaves access to what the task may use only. In namespaces that is a
// second wall; without them it is the one that there is.
func (c *cell) landlock(work string) error {
	all := landlock.Config{HandledAccessFS: landlock.V9.HandledAccessFS}
	const readWrite = ll.AccessFSExecute | ll.AccessFSReadFile | ll.AccessFSReadDir | ll.AccessFSWriteFile | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile |
		ll.AccessFSMakeDir | ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeSym | ll.AccessFSTruncate
	rw := func(paths ...string) landlock.Rule { return landlock.PathAccess(readWrite, paths...).IgnoreIfMissing() }
	files := func(paths ...string) landlock.Rule {
		return landlock.RWFiles(paths...).WithIoctlDev().IgnoreIfMissing()
	}
	var rules []landlock.Rule
	if c.Spaced {
		rules = append(rules, landlock.RODirs("/"), refer(work), rw("/tmp", "/run", "/dev/shm"), landlock.PathAccess(readWrite|ll.AccessFSIoctlDev, "/dev"))
		if c.Network {
			all.Scoped = ll.ScopeAbstractUnixSocket // those go by the network, which is the host's
		}
	} else {
		all.Scoped = landlock.V9.Scoped
		rules = append(rules, refer(work), landlock.RODirs("/proc").IgnoreIfMissing(), files("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"))
		for _, p := range c.Parts {
			if p.From == "" || p.Link {
				continue // nothing is covered here: what isn't named can't be opened
			}
			rules = append(rules, readOnly(p.From))
		}
		if c.Network {
			rules = append(rules, readOnly("/etc/resolv.conf"))
		} else if c.Listen != 0 { // there, and nowhere to connect to
			all.HandledAccessNet = ll.AccessNetBindTCP | ll.AccessNetConnectTCP
			rules = append(rules, landlock.BindTCP(uint16(c.Listen)))
		}
		rules = append(rules, files(c.Devices...))
		for _, lib := range c.Libs {
			rules = append(rules, readOnly(lib))
		}
	}
	fd, flags, err := all.BestEffort().NewRulesetFD(rules...)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	defer unix.Close(fd)
	// For this thread, from which the task comes.
	return os.NewSyscallError("landlock", ll.LandlockRestrictSelf(fd, flags))
}

// refer is all access, and moving between the folders of dir.
func refer(dir string) landlock.Rule {
	return landlock.RWDirs(dir).WithRefer()
}

func readOnly(name string) landlock.Rule {
	if info, err := os.Stat(name); err == nil && !info.IsDir() {
		return landlock.ROFiles(name)
	}
	return landlock.RODirs(name).IgnoreIfMissing()
}

// view makes c.Root the root of what the task sees, and enters it.
func (c *cell) view() error {
	if err := mount("none", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", c.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return err
	}
	in := func(p string) string { return filepath.Join(c.Root, p) }
	for _, p := range c.scratch() {
		if err := os.MkdirAll(in(p), 0o755); err != nil {
			return err
		}
		if err := mount("tmpfs", in(p), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, c.size()); err != nil {
			return err
		}
	}
	for _, p := range c.Parts {
		var err error
		switch {
		case p.From == "":
			if err = os.MkdirAll(in(p.To), 0o755); err == nil || errors.Is(err, syscall.EROFS) {
				err = mount("tmpfs", in(p.To), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "size=4k")
			}
		case p.Link:
			err = os.Symlink(p.From, in(p.To))
		default:
			err = bind(p.From, in(p.To), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		}
		if err != nil {
			return err
		}
	}
	if c.Network {
		if real, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
			if err := bind(real, in("/etc/resolv.conf"), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID); err != nil {
				return err
			}
		}
	}
	for _, lib := range c.Libs {
		if _, err := os.Stat(lib); err == nil {
			if err := bind(lib, in(lib), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID); err != nil {
				return err
			}
		}
	}
	if err := c.devices(in); err != nil {
		return err
	}
	if err := bind(c.Work, in(workInside), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return err
	}
	for _, p := range c.Inputs {
		if err := bind(p.From, in(path.Join(workInside, p.To)), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(in("/proc"), 0o755); err != nil {
		return err
	}
	// Read-only: of a node that root runs, the task is the owner of what the kernel shows there.
	if err := mount("proc", in("/proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := os.Chdir(c.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, on top of the new
		return os.NewSyscallError("umount", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return setattr("/", unix.MOUNT_ATTR_RDONLY, 0)
}

// scratch are the folders in memory that the task may fill.
func (c *cell) scratch() []string { return []string{"/tmp", "/run", "/dev", "/dev/shm"} }

func (c *cell) size() string {
	if c.Scratch <= 0 {
		return "mode=755"
	}
	return fmt.Sprintf("mode=755,size=%d", max(c.Scratch, 64<<10))
}

// devices makes the few that every program expects, and those of the task.
func (c *cell) devices(in func(string) string) error {
	for _, name := range append([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}, c.Devices...) {
		if err := bind(name, in(name), unix.MOUNT_ATTR_NOSUID); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, in("/dev/"+name)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(in("/dev/pts"), 0o755); err != nil {
		return err
	}
	if err := mount("devpts", in("/dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return err
	}
	return setattr(in("/dev"), unix.MOUNT_ATTR_RDONLY, 0)
}

func mount(from, to, kind string, flags uintptr, data string) error {
	if err := unix.Mount(from, to, kind, flags, data); err != nil {
		return fmt.Errorf("can't mount %s: %w", to, err)
	}
	return nil
}

// bind shows from at to, which is made, with the attributes.
func bind(from, to string, attr uint64) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if _, exists := os.Lstat(to); exists != nil {
		if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
			var f *os.File
			if f, err = os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644); err == nil {
				f.Close()
			}
		}
	}
	if err != nil {
		return err
	}
	if err := mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return setattr(to, attr, unix.AT_RECURSIVE)
}

// setattr adds attributes to a mount.
func setattr(name string, attr uint64, flags uint) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, name, flags, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("can't protect %s: %w", name, err)
	}
	return nil
}

// loopback switches on the task's only network.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("loopback", ioctlIfreq(s, req))
}

func ioctlIfreq(s int, req *unix.Ifreq) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(req)))
	if errno != 0 {
		return errno
	}
	return nil
}

// environ is the whole environment of a task.
func environ(t adapters.Task, home string, extra surroundings) []string {
	env := supervisor.Environ(t, home, defaultPath)
	for k, v := range extra.env {
		env = append(env, k+"="+v)
	}
	return env
}

// marks are the variables by which a later supervisor knows a survivor.
func marks(t *supervisor.Run) []string {
	return []string{"PCM_ATTEMPT=" + t.Key.String(), "PATH=" + defaultPath, "HOME=" + t.Work}
}
